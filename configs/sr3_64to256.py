"""ImageNet from 64x64 to 256x256 by SR3 (Saharia et al. 2021), without classes: 617 M parameters.

Command: python -m ddpm_jax.train --config=configs/sr3_64to256.py --workdir=runs/sr3_64to256
Then: python -m ddpm_jax.edit --workdir=runs/sr3_64to256 --what=super_resolve --images=small --out=large
Data: TFDS's imagenet2012, which must be prepared by hand. The paper leaves out images with a side below 256; here all
are used.
What is of the paper, and what differs: configs/_sr3.py. The paper gives 625 M parameters; its residual blocks are not
described in full. It blurs small images in training; how many and how much it does not say: here half
of them, in the range of configs/base.py.
Hardware and time: meant for many GPUs or TPU cores; not run here.
Expected results: the paper reports FID 5.2, PSNR 26.4 and SSIM 0.762 for small images of the validation set (its table
2); FID 11.3 for samples of an improved DDPM with classes (improved_imagenet64_cond) enlarged by it, and 13.1 without
blur (its tables 4 and 5).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._sr3 import sr3_config


def get_config() -> ConfigDict:
    config = sr3_config(256, 4)
    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.condition.augmentation = "blur"
    config.unet.channel_mults = (1, 2, 4, 4, 8, 8)
    return config.lock()
