"""Solvers of higher order as tables, and the inversion of DDIM; each file is one method."""

from ddpm_jax.solvers.dpm_solver import dpmpp_table
from ddpm_jax.solvers.heun import heun_table
from ddpm_jax.solvers.inversion import ddim_inversion_table
from ddpm_jax.solvers.plms import plms_table
from ddpm_jax.solvers.unipc import unipc_table

__all__ = ["ddim_inversion_table", "dpmpp_table", "heun_table", "plms_table", "unipc_table"]
