"""CIFAR-10 on the bound, the other row of Ho et al. 2020, 35.7 M parameters: `cifar10_paper` with L for L_simple.

Command: python -m ddpm_jax.train --config=configs/cifar10_vlb.py --workdir=runs/cifar10_vlb
The loss is L_t at a uniform t in bits/dim, not T times that, as in their code with loss_type=kl; the variance is their
script's default, fixed_large.
Hardware and time: the original ran on a TPU v3-8; not yet run here.
To expect: the paper reports at most 3.70 bits/dim, FID 13.51 and Inception Score 7.67 (its tables 1 and 2, the row "L,
fixed isotropic Sigma"): a better likelihood and worse samples than `cifar10_paper`.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs.cifar10_paper import get_config as base_config


def get_config() -> ConfigDict:
    config = base_config()
    with config.unlocked():
        config.diffusion.loss = "vlb"
    return config
