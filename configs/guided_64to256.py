"""ImageNet from 64x64 to 256x256 with classes, the upsampler of Dhariwal and Nichol 2021 ("ADM-U"): 312 M parameters.

Command: python -m ddpm_jax.train --config=configs/guided_64to256.py --workdir=runs/guided_64to256
Then: python -m ddpm_jax.edit --workdir=runs/guided_64to256 --what=super_resolve --images=small --classes=207 \\
--out=large
Data: TFDS's imagenet2012, which must be prepared by hand; the 64x64 images are made of it in training.
Source: README of openai/guided-diffusion; the published checkpoint is 64_256_upsampler.
The original was trained in float16; here float32 is the default, and --config.model.dtype=bfloat16 changes it.
Batch size, learning rate, dropout and number of updates: table 13 of the paper.
Hardware and time: meant for many GPUs or TPU cores; not run here.
Expected results: the paper reports, for samples of guided_imagenet64 enlarged by it, FID 7.49, sFID 5.13, precision
0.72, recall 0.63; with classifier guidance at 64x64 3.94, 6.14, 0.83, 0.53 (its table 6). 250 steps in both stages.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import as_upsampler, guided_config


def get_config() -> ConfigDict:
    config = as_upsampler(guided_config(256), 4)
    config.unet.channels = 192
    config.unet.head_channels = 0
    config.unet.num_heads = 4
    config.train.num_steps = 500_000
    return config.lock()
