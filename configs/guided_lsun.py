"""LSUN 256x256 of Dhariwal and Nichol 2021 ("ADM"): bedroom, cat or horse without classes, 553 M parameters.

Command: python -m ddpm_jax.train --config=configs/guided_lsun.py --config.data.name=lsun/horse --workdir=runs/horse
with data.name lsun/bedroom, lsun/cat or lsun/horse; or data.name=image_folder and --config.data.path=DIR.
Source: README of openai/guided-diffusion; the published checkpoints are lsun_bedroom, lsun_cat, lsun_horse and, with
--config.unet.dropout=0, lsun_horse_nodropout. Their best samples take all 1000 steps: --config.sample.respacing=''.
The original was trained in float16; here float32 is the default, and --config.model.dtype=bfloat16 changes it.
Batch size, learning rate and dropout: table 11 of the paper, which also lists the number of updates: bedroom 500,000
(the default here), horse 250,000, cat 200,000.
Hardware and time: meant for many GPUs or TPU cores; not yet run.
Expected results: the paper reports FID 1.90, sFID 5.59, precision 0.66, recall 0.51 (bedroom), 5.57, 6.69, 0.63, 0.52
(cat) and 2.57, 6.81, 0.71, 0.55 (horse) with 1,000 sampling steps (its table 5).
"""

from ml_collections import ConfigDict

from ddpm_jax.configs._openai import guided_config


def get_config() -> ConfigDict:
    config = guided_config(256)
    config.data.name = "lsun/bedroom"
    config.data.eval_split = ""
    config.model.num_classes = 0
    config.unet.dropout = 0.1
    config.train.num_steps = 500_000
    return config.lock()
