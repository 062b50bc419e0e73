"""Your own images, 32x32 RGB, on a CPU: the recipe of fashion_mnist for a folder, 1.5 M parameters.

Command: python -m ddpm_jax.train --config=configs/image_folder_small.py --config.data.path=DIR --workdir=runs/small
Data: images are resized to cover image_size and centre-cropped; 5 % of them are held out. Half of the training images
are mirrored at random: give --config.data.flip=false if a mirrored image is less likely than the image itself.
Hardware and time: 2 CPU cores, about an hour for the 6,000 updates; not yet run at full length.
For a first look in about ten minutes: --config.train.num_steps=600. The learning rate schedule adapts to that length.
For a GPU: configs/image_folder.py.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs import fashion_mnist


def get_config() -> ConfigDict:
    config = fashion_mnist.get_config()
    config.data.name = "image_folder"
    config.data.split = "train[:95%]"
    config.data.eval_split = "train[95%:]"
    config.data.image_size = (32, 32)
    config.data.num_channels = 3
    config.data.flip = True
    config.unet.attention_resolutions = (8,)
    # An update takes half a second to a second.
    config.train.log_every_steps = 20
    config.train.checkpoint_every_steps = 250
    return config
