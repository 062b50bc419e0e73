"""Whether another trained network knows the x_t of a run, so that it can guide the run's samples."""

from ml_collections import ConfigDict

from ddpm_jax.experiment.codec_factory import x_0_shape_of
from ddpm_jax.runtime.errors import UserError

# The groups of a config that say which x_t the network sees.
_OF_INPUTS = ("schedule", "codec")


def check_same_x_t(config: ConfigDict, theirs: ConfigDict, *, setting: str, does: str) -> None:
    """Raises UserError unless both configs have the same schedule, codec and shape of x_0.

    Args:
      setting: names the other network, such as "sample.classifier='runs/c'".
      does: what the other network does, for the message: "classifies" or "predicts".
    """
    for group in (*_OF_INPUTS, *({config.codec.name} & set(config))):
        for field in sorted(config[group]):
            if config[group][field] != theirs[group][field]:
                raise UserError(
                    f"{setting} {does} x_t of another process: its {group}.{field} is {theirs[group][field]!r}, the "
                    f"run's {config[group][field]!r}; train one with the run's"
                )
    ours, shape = x_0_shape_of(config), x_0_shape_of(theirs)
    if ours != shape:
        raise UserError(f"{setting} is for x_0 of shape {list(shape)}; the run has {list(ours)}")


def check_same_num_classes(num_classes: int, theirs: int, *, setting: str) -> None:
    """Raises UserError unless both have the same number of classes."""
    if num_classes != theirs:
        raise UserError(f"{setting} has {theirs} classes; the run has model.num_classes={num_classes}")
