"""ImageNet 512x512 with classes, Dhariwal and Nichol 2021 ("ADM"): 559 M parameters; the first level has 128 channels.

Command: python -m ddpm_jax.train --config=configs/guided_imagenet512.py --workdir=runs/guided_imagenet512
Data: TFDS's imagenet2012, which must be prepared by hand.
Source: README of openai/guided-diffusion; the published checkpoint is 512x512_diffusion.
Batch size, learning rate, dropout and number of updates: table 11 of the paper.
Hardware and time: meant for many GPUs or TPU cores; not yet run.
Expected results: the paper reports FID 23.24, sFID 10.19, precision 0.73, recall 0.60 with 250 steps and no guidance;
7.72, 6.57, 0.87, 0.42 with classifier guidance of scale 4.0 (its tables 5 and 14; docs/classifier_guidance.md).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import guided_config


def get_config() -> ConfigDict:
    config = guided_config(512)
    config.unet.conv_in_channels = 128  # the width of the first level, half of unet.channels
    config.train.num_steps = 1_940_000
    config.sample.batch_size = 8
    return config.lock()
