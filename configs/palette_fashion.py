"""Fashion-MNIST with a hole: an image-conditional network that fills it (Palette), 1.5 M parameters.

Command: python -m ddpm_jax.train --config=configs/palette_fashion.py --config.data.path=DIR --workdir=runs/palette
Then: python -m ddpm_jax.edit --workdir=runs/palette --what=inpaint --images=photo.png --hole=centre --out=filled
Other sides instead of a hole: --config.condition.task=uncrop, and edit --what=outpaint.
Data: as for configs/fashion_mnist.py.
Hardware and time: 2 CPU cores, about 27 minutes for the 2,500 updates at 49 images/s; 63 minutes were measured beside
other programs.
Expected results: the picture in docs/edit_gallery.md; eval_loss 0.132.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs import fashion_mnist


def get_config() -> ConfigDict:
    config = fashion_mnist.get_config()
    config.condition.task = "inpaint"
    config.diffusion.network_input = "alpha_bar"
    config.unet.time_scale = 1000.0
    config.diffusion.loss_region = "hole"
    config.train.num_steps = 2500
    config.train.checkpoint_every_steps = 500
    config.train.sample_every_steps = 0
    return config
