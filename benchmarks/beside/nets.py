"""The networks of the comparison, and what a contestant is told."""

from dataclasses import dataclass

# Name of the net -> experiment and what it changes. One device: the comparison is of one with one.
NETS = {
    "cifar10": ("cifar10", ()),
    "fashion_mnist": ("fashion_mnist", ()),
    "digits": ("digits", ()),
    # Its U-Net alone: tests/parity/openai_unet.py has no dropout, and the objective is that of the others.
    "improved_cifar10": (
        "improved_cifar10",
        ("unet.dropout=0.0", "diffusion.loss=simple", "diffusion.variance=fixed_large", "train.time_sampler=uniform"),
    ),
    "celeba_hq_256": ("celeba_hq_256", ()),
}
WORKS = ("forward", "sample", "train")
# Rows of the sampler's table in one call; a sampling run of 1,000 steps walks 50 such chunks.
NUM_ROWS = 20
CHECKED_ROWS = 5


@dataclass(frozen=True)
class Job:
    """What a contestant does, as it travels to its process."""

    net: str
    work: str  # of WORKS, or "check": the same numbers for the same weights and pictures
    batch_size: int
    variant: str  # of ours.VARIANTS or peer.VARIANTS
    folder: str  # what `prepare.py` wrote
    threads: int
    dtype: str  # float32, bfloat16
    num_rows: int = NUM_ROWS
