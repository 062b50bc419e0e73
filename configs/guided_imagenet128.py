"""ImageNet 128x128 with labels of Dhariwal and Nichol 2021 ("ADM"): 422 M parameters, 4 heads of any width.

Command: python -m ddpm_jax.train --config=configs/guided_imagenet128.py --workdir=runs/guided_imagenet128
Data: TFDS's imagenet2012, which has to be prepared by hand.
Source: README of openai/guided-diffusion, whose checkpoint of it is 128x128_diffusion.
Trained in float16 there, in float32 here unless --config.model.dtype=bfloat16.
Batch size, rate, dropout and number of updates: table 11 of the paper.
Hardware and time: meant for many GPUs or TPU cores; not yet run.
To expect: the paper reports FID 5.91, sFID 5.09, precision 0.70, recall 0.65 with 250 steps and no guidance; 2.97,
5.09, 0.78, 0.59 with guidance by a classifier, scale 0.5, which is not in here (its tables 5 and 14).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import guided_config


def get_config() -> ConfigDict:
    config = guided_config(128)
    config.unet.num_heads = 4
    config.unet.head_channels = 0
    config.train.num_steps = 4_360_000
    return config.lock()
