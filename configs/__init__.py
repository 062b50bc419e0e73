"""The experiments of ddpm_jax, installed as `ddpm_jax.configs`."""
