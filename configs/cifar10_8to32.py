"""CIFAR-10 from 8x8 to 32x32: super-resolution with noise-conditioning augmentation (CDM), 36.1 M parameters.

Command: python -m ddpm_jax.train --config=configs/cifar10_8to32.py --workdir=runs/8to32
Then: python -m ddpm_jax.edit --workdir=runs/8to32 --what=super_resolve --images=small --out=large
Data: as for configs/cifar10.py. The 8x8 images are the means of blocks of 4x4 pixels, made in training.
The recipe is that of configs/cifar10.py with what SR3 and CDM add; the levels of the noise are ours.
Hardware and time: meant for a GPU or a TPU; not run here.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs import cifar10


def get_config() -> ConfigDict:
    config = cifar10.get_config()
    with config.unlocked():
        config.condition.task = "super_resolve"
        config.condition.factor = 4
        config.condition.augmentation = "noise"
        config.condition.max_level = 120  # of T = 1000: alpha-bar 0.86
        config.diffusion.network_input = "alpha_bar"
        config.unet.time_scale = 1000.0
    return config
