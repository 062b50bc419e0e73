"""ImageNet 64x64 without classes, Nichol and Dhariwal 2021, L_vlb with importance sampling of t: 121 M parameters.

Command: python -m ddpm_jax.train --config=configs/improved_imagenet64_vlb.py --workdir=runs/improved_imagenet64_vlb
Data: TFDS's downsampled_imagenet/64x64.
Source: README of openai/improved-diffusion; the published checkpoint is imagenet64_uncond_vlb_100M_1500K.
Hardware and time: meant for several GPUs or TPU cores; not yet run.
Expected results: the paper reports 3.53 bits/dim and FID 40.1 of 10,000 samples after 1,500,000 updates (its tables 1
and 3, as quoted in the notes of two readers; we have not seen the tables themselves).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import with_importance_sampled_vlb
from ddpm_jax.configs.improved_imagenet64 import get_config as hybrid_config


def get_config() -> ConfigDict:
    return with_importance_sampled_vlb(hybrid_config().unlock()).lock()
