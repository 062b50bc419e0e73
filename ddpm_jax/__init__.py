"""Denoising diffusion probabilistic models in JAX and Flax.

Whole runs: `load_config`, `train_model`, `open_run`. The pure core that they are made of: a process, a network, a loss,
a train step, a sampler's table. Names that begin with `make_` build something. What is in `__all__` is public.
"""

import importlib
from typing import TYPE_CHECKING

from ddpm_jax.codecs.codec import Codec
from ddpm_jax.codecs.pixels import PixelCodec, to_model_scale, to_uint8
from ddpm_jax.data.batch import Batch
from ddpm_jax.diffusion.denoiser import Denoised, make_denoiser, without_carry
from ddpm_jax.diffusion.edits import (
    known_region,
    make_mask,
    noised_start,
    partial_table,
    posterior_sampling,
    range_null_projection,
    repaint_table,
)
from ddpm_jax.diffusion.forward_process import (
    eps_from_x_0,
    q_posterior_mean,
    q_sample,
    v_from_x_0,
    x_0_from_eps,
    x_0_from_mean,
    x_0_from_v,
)
from ddpm_jax.diffusion.guidance import Guidance, autoguidance, classifier_free_guidance, make_guidance
from ddpm_jax.diffusion.loss_weights import loss_weights
from ddpm_jax.diffusion.losses import make_loss_fn
from ddpm_jax.diffusion.ode_likelihood import ode_bits_per_dim
from ddpm_jax.diffusion.parameterisations import Parameterisation
from ddpm_jax.diffusion.process import Prediction, Process
from ddpm_jax.diffusion.projected_guidance import Projection, make_projection
from ddpm_jax.diffusion.rng import sample_keys, seed_keys
from ddpm_jax.diffusion.samplers import ddim_inversion_table, dpmpp_table, heun_table, plms_table, unipc_table
from ddpm_jax.diffusion.samplers.ancestral import ancestral_table
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.ddim import ddim_table
from ddpm_jax.diffusion.samplers.sampling_loop import edit_noise, initial_noise, p_sample_loop, sample_loop, watching
from ddpm_jax.diffusion.schedules import Schedule, make_schedule, rescale_zero_terminal_snr, schedule_from_betas
from ddpm_jax.diffusion.timestep_samplers import make_timestep_sampler
from ddpm_jax.diffusion.timestep_spacing import named_steps, respaced, spaced_steps
from ddpm_jax.diffusion.variational_bound import bits_per_dim
from ddpm_jax.models.parameters import init_params, num_params
from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.training.diffusion_objective import DiffusionObjective
from ddpm_jax.training.objective import Objective
from ddpm_jax.training.optimizer import make_ema_decay, make_ema_decays, make_learning_rate, make_optimizer
from ddpm_jax.training.post_hoc_ema import post_hoc_weights
from ddpm_jax.training.power_averages import make_power_averages
from ddpm_jax.training.train_state import TrainState, init_state
from ddpm_jax.training.train_step import make_train_step

if TYPE_CHECKING:
    from ddpm_jax.cascades.cascade import sample_cascade
    from ddpm_jax.data import BatchLoader, batch_indices, make_source
    from ddpm_jax.editing.edit_images import edit_images
    from ddpm_jax.experiment.build import build_experiment
    from ddpm_jax.experiment.config_files import load_config
    from ddpm_jax.experiment.edit import Edit
    from ddpm_jax.experiment.open_run import open_run
    from ddpm_jax.experiment.trained_run import TrainedRun
    from ddpm_jax.experiment.training import train_model
    from ddpm_jax.runtime.devices import make_mesh
    from ddpm_jax.runtime.image_files import image_grid, save_grid
    from ddpm_jax.workdir.checkpoints import Checkpoints

__version__ = "0.1.0"

# What reads data, configs and checkpoints is imported at its first use, so that `import ddpm_jax` stays quick.
_LATER = {
    "BatchLoader": "ddpm_jax.data",
    "Checkpoints": "ddpm_jax.workdir.checkpoints",
    "Edit": "ddpm_jax.experiment.edit",
    "TrainedRun": "ddpm_jax.experiment.trained_run",
    "batch_indices": "ddpm_jax.data",
    "build_experiment": "ddpm_jax.experiment.build",
    "edit_images": "ddpm_jax.editing.edit_images",
    "image_grid": "ddpm_jax.runtime.image_files",
    "load_config": "ddpm_jax.experiment.config_files",
    "make_mesh": "ddpm_jax.runtime.devices",
    "make_source": "ddpm_jax.data",
    "open_run": "ddpm_jax.experiment.open_run",
    "sample_cascade": "ddpm_jax.cascades.cascade",
    "save_grid": "ddpm_jax.runtime.image_files",
    "train_model": "ddpm_jax.experiment.training",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

__all__ = [
    "__version__",
    "ancestral_table",
    "autoguidance",
    "batch_indices",
    "bits_per_dim",
    "build_experiment",
    "classifier_free_guidance",
    "ddim_inversion_table",
    "ddim_table",
    "dpmpp_table",
    "edit_images",
    "edit_noise",
    "eps_from_x_0",
    "heun_table",
    "image_grid",
    "init_params",
    "init_state",
    "initial_noise",
    "known_region",
    "load_config",
    "loss_weights",
    "make_denoiser",
    "make_ema_decay",
    "make_ema_decays",
    "make_guidance",
    "make_learning_rate",
    "make_loss_fn",
    "make_mask",
    "make_mesh",
    "make_optimizer",
    "make_power_averages",
    "make_projection",
    "make_schedule",
    "make_source",
    "make_timestep_sampler",
    "make_train_step",
    "named_steps",
    "noised_start",
    "num_params",
    "ode_bits_per_dim",
    "open_run",
    "p_sample_loop",
    "partial_table",
    "plms_table",
    "post_hoc_weights",
    "posterior_sampling",
    "q_posterior_mean",
    "q_sample",
    "range_null_projection",
    "repaint_table",
    "rescale_zero_terminal_snr",
    "respaced",
    "sample_cascade",
    "sample_keys",
    "sample_loop",
    "save_grid",
    "schedule_from_betas",
    "seed_keys",
    "spaced_steps",
    "to_model_scale",
    "to_uint8",
    "train_model",
    "unipc_table",
    "v_from_x_0",
    "watching",
    "without_carry",
    "x_0_from_eps",
    "x_0_from_mean",
    "x_0_from_v",
    "Batch",
    "BatchLoader",
    "Checkpoints",
    "Codec",
    "Denoised",
    "DiffusionObjective",
    "Edit",
    "Guidance",
    "Objective",
    "Parameterisation",
    "PixelCodec",
    "Prediction",
    "Process",
    "Projection",
    "SamplerTable",
    "Schedule",
    "TrainState",
    "TrainedRun",
    "UNet",
    "UserError",
]
