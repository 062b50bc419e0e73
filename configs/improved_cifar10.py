"""CIFAR-10 of Nichol and Dhariwal 2021, L_hybrid: 52.5 M parameters, cosine schedule, T=4000, learned variance.

Command: python -m ddpm_jax.train --config=configs/improved_cifar10.py --workdir=runs/improved_cifar10
Source: README of openai/improved-diffusion; the published checkpoint is cifar10_uncond_50M_500K.
Hardware and time: meant for a GPU or a TPU; not yet run.
Expected results: the paper reports FID 3.19 and 3.17 bits/dim after 500,000 updates (its table 2, as quoted in the
notes of three readers; we have not seen the table itself).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import improved_config


def get_config() -> ConfigDict:
    config = improved_config(32)
    config.unet.dropout = 0.3
    config.train.num_steps = 500_000
    return config.lock()
