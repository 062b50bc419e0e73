"""Faces from 16x16 to 128x128 by SR3 (Saharia et al. 2021): 561 M parameters.

Command: python -m ddpm_jax.train --config=configs/sr3_16to128.py --config.data.path=DIR --workdir=runs/sr3_faces
Then: python -m ddpm_jax.edit --workdir=runs/sr3_faces --what=super_resolve --images=small --out=large
Data: a folder of faces; the paper trains on all of FFHQ and measures on CelebA-HQ. Here 1 % is held out.
What is of the paper, and what differs: configs/_sr3.py. The paper gives 550 M parameters; its residual blocks are not
described in full.
For one GPU, the sizes of the widely used PyTorch reimplementation, 99.5 M: --config.unet.channels=64
--config.unet.num_res_blocks=2 --config.unet.resample_in_blocks=false --config.train.batch_size=4
Hardware and time: meant for several GPUs or TPU cores; not run here.
Expected results: the paper reports PSNR 23.04 and SSIM 0.65 on CelebA-HQ (its table 1); the README of that
reimplementation 23.26 and 0.675.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._sr3 import sr3_config


def get_config() -> ConfigDict:
    config = sr3_config(128, 8)
    config.data.name = "image_folder"
    config.data.split = "train[:99%]"
    config.data.eval_split = "train[99%:]"
    config.unet.channel_mults = (1, 2, 4, 8, 8)
    config.unet.dropout = 0.2
    return config.lock()
