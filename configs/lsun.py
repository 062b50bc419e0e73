"""LSUN 256x256, 114 M parameters (Ho et al. 2020): bedroom, church or cat.

Command: python -m ddpm_jax.train --config=configs/lsun.py --config.data.name=lsun/church_outdoor --workdir=runs/church
with data.name lsun/bedroom, lsun/church_outdoor or lsun/cat; or data.name=image_folder and --config.data.path=DIR.
Steps in the paper: bedroom 2,400,000, church 1,200,000, cat 1,800,000; the default here is that of church.
Flips: the commands of the authors' code mirror church and bedroom but not cat; --noconfig.data.flip turns them off.
Hardware and time: meant for several GPUs or TPU cores; not yet run.
Expected results: the paper reports FID 6.36 (bedroom), 7.89 (church) and 19.75 (cat). Its FID of 4.90 for bedroom is
that of a larger network with 256 M parameters (its table 3).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs.celeba_hq_256 import get_config as base_config


def get_config() -> ConfigDict:
    config = base_config()
    with config.unlocked():
        config.data.name = "lsun/church_outdoor"
        config.train.num_steps = 1_200_000
    return config
