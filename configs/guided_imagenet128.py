"""ImageNet 128x128 with labels of Dhariwal and Nichol 2021 ("ADM"): 422 M parameters, 4 heads of any width.

Command: python -m ddpm_jax.train --config=configs/guided_imagenet128.py --workdir=runs/guided_imagenet128
Data: TFDS's imagenet2012, which has to be prepared by hand.
Source: README of openai/guided-diffusion, whose checkpoint of it is 128x128_diffusion.
Trained in float16 there, in float32 here unless --config.model.dtype=bfloat16.
Batch size, rate and number of updates are not in that code: they are the paper's as far as we know, not checked
against it.
Hardware and time: meant for many GPUs or TPU cores; not yet run.
To expect: their README reports FID 2.97 with guidance by a classifier (scale 0.5), which is not in here.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import guided_config


def get_config() -> ConfigDict:
    config = guided_config(128)
    config.model.num_heads = 4
    config.model.head_channels = 0
    config.train.num_steps = 4_360_000
    return config.lock()
