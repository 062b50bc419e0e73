"""Settings shared by the recipes of OpenAI's two code bases, improved-diffusion and guided-diffusion.

Both have a learned variance, Adam with a constant learning rate from the first update (AdamW with weight decay 0), no
clipping, an EMA that starts at the initial parameters, and 250 sampler steps as in the commands of their READMEs.
Differs: their zero layers are exactly zero and the others have PyTorch's initialisers; ours follow Ho et al. 2020.
"""

from ml_collections import ConfigDict

from ddpm_jax.configs.base import get_config as base_config

# Image side -> widths of the levels as multiples of unet.channels. Where both code bases have a size, they agree.
CHANNEL_MULTS = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}


def _shared_config(side: int) -> ConfigDict:
    """Unlocked."""
    config = base_config().unlock()
    config.data.image_size = (side, side)
    config.diffusion.loss = "hybrid"
    config.diffusion.variance = "learned_range"
    config.unet.channel_mults = CHANNEL_MULTS[side]
    config.unet.dropout = 0.0
    config.unet.norm_eps = 1e-5
    config.unet.scale_shift_norm = True
    config.unet.embedding_order = "cos_sin"
    config.unet.embedding_spacing = "half"
    config.optim.learning_rate = 1e-4
    config.optim.warmup_steps = 0
    config.optim.grad_clip = 0.0
    config.optim.ema_start = "constant"
    config.sample.respacing = "250"
    if side >= 128:
        config.sample.batch_size = 16
        config.sample.num_grid = 16
    return config


def improved_config(side: int) -> ConfigDict:
    """Nichol and Dhariwal 2021, unlocked: L_hybrid, cosine, T=4000, 128 channels, 3 blocks per level; no flips."""
    config = _shared_config(side)
    config.data.flip = False
    config.schedule.name = "cosine"
    config.schedule.num_steps = 4000
    config.unet.num_res_blocks = 3
    config.unet.attention_resolutions = (16, 8)
    config.unet.num_heads = 4
    config.unet.down_padding = "both"
    config.unet.time_scale = 1000 / 4000  # rescale_timesteps; on unless a recipe turns it off
    return config


def unscaled(config: ConfigDict) -> ConfigDict:
    """`rescale_timesteps` and `rescale_learned_sigmas` off: unscaled t; the mean of L_vlb over t, not sum / 1000."""
    config.unet.time_scale = 1.0
    config.diffusion.vlb_lambda = 1 / config.schedule.num_steps
    return config


def with_importance_sampled_vlb(config: ConfigDict) -> ConfigDict:
    """The bound as the only loss; t drawn by the second moment of its terms (Nichol and Dhariwal 2021, section 3.3)."""
    config.diffusion.loss = "rescaled_vlb"
    config.train.time_sampler = "loss_second_moment"
    return config


def as_upsampler(config: ConfigDict, factor: int) -> ConfigDict:
    """Of both codes' `super_res_train.py`: the network is shown the small image, bilinearly enlarged, without noise.

    Differs: small images are rounded to the 256 levels in training too, as files are; there only in sampling.
    """
    config.condition.task = "super_resolve"
    config.condition.factor = factor
    config.condition.upsampling = "bilinear"
    config.condition.augmentation = "none"
    return config


def guided_config(side: int) -> ConfigDict:
    """Dhariwal and Nichol 2021, unlocked: ImageNet with classes, linear, T=1000, 256 channels, 2 blocks per level."""
    config = unscaled(_shared_config(side))
    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.unet.channels = 256
    config.unet.attention_resolutions = (32, 16, 8)
    config.unet.head_channels = 64
    config.unet.resample_in_blocks = True
    config.model.num_classes = 1000
    config.train.batch_size = 256
    return config
