"""ImageNet from 64x64 to 128x128 with classes and blurred small images, as in CDM: 237 M parameters.

Command: python -m ddpm_jax.train --config=configs/cascade_imagenet_64to128.py --workdir=runs/imagenet_64to128
Stages before: cascade_imagenet_32 and cascade_imagenet_32to64, or guided_imagenet64 alone.
Data: TFDS's imagenet2012, which must be prepared by hand; the 64x64 images are made of it in training.
What is of the paper (Ho et al. 2021) and what is ours, such as the networks: configs/_cascade.py.
Hardware and time: meant for many GPUs or TPU cores; not run here.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._cascade import blurred_upsampler_config


def get_config() -> ConfigDict:
    return blurred_upsampler_config(128, 2).lock()
