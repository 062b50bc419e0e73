"""ImageNet 64x64 with classes, of Nichol and Dhariwal 2021, L_hybrid: 273 M parameters, cosine schedule, T=4000.

Command: python -m ddpm_jax.train --config=configs/improved_imagenet64_cond.py --workdir=runs/improved_imagenet64_cond
Data: TFDS's imagenet2012, which must be prepared by hand.
Source: README of openai/improved-diffusion; the published checkpoint is imagenet64_cond_270M_250K.
Hardware and time: meant for many GPUs or TPU cores (batch size 2048); not yet run.
Expected results: FID 2.92 with 250 sampling steps, as the same authors list it for this model in table 5 of Dhariwal
and Nichol 2021 (which also gives sFID 3.79, precision 0.74, recall 0.62).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import improved_config, unscaled


def get_config() -> ConfigDict:
    config = unscaled(improved_config(64))
    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.unet.channels = 192
    config.model.num_classes = 1000
    config.optim.learning_rate = 3e-4
    config.train.num_steps = 250_000
    config.train.batch_size = 2048
    return config.lock()
