"""Settings shared by the recipes of SR3 (Saharia et al. 2021, "Image super-resolution via iterative refinement").

From the paper: the widths, blocks and dropout (appendix A, section 4), T = 2000, Adam with 10,000 updates of warm-up to
1e-4, batch size 256, 1,000,000 updates, bicubic enlargement, a variance of beta, the L1 loss (its table 5 has 11.3 for
L1 and 11.8 for L2 as FID of ImageNet; for faces it does not say which).
From the widely used reimplementation, as the paper does not say: beta from 1e-6 to 1e-2, attention at 16x16 with one
head. Ours: the clip of the gradient and the EMA are those of Ho et al. 2020.
Differs: alpha-bar is that of a whole step, there it is drawn between two steps; skip connections are not scaled by
1/sqrt(2); small images are means of blocks, there they are shrunk by a bicubic filter; samples take all 2000 steps,
there at most 100 of a schedule that was searched and is not listed.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs.base import get_config as base_config


def sr3_config(side: int, factor: int) -> ConfigDict:
    """Unlocked."""
    config = base_config().unlock()
    config.data.image_size = (side, side)
    config.condition.task = "super_resolve"
    config.condition.factor = factor
    config.condition.upsampling = "bicubic"
    config.schedule.num_steps = 2000
    config.schedule.beta_start = 2e-6  # "linear" scales both ends by 1000/T: 1e-6 and 1e-2
    config.schedule.beta_end = 2e-2
    config.diffusion.loss = "l1"
    config.diffusion.network_input = "alpha_bar"
    config.unet.time_scale = 1000.0
    config.unet.channels = 128
    config.unet.num_res_blocks = 3
    config.unet.attention_resolutions = (16,)
    config.unet.resample_in_blocks = True
    config.unet.dropout = 0.0
    config.optim.learning_rate = 1e-4
    config.optim.warmup_steps = 10_000
    config.train.num_steps = 1_000_000
    config.train.batch_size = 256
    config.sample.batch_size = 16
    config.sample.num_grid = 16
    return config
