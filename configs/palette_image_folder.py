"""Your own images, 64x64 RGB, with a hole to fill, as Palette (Saharia et al. 2022): 57.9 M parameters.

Command: python -m ddpm_jax.train --config=configs/palette_image_folder.py --config.data.path=DIR --workdir=runs/mine
Other tasks: --config.condition.task=uncrop, colourise, jpeg or deblur; all but uncrop need
--config.diffusion.loss_region=image, as they have no hole.
At 256x256: --config.data.image_size=256,256 --config.unet.attention_resolutions=32, --config.train.batch_size=16.
Data: images are resized to cover image_size and centre-cropped; 5 % of them are held out.
Hardware and time: one GPU; not yet run at full length.
The network has the sizes of the widely used PyTorch reimplementation: 64 channels times 1, 2, 4, 8, attention with 32
channels a head.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs import image_folder


def get_config() -> ConfigDict:
    config = image_folder.get_config()
    config.condition.task = "inpaint"
    config.diffusion.loss_region = "hole"
    config.diffusion.network_input = "alpha_bar"
    config.unet.time_scale = 1000.0
    config.unet.channels = 64
    config.unet.channel_mults = (1, 2, 4, 8)
    config.unet.attention_resolutions = (16,)
    config.unet.head_channels = 32
    config.unet.dropout = 0.2
    config.optim.learning_rate = 5e-5
    config.optim.ema_decays = (0.9999,)
    return config
