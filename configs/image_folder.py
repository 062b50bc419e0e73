"""Your own images, 64x64 RGB, from a folder with files of any size and format: 49.6 M parameters.

Command: python -m ddpm_jax.train --config=configs/image_folder.py --config.data.path=DIR --workdir=runs/mine
Data: images are resized to cover image_size and centre-cropped; 5 % of them are held out.
Hardware and time: one GPU; not yet run at full length.
For a CPU: configs/image_folder_small.py.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs.base import get_config as base_config


def get_config() -> ConfigDict:
    config = base_config()
    with config.unlocked():
        config.data.name = "image_folder"
        config.data.split = "train[:95%]"
        config.data.eval_split = "train[95%:]"
        config.data.image_size = (64, 64)
        config.unet.channels = 96
        config.unet.channel_mults = (1, 2, 3, 4)
        config.unet.attention_resolutions = (16, 8)
        config.optim.learning_rate = 1e-4
        config.optim.warmup_steps = 1000
        config.optim.ema_decays = (0.9995,)
        config.train.num_steps = 200_000
        config.train.batch_size = 64
        config.train.checkpoint_every_steps = 2000
        config.train.sample_every_steps = 2000
        config.sample.sampler = "euler_ancestral"
        config.sample.num_sampler_steps = 50
        config.sample.batch_size = 64
    return config
