"""CelebA-HQ 256x256, 114 M parameters (Ho et al. 2020).

Command: python -m ddpm_jax.train --config=configs/celeba_hq_256.py --config.data.path=DIR --workdir=runs/celeba_hq
Data: a folder of the images (TFDS's celeb_a_hq must be prepared by hand and is no easier to get).
Hardware and time: meant for several GPUs or TPU cores; not yet run.
Expected results: the paper trains for 500,000 steps at batch size 64 (its appendix B) and reports samples but no FID.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs.base import get_config as base_config


def get_config() -> ConfigDict:
    config = base_config()
    with config.unlocked():
        config.data.name = "image_folder"
        config.data.eval_split = ""
        config.data.image_size = (256, 256)
        config.diffusion.variance = "fixed_small"
        config.unet.channel_mults = (1, 1, 2, 2, 4, 4)
        config.unet.dropout = 0.0
        config.optim.learning_rate = 2e-5
        config.train.num_steps = 500_000
        config.train.batch_size = 64
        config.sample.batch_size = 16
        config.sample.num_grid = 16
    return config
