"""ImageNet 512x512 with labels of Dhariwal and Nichol 2021 ("ADM"): 559 M parameters; the first level has 128 channels.

Command: python -m ddpm_jax.train --config=configs/guided_imagenet512.py --workdir=runs/guided_imagenet512
Data: TFDS's imagenet2012, which has to be prepared by hand.
Source: README of openai/guided-diffusion, whose checkpoint of it is 512x512_diffusion.
Batch size, rate and number of updates are not in that code: they are the paper's as far as we know, not checked
against it.
Hardware and time: meant for many GPUs or TPU cores; not yet run.
To expect: their README reports FID 7.72 with guidance by a classifier (scale 4.0), which is not in here.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import guided_config


def get_config() -> ConfigDict:
    config = guided_config(512)
    config.model.conv_in_channels = 128  # the width of the first level, half of model.channels
    config.train.num_steps = 1_940_000
    config.sample.batch_size = 8
    return config.lock()
