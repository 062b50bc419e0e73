"""The eval loss of each checkpoint, which decides which one is the best: read, verified, and moved aside if damaged.

It is in <workdir>/checkpoints/<step>/metrics/metrics, as JSON.
"""

import math
import os
import shutil
import sys
from pathlib import Path

from ddpm_jax.runtime.json_files import read_json
from ddpm_jax.workdir.checkpoint_manifest import DamagedError, verify_item
from ddpm_jax.workdir.cleanup import free_name

BEST_METRIC = "eval_loss"
ITEM = "metrics"


def damaged_metrics(directory: str) -> dict[int, str]:
    """Step -> what is wrong, for the metrics that are not what was saved.

    Args:
      directory: the folder `checkpoints` of a workdir.
    """
    found = {}
    for folder in Path(directory).glob(f"*/{ITEM}"):
        if folder.parent.name.isdecimal():
            try:
                _check(folder)
            except OSError:  # deleted meanwhile by the run that trains here, or not to be read now: not damage
                continue
            except ValueError as error:  # a DamagedError is one
                if not folder.is_dir():
                    continue
                found[int(folder.parent.name)] = str(error)
    return dict(sorted(found.items()))


def is_unreadable(directory: str, step: int) -> bool:
    """Whether the metrics of a step are not JSON; Orbax then does not open the folder at all."""
    try:
        read_json(os.path.join(directory, str(step), ITEM, ITEM))
    except ValueError:
        return True
    except OSError:  # gone, or not to be read now
        return False
    return False


def _check(folder: Path) -> None:
    value = read_json(folder / ITEM, dict).get(BEST_METRIC)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise DamagedError(f"its {BEST_METRIC} is {value!r:.100}")
    verify_item(folder.parent, ITEM)


def move_metrics_aside(directory: str, damaged: dict[int, str]) -> None:
    """Moves damaged metrics to damaged_checkpoints/STEP_metrics, with a warning; the arrays of the steps stay.

    Such a step is then none of the best; it remains one to resume from while it is among the newest.
    """
    aside = os.path.join(os.path.dirname(directory), "damaged_checkpoints")
    os.makedirs(aside, exist_ok=True)
    for step, what in damaged.items():
        target = os.path.join(aside, free_name(aside, f"{step}_{ITEM}"))
        shutil.move(os.path.join(directory, str(step), ITEM), target)
        print(
            f"warning: the eval loss of the checkpoint of step {step} is damaged ({what}): moved it to {target}; the "
            "step cannot be the best one",
            file=sys.stderr,
            flush=True,
        )
