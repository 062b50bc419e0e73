"""ImageNet from 64x64 to 256x256 with classes, of Nichol and Dhariwal 2021, L_hybrid: 280 M parameters, linear, T=4000.

Command: python -m ddpm_jax.train --config=configs/improved_64to256.py --workdir=runs/improved_64to256
Then: python -m ddpm_jax.edit --workdir=runs/improved_64to256 --what=super_resolve --images=small --classes=207 \\
--out=large
Data: TFDS's imagenet2012, which must be prepared by hand; the 64x64 images are made of it in training.
Source: README of openai/improved-diffusion; the published checkpoint is upsample_cond_500K.
Hardware and time: meant for many GPUs or TPU cores; not run here.
Expected results: FID 12.26 for samples of improved_imagenet64_cond enlarged by it, as the same authors list it in table
5 of Dhariwal and Nichol 2021 (which also gives sFID 5.42, precision 0.70, recall 0.62).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import as_upsampler, improved_config, unscaled


def get_config() -> ConfigDict:
    config = unscaled(as_upsampler(improved_config(256), 4))
    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.schedule.name = "linear"
    config.unet.channels = 192
    config.unet.num_res_blocks = 2
    config.model.num_classes = 1000
    config.optim.learning_rate = 3e-4
    config.train.num_steps = 500_000
    config.train.batch_size = 256
    return config.lock()
