"""Your own images from 64x64 to 256x256 RGB, by a network like ADM's upsampler with half its width: 74.9 M parameters.

Command: python -m ddpm_jax.train --config=configs/image_folder_64to256.py --config.data.path=DIR --workdir=runs/64to256
Then: python -m ddpm_jax.edit --workdir=runs/64to256 --what=super_resolve --images=small --out=large
Data: a folder of images of at least 256x256, resized to cover that and centre-cropped; 5 % of them are held out. Half
of the small images are blurred in training, as in SR3 and CDM, so that not only exact means of blocks are taken well.
For images of another size: --config.data.image_size=HEIGHT,WIDTH and --config.condition.factor.
Hardware and time: one GPU; not run here. Less memory: --config.model.remat=true, --config.model.dtype=bfloat16 or
--config.train.grad_accum_steps=4.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs import image_folder
from ddpm_jax.configs._openai import CHANNEL_MULTS


def get_config() -> ConfigDict:
    config = image_folder.get_config()
    with config.unlocked():
        config.data.image_size = (256, 256)
        config.condition.task = "super_resolve"
        config.condition.factor = 4
        config.condition.augmentation = "blur"
        config.diffusion.loss = "hybrid"
        config.diffusion.variance = "learned_range"
        config.unet.channel_mults = CHANNEL_MULTS[256]
        config.unet.attention_resolutions = (32, 16)
        config.unet.head_channels = 32
        config.unet.scale_shift_norm = True
        config.unet.resample_in_blocks = True
        config.unet.dropout = 0.0
        config.optim.ema_decays = (0.9999,)
        config.train.num_steps = 500_000
        config.train.batch_size = 16
        config.train.checkpoint_every_steps = 5000
        config.train.sample_every_steps = 10_000
        config.sample.batch_size = 16
        config.sample.num_grid = 16
        config.eval.batch_size = 16
    return config
