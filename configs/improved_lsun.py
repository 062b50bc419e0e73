"""LSUN bedroom 256x256 of Nichol and Dhariwal 2021: the network of Ho et al. 2020, learned variance, 114 M parameters.

Command: python -m ddpm_jax.train --config=configs/improved_lsun.py --workdir=runs/improved_lsun
Source: README of openai/improved-diffusion. Published checkpoints: lsun_uncond_100M_1200K_bs128 (this config) and
lsun_uncond_100M_2400K_bs64 (add --config.optim.learning_rate=2e-5 --config.train.num_steps=2400000
--config.train.batch_size=64; the README's flags for it say batch size 128, its file name says 64).
Hardware and time: meant for several GPUs or TPU cores; not yet run.
Expected results: we know of no FID for it in the paper; for bedroom the same authors list FID 4.24, sFID 8.21,
precision 0.62, recall 0.46 in table 5 of Dhariwal and Nichol 2021.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import improved_config, unscaled


def get_config() -> ConfigDict:
    config = improved_config(256)
    config.data.name = "lsun/bedroom"
    config.data.eval_split = ""
    config.schedule.name = "linear"
    config.schedule.num_steps = 1000
    config.unet.num_res_blocks = 2
    config.unet.attention_resolutions = (16,)
    config.unet.num_heads = 1
    config.unet.scale_shift_norm = False
    config.train.num_steps = 1_200_000
    return unscaled(config).lock()
