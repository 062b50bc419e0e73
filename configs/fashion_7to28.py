"""Fashion-MNIST from 7x7 to 28x28: super-resolution (SR3) with noise-conditioning augmentation (CDM), 1.6 M parameters.

Command: python -m ddpm_jax.train --config=configs/fashion_7to28.py --config.data.path=DIR --workdir=runs/7to28
Then: python -m ddpm_jax.edit --workdir=runs/7to28 --what=super_resolve --images=small/ --out=large
Data: as for configs/fashion_mnist.py. The 7x7 images are the means of blocks of 4x4 pixels, made in training.
Hardware and time: 2 CPU cores, about 20 minutes.
Expected results: docs/super_resolution.md, docs/cascades.md.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs import fashion_mnist


def get_config() -> ConfigDict:
    config = fashion_mnist.get_config()
    config.condition.task = "super_resolve"
    config.condition.factor = 4
    config.condition.augmentation = "noise"
    config.condition.max_level = 250  # of T = 1000: alpha-bar 0.85
    config.diffusion.network_input = "alpha_bar"
    config.unet.time_scale = 1000.0
    config.train.num_steps = 2000
    config.train.checkpoint_every_steps = 500
    config.train.sample_every_steps = 0
    return config
