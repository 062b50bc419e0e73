"""What the stages of cascade_imagenet_* share: the pipeline of cascaded diffusion models (CDM, Ho et al. 2021).

From the paper: a base at 32x32 and super-resolution to 64x64, and from there to 128x128 or 256x256, all with classes.
Noise is added to the small images of the stage to 64x64, of a level that is drawn and told to the network. Half of
those of the later stages are blurred.
Ours: networks, schedules, learning rates, batch sizes and updates, which are those of Dhariwal and Nichol 2021
(configs/_openai.py) and not those of the paper; the highest level of the noise; the blur is that of configs/base.py.
Expected results: the paper reports FID 1.48 at 64x64, 3.52 at 128x128 and 4.88 at 256x256 of its whole pipelines, with
its own networks, which are not these.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import CHANNEL_MULTS, as_upsampler, guided_config

LARGEST = 256  # the images of all stages are means of blocks of images of this size, so that the stages fit each other


def low_resolution_config(side: int) -> ConfigDict:
    """Up to 64x64, unlocked: the network and training of guided_imagenet64."""
    config = guided_config(side)
    config.data.area_factor = LARGEST // side
    config.schedule.name = "cosine"
    config.unet.channels = 192
    config.unet.num_res_blocks = 3
    config.unet.dropout = 0.1
    config.optim.learning_rate = 3e-4
    config.train.num_steps = 540_000
    config.train.batch_size = 2048
    return config


def blurred_upsampler_config(side: int, factor: int) -> ConfigDict:
    """Above 64x64, unlocked: the network and training of guided_64to256, with blurred small images."""
    config = as_upsampler(guided_config(side), factor)
    config.data.area_factor = LARGEST // side
    config.condition.augmentation = "blur"
    config.unet.channels = 192
    config.unet.channel_mults = CHANNEL_MULTS[side]
    config.train.num_steps = 500_000
    return config
