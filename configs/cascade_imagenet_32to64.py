"""ImageNet from 32x32 to 64x64 with classes and noise-conditioning augmentation, as in CDM: 297 M parameters.

Command: python -m ddpm_jax.train --config=configs/cascade_imagenet_32to64.py --workdir=runs/imagenet_32to64
The base of the cascade: cascade_imagenet_32.
Data: TFDS's imagenet2012, which must be prepared by hand; the 32x32 images are made of it in training.
What is of the paper (Ho et al. 2021) and what is ours, such as the networks: configs/_cascade.py.
Hardware and time: meant for many GPUs or TPU cores; not run here.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._cascade import low_resolution_config
from ddpm_jax.configs._openai import as_upsampler


def get_config() -> ConfigDict:
    config = as_upsampler(low_resolution_config(64), 2)
    config.condition.augmentation = "noise"
    config.condition.max_level = 250  # of T = 1000: alpha-bar 0.85
    return config.lock()
