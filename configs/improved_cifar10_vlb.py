"""CIFAR-10 of Nichol and Dhariwal 2021, L_vlb with importance sampling of t: 52.5 M parameters, cosine, T=4000.

Command: python -m ddpm_jax.train --config=configs/improved_cifar10_vlb.py --workdir=runs/improved_cifar10_vlb
Source: README of openai/improved-diffusion; the published checkpoint is cifar10_uncond_vlb_50M_500K.
Hardware and time: meant for a GPU or a TPU; not yet run.
Expected results: the paper reports 2.94 bits/dim and FID 11.47 after 500,000 updates (its tables 2 and 3, as quoted in
the notes of three readers; we have not seen the tables themselves).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import with_importance_sampled_vlb
from ddpm_jax.configs.improved_cifar10 import get_config as hybrid_config


def get_config() -> ConfigDict:
    return with_importance_sampled_vlb(hybrid_config().unlock()).lock()
