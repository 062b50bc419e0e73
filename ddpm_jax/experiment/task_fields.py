"""Which fields of the group `condition` each task reads."""

from ml_collections import ConfigDict

from ddpm_jax.experiment.packaged_configs import base_config
from ddpm_jax.runtime.errors import UserError

# Task -> the fields of `condition` that it reads.
FIELDS = {
    "inpaint": ("hole_share",),
    "uncrop": (),
    "colourise": (),
    "jpeg": ("jpeg_quality", "jpeg_subsampling"),
    "deblur": ("blur_std",),
    "super_resolve": ("factor", "upsampling", "augmentation", "max_level", "augmentation_blur_std"),
}
_OF_AUGMENTATION = {"max_level": "noise", "augmentation_blur_std": "blur"}


def check_fields_are_read(config: ConfigDict) -> None:
    """Raises UserError for a field of `condition` that was changed and that the task does not read.

    Only for a new run: an older one may have been made when the field had another default.
    """
    default, condition = base_config().condition, config.condition
    for task, fields in FIELDS.items():
        for name in fields:
            augmentation = _OF_AUGMENTATION.get(name, condition.augmentation)
            if condition[name] == default[name] or (condition.task, condition.augmentation) == (task, augmentation):
                continue
            lacks, got = f"condition.task={task}", f"condition.task={condition.task!r}"
            if condition.task == task:
                lacks, got = f"condition.augmentation={augmentation}", f"{condition.augmentation!r}"
            raise UserError(
                f"condition.{name} is of {lacks}; got {got}, which does not read it: leave it at {default[name]}, or "
                f"give --config.{lacks}"
            )
