"""Which fields may change when a run is resumed, or started from imported weights."""

import fnmatch
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.experiment.config_overrides import apply_override, flatten
from ddpm_jax.experiment.packaged_configs import base_config
from ddpm_jax.runtime.errors import UserError

# Fields that may change between the runs that share a workdir: length, number of devices, how often something is
# written, where the data are, and everything that does not affect the parameters.
CHANGEABLE = (
    "train.num_steps", "train.num_devices", "train.keep_checkpoints", "train.num_ema_snapshots", "train.nonfinite*",
    "train.wandb_project", "*_every_steps",
    "mesh.*", "sample.*", "eval.*", "data.path", "data.data_dir", "model.remat",
)

# Fields that may also change once the learning rate is 0 or the run is finished, so that it can be extended.
CHANGEABLE_AT_THE_END = ("optim.warmup_*", "optim.decay_*")

# Fields that may change when a run starts from imported weights: all except those that define what the weights mean.
CHANGEABLE_AT_IMPORT = (
    "data.name", "data.path", "data.data_dir", "data.split", "data.eval_split", "data.flip", "optim.*", "train.*",
    "sample.*", "eval.*", "unet.dropout", "model.dtype", "model.remat", "diffusion.loss", "diffusion.huber_delta",
    "diffusion.vlb_lambda", "diffusion.weighting", "diffusion.*_gamma", "diffusion.p2_k",
    "diffusion.self_conditioning_rate", "mesh.*",
)


def changed_import(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """The config of imported weights with `group.field=value` applied to fields that they do not determine; locked.

    Raises:
      UserError: a field that the weights determine, an unknown field, or a value of the wrong type.
    """
    config = config.copy_and_resolve_references()
    for override in overrides:
        apply_override(config, override)
        field = override.partition("=")[0]
        if not any(fnmatch.fnmatchcase(field, pattern) for pattern in CHANGEABLE_AT_IMPORT):
            raise UserError(f"--config.{field} cannot be changed: the imported file determines it")
    return config.lock()


def check_same_run(saved: ConfigDict, given: ConfigDict, changeable: Sequence[str] = CHANGEABLE) -> None:
    """Raises UserError where `given` differs from the config of the run that it would continue.

    A field that one of them lacks has the default of configs/base.py: see `with_defaults`.

    Args:
      saved: the config that the run was started with.
      given: the config that it would be continued with.
      changeable: patterns of dotted fields that may differ, as for `fnmatch`.
    """
    absent = object()
    defaults = flatten(base_config())
    before, now = defaults | flatten(saved), defaults | flatten(given)
    differing = [field for field in sorted(before | now)
                 if before.get(field, absent) != now.get(field, absent)
                 and not any(fnmatch.fnmatchcase(field, pattern) for pattern in changeable)]
    if not differing:
        return

    def shown(fields: dict[str, Any], field: str) -> str:
        return repr(fields[field]) if field in fields else "nothing"

    parts = [f"{field} was {shown(before, field)} and is {shown(now, field)}" for field in differing[:3]]
    if len(differing) > 3:
        parts.append(f"and {len(differing) - 3} more")
    raise UserError(f"the workdir holds a run with another config: {'; '.join(parts)}; "
                    "give the values of that run to continue it, or another workdir to start anew")
