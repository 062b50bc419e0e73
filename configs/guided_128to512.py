"""ImageNet from 128x128 to 512x512 with classes, the upsampler of Dhariwal and Nichol 2021 ("ADM-U"): 309 M parameters.

Command: python -m ddpm_jax.train --config=configs/guided_128to512.py --workdir=runs/guided_128to512
Then: python -m ddpm_jax.edit --workdir=runs/guided_128to512 --what=super_resolve --images=small --classes=207 \\
--out=large
Data: TFDS's imagenet2012, which must be prepared by hand; the 128x128 images are made of it in training.
Source: README of openai/guided-diffusion; the published checkpoint is 128_512_upsampler. Its levels are those of
guided_64to256, and not those of guided_imagenet512: the lowest is 16x16 (footnote of table 13 of the paper).
The original was trained in float16; here float32 is the default, and --config.model.dtype=bfloat16 changes it.
Batch size, learning rate, dropout and number of updates: table 13 of the paper.
Hardware and time: meant for many GPUs or TPU cores; not run here.
Expected results: the paper reports, for samples at 128x128 enlarged by it, FID 9.96, sFID 5.62, precision 0.75, recall
0.64; with classifier guidance at 128x128 3.85, 5.86, 0.84, 0.53 (its table 6). 250 steps in both stages.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import CHANNEL_MULTS, as_upsampler, guided_config


def get_config() -> ConfigDict:
    config = as_upsampler(guided_config(512), 4)
    config.unet.channels = 192
    config.unet.channel_mults = CHANNEL_MULTS[256]
    config.unet.attention_resolutions = (32, 16)
    config.train.num_steps = 1_050_000
    config.sample.batch_size = 8
    return config.lock()
