"""The rows of a dry run: a config as given, and with one memory setting after the other changed."""

import dataclasses
from collections.abc import Sequence

import jax

from ddpm_jax.experiment.build import Experiment, build_experiment
from ddpm_jax.experiment.config_files import Config, changed
from ddpm_jax.experiment.config_json import config_to_json
from ddpm_jax.runtime.errors import UserError, check_one_of

# Name of a row -> the fields that it changes.
SWITCHES = {
    "given": (),
    "plain": ("model.remat=false", "model.dtype=float32", "train.grad_accum_steps=1", "mesh.fsdp=1"),
    "remat": ("model.remat=true",),
    "bfloat16": ("model.dtype=bfloat16",),
    "remat_bfloat16": ("model.remat=true", "model.dtype=bfloat16"),
    **{f"accum_{n}": (f"train.grad_accum_steps={n}",) for n in (2, 4, 8)},
    **{f"fsdp_{n}": (f"mesh.fsdp={n}",) for n in (1, 2, 4, 8)},
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A config with the settings of one row."""

    name: str
    experiment: Experiment

    @property
    def changes(self) -> tuple[str, ...]:
        """`group.field=value` for the fields that the row sets."""
        return SWITCHES[self.name]


def build_variants(
    config: Config, names: Sequence[str] = (), devices: Sequence[jax.Device] | None = None
) -> tuple[list[Variant], dict[str, str]]:
    """The variants in `names` (empty or "all": all) in that order, and for each one left out the reason, by name.

    Args:
      devices: for the meshes to choose from; None: all devices of JAX.

    Raises:
      UserError: no such row, or the config does not fit as given.
    """
    for name in names:
        check_one_of("--rows", name, ("all", *SWITCHES))
    if "all" in names:
        names = ()
    build_experiment(config, devices)
    variants, left_out, seen = [], {}, {}
    for name in names or SWITCHES:
        variant_config = changed(config, SWITCHES[name])
        same = seen.setdefault(config_to_json(variant_config), name)
        if same != name:
            left_out[name] = f"the same as {same}"
            continue
        try:
            variants.append(Variant(name, build_experiment(variant_config, devices)))
        except UserError as error:
            left_out[name] = str(error)
    return variants, left_out
