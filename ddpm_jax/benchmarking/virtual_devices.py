"""Devices that this machine need not have: as many virtual CPU devices as asked for."""

import jax

from ddpm_jax.runtime.errors import UserError

MAX_DEVICES = 1024


def use_virtual_devices(num_devices: int) -> None:
    """Makes JAX see so many CPU devices and no other; before it has looked at the first one.

    Raises:
      UserError: not a number of devices, or JAX has looked already and sees others.
    """
    if not 1 <= num_devices <= MAX_DEVICES:
        raise UserError(f"--devices must be in 1..{MAX_DEVICES}; got {num_devices}")
    try:
        jax.config.update("jax_num_cpu_devices", num_devices)
        jax.config.update("jax_platforms", "cpu")
    except RuntimeError:
        pass  # too late to choose; what is there may do
    if jax.default_backend() != "cpu" or jax.device_count() < num_devices:
        raise UserError(
            f"--devices={num_devices} needs a process of its own: JAX runs here already, on {jax.device_count()} "
            f"{jax.default_backend()} devices"
        )
