"""ImageNet 256x256 with labels of Dhariwal and Nichol 2021 ("ADM"): 554 M parameters; without labels 553 M.

Command: python -m ddpm_jax.train --config=configs/guided_imagenet256.py --workdir=runs/guided_imagenet256
Without labels: --config.model.num_classes=0
Data: TFDS's imagenet2012, which has to be prepared by hand.
Source: README of openai/guided-diffusion, whose checkpoints of it are 256x256_diffusion and 256x256_diffusion_uncond.
Trained in float16 there, in float32 here unless --config.model.dtype=bfloat16.
Batch size, rate, dropout and number of updates: table 11 of the paper.
Hardware and time: meant for many GPUs or TPU cores; not yet run.
To expect: the paper reports FID 10.94, sFID 6.02, precision 0.69, recall 0.63 with 250 steps and no guidance; 4.59,
5.25, 0.82, 0.52 with guidance by a classifier, scale 1.0, which is not in here (its tables 5 and 14).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import guided_config


def get_config() -> ConfigDict:
    config = guided_config(256)
    config.train.num_steps = 1_980_000
    return config.lock()
