"""Fashion-MNIST at 7x7, the first stage of a cascade: the means of blocks of 4x4 pixels, 0.2 M parameters.

Command: python -m ddpm_jax.train --config=configs/fashion_7.py --config.data.path=DIR --workdir=runs/7
Then, with a run of fashion_7to28: python -m ddpm_jax.sample --cascade=runs/7,runs/7to28
Data: as for configs/fashion_mnist.py.
Hardware and time: 2 CPU cores, about 9 minutes.
Expected results: docs/cascades.md.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs import fashion_mnist


def get_config() -> ConfigDict:
    config = fashion_mnist.get_config()
    config.data.image_size = (7, 7)
    config.data.area_factor = 4
    config.unet.channels = 32
    config.unet.channel_mults = (1,)
    config.unet.num_res_blocks = 2
    config.unet.attention_resolutions = (7,)
    config.optim.learning_rate = 2e-3
    config.train.num_steps = 4000
    config.train.batch_size = 64
    config.sample.batch_size = 256
    return config
