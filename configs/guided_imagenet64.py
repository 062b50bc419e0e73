"""ImageNet 64x64 with classes, of Dhariwal and Nichol 2021 ("ADM"): 296 M parameters, cosine schedule, T=1000.

Command: python -m ddpm_jax.train --config=configs/guided_imagenet64.py --workdir=runs/guided_imagenet64
Data: TFDS's imagenet2012, which must be prepared by hand.
Source: README of openai/guided-diffusion; the published checkpoint is 64x64_diffusion.
The original was trained in float16; here float32 is the default, and --config.model.dtype=bfloat16 changes it.
Batch size, learning rate, dropout and number of updates: table 11 of the paper.
Hardware and time: meant for many GPUs or TPU cores; not yet run.
Expected results: the paper reports FID 2.07, sFID 4.29, precision 0.74, recall 0.63, without guidance, with 250 steps
(its table 5).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import guided_config


def get_config() -> ConfigDict:
    config = guided_config(64)
    config.schedule.name = "cosine"
    config.unet.channels = 192
    config.unet.num_res_blocks = 3
    config.unet.dropout = 0.1
    config.optim.learning_rate = 3e-4
    config.train.num_steps = 540_000
    config.train.batch_size = 2048
    return config.lock()
