"""Virtual CPU devices, as many as are asked for, in place of devices that this machine does not have."""

import jax

from ddpm_jax.runtime.errors import UserError

MAX_DEVICES = 1024


def use_virtual_devices(num_devices: int) -> None:
    """Makes JAX use `num_devices` CPU devices and no others. Must be called before JAX looks for devices.

    Raises:
      UserError: not a valid number of devices, or JAX already uses other devices.
    """
    if not 1 <= num_devices <= MAX_DEVICES:
        raise UserError(f"--devices must be in 1..{MAX_DEVICES}; got {num_devices}")
    try:
        jax.config.update("jax_num_cpu_devices", num_devices)
        jax.config.update("jax_platforms", "cpu")
    except RuntimeError:
        pass  # too late to choose, but the present devices may fit
    if jax.default_backend() != "cpu" or jax.device_count() < num_devices:
        raise UserError(
            f"--devices={num_devices} needs a process of its own: JAX already runs here, on {jax.device_count()} "
            f"{jax.default_backend()} devices"
        )
