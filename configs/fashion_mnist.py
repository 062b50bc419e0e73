"""Fashion-MNIST, 28x28 grey, 1.5 M parameters: a real data set for a laptop.

Command: python -m ddpm_jax.train --config=configs/fashion_mnist.py --config.data.path=DIR --workdir=runs/fashion
Data: DIR holds the four original files (train-images-idx3-ubyte.gz and so on). Without data.path, TFDS is used.
Hardware and time: 2 CPU cores, about 50 minutes.
Expected results: docs/experiments.md.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs.base import get_config as base_config


def get_config() -> ConfigDict:
    config = base_config()
    with config.unlocked():
        config.data.name = "fashion_mnist"
        config.data.image_size = (28, 28)
        config.data.num_channels = 1
        config.data.flip = False  # shoes point to the left
        config.schedule.name = "cosine"
        config.diffusion.prediction = "v"  # for this and the fields below see docs/recipes.md
        config.unet.channels = 24
        config.unet.channel_mults = (1, 2, 4)
        config.unet.num_res_blocks = 1
        config.unet.attention_resolutions = (7,)
        config.unet.num_groups = 8
        config.unet.dropout = 0.0
        config.optim.learning_rate = 1e-3
        config.optim.warmup_steps = 0
        config.optim.warmup_share = 0.08
        config.optim.decay_share = 1.0
        config.optim.ema_decays = (0.999,)
        config.train.num_steps = 6000
        config.train.batch_size = 32
        config.train.checkpoint_every_steps = 1000
        config.train.sample_every_steps = 2000
        config.sample.sampler = "euler_ancestral"
        config.sample.num_sampler_steps = 50
        config.sample.preview_sampler = "euler_ancestral"
        config.sample.batch_size = 64
        config.eval.max_images = 512
    return config
