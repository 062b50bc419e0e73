"""ImageNet 32x32 with classes, the base of a cascade to 64x64, 128x128 and 256x256 as in CDM: 129 M parameters.

Command: python -m ddpm_jax.train --config=configs/cascade_imagenet_32.py --workdir=runs/imagenet_32
Next stages: cascade_imagenet_32to64, then cascade_imagenet_64to128 or cascade_imagenet_64to256, trained apart.
Data: TFDS's imagenet2012, which must be prepared by hand.
What is of the paper (Ho et al. 2021) and what is ours, such as the networks: configs/_cascade.py.
Hardware and time: meant for many GPUs or TPU cores; not run here.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._cascade import low_resolution_config


def get_config() -> ConfigDict:
    config = low_resolution_config(32)
    config.unet.attention_resolutions = (16, 8)
    return config.lock()
