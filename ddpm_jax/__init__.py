"""Denoising diffusion probabilistic models in JAX and Flax.

The pure core: a process, a network, a loss, a train step, a sampler's table. Whole runs from a config are in
`ddpm_jax.experiment.training`, data sets in `ddpm_jax.data`, checkpoints in `ddpm_jax.workdir.checkpoints`.
"""

from ddpm_jax.codecs.codec import Codec
from ddpm_jax.codecs.pixels import PixelCodec, to_model_scale, to_uint8
from ddpm_jax.data.batch import Batch
from ddpm_jax.diffusion.denoiser import Denoised, make_denoiser
from ddpm_jax.diffusion.forward_process import (
    eps_from_x_0,
    q_posterior_mean,
    q_sample,
    v_from_x_0,
    x_0_from_eps,
    x_0_from_mean,
    x_0_from_v,
)
from ddpm_jax.diffusion.guidance import Guidance, classifier_free_guidance, make_guidance
from ddpm_jax.diffusion.loss_weights import loss_weights
from ddpm_jax.diffusion.losses import make_loss_fn
from ddpm_jax.diffusion.ode_likelihood import ode_bits_per_dim
from ddpm_jax.diffusion.parameterisations import Parameterisation
from ddpm_jax.diffusion.process import Prediction, Process
from ddpm_jax.diffusion.rng import sample_keys, seed_keys
from ddpm_jax.diffusion.samplers import ddim_inversion_table, dpmpp_table, heun_table, plms_table, unipc_table
from ddpm_jax.diffusion.samplers.ancestral import ancestral_table
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.ddim import ddim_table
from ddpm_jax.diffusion.samplers.sampling_loop import edit_noise, initial_noise, p_sample_loop, sample_loop, watching
from ddpm_jax.diffusion.schedules import Schedule, make_schedule, rescale_zero_terminal_snr, schedule_from_betas
from ddpm_jax.diffusion.timestep_samplers import make_timestep_sampler
from ddpm_jax.diffusion.timestep_spacing import named_steps, respaced, spaced_steps
from ddpm_jax.diffusion.variational_bound import (
    bits_per_dim,
    discretised_gaussian_log_likelihood,
    normal_kl,
    prior_term,
    vlb_term,
    vlb_terms,
)
from ddpm_jax.models.parameters import init_params, num_params
from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.training.diffusion_objective import DiffusionObjective
from ddpm_jax.training.objective import Objective
from ddpm_jax.training.optimizer import make_ema_decay, make_ema_decays, make_learning_rate, make_optimizer
from ddpm_jax.training.train_state import TrainState, init_state
from ddpm_jax.training.train_step import make_train_step

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "Batch",
    "Codec",
    "Denoised",
    "DiffusionObjective",
    "Guidance",
    "Objective",
    "Parameterisation",
    "PixelCodec",
    "Prediction",
    "Process",
    "SamplerTable",
    "Schedule",
    "TrainState",
    "UNet",
    "UserError",
    "ancestral_table",
    "bits_per_dim",
    "classifier_free_guidance",
    "ddim_inversion_table",
    "ddim_table",
    "discretised_gaussian_log_likelihood",
    "dpmpp_table",
    "edit_noise",
    "eps_from_x_0",
    "heun_table",
    "init_params",
    "init_state",
    "initial_noise",
    "loss_weights",
    "make_denoiser",
    "make_ema_decay",
    "make_ema_decays",
    "make_guidance",
    "make_learning_rate",
    "make_loss_fn",
    "make_optimizer",
    "make_schedule",
    "make_timestep_sampler",
    "make_train_step",
    "named_steps",
    "normal_kl",
    "num_params",
    "ode_bits_per_dim",
    "p_sample_loop",
    "plms_table",
    "prior_term",
    "q_posterior_mean",
    "q_sample",
    "rescale_zero_terminal_snr",
    "respaced",
    "sample_keys",
    "schedule_from_betas",
    "seed_keys",
    "spaced_steps",
    "to_model_scale",
    "to_uint8",
    "unipc_table",
    "v_from_x_0",
    "vlb_term",
    "vlb_terms",
    "watching",
    "sample_loop",
    "x_0_from_eps",
    "x_0_from_mean",
    "x_0_from_v",
]
