"""ImageNet 512x512 with labels of Dhariwal and Nichol 2021 ("ADM"): 559 M parameters; the first level has 128 channels.

Command: python -m ddpm_jax.train --config=configs/guided_imagenet512.py --workdir=runs/guided_imagenet512
Data: TFDS's imagenet2012, which has to be prepared by hand.
Source: README of openai/guided-diffusion, whose checkpoint of it is 512x512_diffusion.
Batch size, rate, dropout and number of updates: table 11 of the paper.
Hardware and time: meant for many GPUs or TPU cores; not yet run.
To expect: the paper reports FID 23.24, sFID 10.19, precision 0.73, recall 0.60 with 250 steps and no guidance; 7.72,
6.57, 0.87, 0.42 with guidance by a classifier, scale 4.0, which is not in here (its tables 5 and 14).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import guided_config


def get_config() -> ConfigDict:
    config = guided_config(512)
    config.unet.conv_in_channels = 128  # the width of the first level, half of unet.channels
    config.train.num_steps = 1_940_000
    config.sample.batch_size = 8
    return config.lock()
