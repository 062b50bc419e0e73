"""Colours for grey photographs, 32x32: an image-conditional network (Palette), 1.5 M parameters.

Command: python -m ddpm_jax.train --config=configs/palette_clothing.py --config.data.path=DIR --workdir=runs/colours
Then: python -m ddpm_jax.edit --workdir=runs/colours --what=colourise --images=grey/ --out=coloured
Data: any folder of colour images, such as the CC0 photographs of alexeygrigorev/clothing-dataset-small, from which the
results in docs/image_conditions.md come; 5 % of them are held out.
Hardware and time: 2 CPU cores, about half an hour for the 2,000 updates.
Expected results: docs/image_conditions.md, for 1,000 updates. Not yet run at full length.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs import image_folder_small


def get_config() -> ConfigDict:
    config = image_folder_small.get_config()
    config.condition.task = "colourise"
    config.diffusion.network_input = "alpha_bar"
    config.unet.time_scale = 1000.0
    config.train.num_steps = 2000
    config.train.checkpoint_every_steps = 250
    config.train.sample_every_steps = 0
    return config
