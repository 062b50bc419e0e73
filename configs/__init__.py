"""The experiment configs of ddpm_jax, installed as `ddpm_jax.configs`."""
