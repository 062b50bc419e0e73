"""ImageNet 64x64 with labels of Dhariwal and Nichol 2021 ("ADM"): 296 M parameters, cosine schedule, T=1000.

Command: python -m ddpm_jax.train --config=configs/guided_imagenet64.py --workdir=runs/guided_imagenet64
Data: TFDS's imagenet2012, which has to be prepared by hand.
Source: README of openai/guided-diffusion, whose checkpoint of it is 64x64_diffusion.
Trained in float16 there, in float32 here unless --config.model.dtype=bfloat16.
Batch size, rate and number of updates are not in that code: they are the paper's as far as we know, not checked
against it.
Hardware and time: meant for many GPUs or TPU cores; not yet run.
To expect: their README reports FID 2.07 with guidance by a classifier (scale 1.0), which is not in here.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import guided_config


def get_config() -> ConfigDict:
    config = guided_config(64)
    config.schedule.name = "cosine"
    config.model.channels = 192
    config.model.num_res_blocks = 3
    config.model.dropout = 0.1
    config.optim.learning_rate = 3e-4
    config.train.num_steps = 540_000
    config.train.batch_size = 2048
    return config.lock()
