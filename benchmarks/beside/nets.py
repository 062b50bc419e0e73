"""The networks of the comparison, and the job description that a contestant gets."""

from dataclasses import dataclass

# Name of the net -> experiment and overrides. One device, because the comparison is one device versus one.
NETS = {
    "cifar10": ("cifar10", ()),
    "fashion_mnist": ("fashion_mnist", ()),
    "digits": ("digits", ()),
    # Only its U-Net: tests/parity/openai_unet.py has no dropout, and the objective is the same as for the other nets.
    "improved_cifar10": (
        "improved_cifar10",
        ("unet.dropout=0.0", "diffusion.loss=simple", "diffusion.variance=fixed_large", "train.time_sampler=uniform"),
    ),
    "celeba_hq_256": ("celeba_hq_256", ()),
}
WORKS = ("forward", "sample", "train")
# Rows of the sampler's table per call; a sampling run of 1,000 steps has 50 such chunks.
NUM_ROWS = 20
CHECKED_ROWS = 5


@dataclass(frozen=True)
class Job:
    """What a contestant does, as sent to its process."""

    net: str
    work: str  # one of WORKS, or "check": the numbers for given weights and images
    batch_size: int
    variant: str  # one of ours.VARIANTS or peer.VARIANTS
    folder: str  # where `prepare.py` wrote its files
    threads: int
    dtype: str  # float32 or bfloat16
    num_rows: int = NUM_ROWS
