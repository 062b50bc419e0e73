"""ImageNet 128x128 with classes, of Dhariwal and Nichol 2021 ("ADM"): 422 M parameters, 4 heads in every attention.

Command: python -m ddpm_jax.train --config=configs/guided_imagenet128.py --workdir=runs/guided_imagenet128
Data: TFDS's imagenet2012, which must be prepared by hand.
Source: README of openai/guided-diffusion; the published checkpoint is 128x128_diffusion.
The original was trained in float16; here float32 is the default, and --config.model.dtype=bfloat16 changes it.
Batch size, learning rate, dropout and number of updates: table 11 of the paper.
Hardware and time: meant for many GPUs or TPU cores; not yet run.
Expected results: the paper reports FID 5.91, sFID 5.09, precision 0.70, recall 0.65 with 250 steps and no guidance;
2.97, 5.09, 0.78, 0.59 with classifier guidance of scale 0.5 (its tables 5 and 14; docs/classifier_guidance.md).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import guided_config


def get_config() -> ConfigDict:
    config = guided_config(128)
    config.unet.num_heads = 4
    config.unet.head_channels = 0
    config.train.num_steps = 4_360_000
    return config.lock()
