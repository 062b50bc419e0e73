"""The 1,797 scanned digits that scikit-learn ships: 8x8 grey, 0.7 M parameters, nothing to download.

Command: python -m ddpm_jax.train --config=configs/digits.py --workdir=runs/digits
Hardware and time: 2 CPU cores, about 6 minutes.
Expected results: docs/experiments.md.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs.base import get_config as base_config


def get_config() -> ConfigDict:
    config = base_config()
    with config.unlocked():
        config.data.name = "digits"
        config.data.image_size = (8, 8)
        config.data.num_channels = 1
        config.data.flip = False
        config.schedule.name = "cosine"
        config.diffusion.prediction = "v"  # for this and the fields below see docs/recipes.md
        config.unet.channels = 32
        config.unet.channel_mults = (1, 2)
        config.unet.num_res_blocks = 1
        config.unet.attention_resolutions = (4,)
        config.unet.num_groups = 8
        config.unet.dropout = 0.0
        config.optim.learning_rate = 2e-3
        config.optim.warmup_steps = 0
        config.optim.warmup_share = 0.08
        config.optim.decay_share = 1.0
        config.optim.ema_decays = (0.995,)
        config.train.num_steps = 2400
        config.train.batch_size = 64
        config.train.checkpoint_every_steps = 800
        config.train.sample_every_steps = 800
        config.sample.sampler = "euler_ancestral"
        config.sample.num_sampler_steps = 50
        config.sample.preview_sampler = "euler_ancestral"
    return config
