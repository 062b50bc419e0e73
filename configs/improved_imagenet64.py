"""ImageNet 64x64 without classes, of Nichol and Dhariwal 2021, L_hybrid: 121 M parameters, cosine schedule, T=4000.

Command: python -m ddpm_jax.train --config=configs/improved_imagenet64.py --workdir=runs/improved_imagenet64
Data: TFDS's downsampled_imagenet/64x64.
Source: README of openai/improved-diffusion; the published checkpoint is imagenet64_uncond_100M_1500K.
Hardware and time: meant for several GPUs or TPU cores; not yet run.
Expected results: the paper reports 3.57 bits/dim and FID 19.2 of 10,000 samples after 1,500,000 updates (its table 1,
as quoted in the notes of two readers; we have not seen the table itself).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import improved_config


def get_config() -> ConfigDict:
    config = improved_config(64)
    config.data.name = "downsampled_imagenet/64x64"
    config.data.eval_split = "validation"
    config.train.num_steps = 1_500_000
    return config.lock()
