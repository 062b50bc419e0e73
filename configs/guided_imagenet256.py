"""ImageNet 256x256 with classes, of Dhariwal and Nichol 2021 ("ADM"): 554 M parameters; without classes 553 M.

Command: python -m ddpm_jax.train --config=configs/guided_imagenet256.py --workdir=runs/guided_imagenet256
Without classes: --config.model.num_classes=0
Data: TFDS's imagenet2012, which must be prepared by hand.
Source: README of openai/guided-diffusion; the published checkpoints are 256x256_diffusion and 256x256_diffusion_uncond.
The original was trained in float16; here float32 is the default, and --config.model.dtype=bfloat16 changes it.
Batch size, learning rate, dropout and number of updates: table 11 of the paper.
Hardware and time: meant for many GPUs or TPU cores; not yet run.
Expected results: the paper reports FID 10.94, sFID 6.02, precision 0.69, recall 0.63 with 250 steps and no guidance;
4.59, 5.25, 0.82, 0.52 with classifier guidance of scale 1.0 (its tables 5 and 14; docs/classifier_guidance.md).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import guided_config


def get_config() -> ConfigDict:
    config = guided_config(256)
    config.train.num_steps = 1_980_000
    return config.lock()
