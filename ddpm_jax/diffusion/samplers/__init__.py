"""Solvers of higher order as tables, and the inversion of DDIM; each file is one method."""

from ddpm_jax.diffusion.samplers.ddim_inversion import ddim_inversion_table
from ddpm_jax.diffusion.samplers.dpm_solver import dpmpp_table
from ddpm_jax.diffusion.samplers.heun import heun_table
from ddpm_jax.diffusion.samplers.plms import plms_table
from ddpm_jax.diffusion.samplers.unipc import unipc_table

__all__ = ["ddim_inversion_table", "dpmpp_table", "heun_table", "plms_table", "unipc_table"]
