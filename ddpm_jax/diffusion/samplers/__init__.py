"""Samplers as coefficient tables, one file per method, and the loop that runs any of them."""

from ddpm_jax.diffusion.samplers.ancestral import ancestral_table
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.ddim import ddim_table
from ddpm_jax.diffusion.samplers.ddim_inversion import ddim_inversion_table
from ddpm_jax.diffusion.samplers.dpm_solver import dpmpp_table
from ddpm_jax.diffusion.samplers.heun import heun_table
from ddpm_jax.diffusion.samplers.plms import plms_table
from ddpm_jax.diffusion.samplers.sampling_loop import edit_noise, initial_noise, p_sample_loop, sample_loop, watching
from ddpm_jax.diffusion.samplers.unipc import unipc_table

__all__ = [
    "SamplerTable",
    "ancestral_table",
    "ddim_inversion_table",
    "ddim_table",
    "dpmpp_table",
    "edit_noise",
    "heun_table",
    "initial_noise",
    "p_sample_loop",
    "plms_table",
    "sample_loop",
    "unipc_table",
    "watching",
]
