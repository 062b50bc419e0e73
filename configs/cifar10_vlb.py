"""CIFAR-10 trained on the variational bound, another row of Ho et al. 2020, 35.7 M parameters.

Command: python -m ddpm_jax.train --config=configs/cifar10_vlb.py --workdir=runs/cifar10_vlb
This is `cifar10_paper` with the loss L in place of L_simple. As in the authors' code with loss_type=kl, the loss is L_t
in bits/dim at a uniformly drawn t, not T times that. The variance, fixed_large, is the default of their script.
Hardware and time: the original ran on a TPU v3-8; not yet run here.
Expected results: the paper reports at most 3.70 bits/dim, FID 13.51 and Inception Score 7.67 (its tables 1 and 2, the
row "L, fixed isotropic Sigma"): a better likelihood and worse samples than `cifar10_paper`.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs.cifar10_paper import get_config as base_config


def get_config() -> ConfigDict:
    config = base_config()
    with config.unlocked():
        config.diffusion.loss = "vlb"
    return config
