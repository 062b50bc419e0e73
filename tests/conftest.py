"""Eight virtual CPU devices, strict broadcasting, a compilation cache on disk, and one tiny shared U-Net.

`ddpm_jax` is imported inside the fixtures alone: the type-checking hook of pyproject.toml is installed after
this file is read, and what was imported before it would run unchecked.
"""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    cache = getattr(config, "cache", None)  # absent under `-p no:cacheprovider`
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache.mkdir("jax_compilation")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(scope="session")
def tiny_unet():
    """A U-Net with every kind of layer: two levels, attention at height 4, a shortcut, down and up."""
    from ddpm_jax.models.unet import UNet

    return UNet(
        channels=8,
        channel_mults=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        dropout=0.5,
        num_groups=4,
    )


@pytest.fixture(scope="session")
def tiny_params(tiny_unet):
    """Random everywhere, for images 8x8x3: with fresh zero layers most of the network would be invisible."""
    from ddpm_jax.models.unet import init_params

    shapes = jax.eval_shape(lambda key: init_params(tiny_unet, key, (8, 8, 3)), jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten(
        [0.3 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    )


@pytest.fixture(scope="session")
def tiny_apply(tiny_unet):
    """(params, x_t, t) -> the prediction of `tiny_unet` without dropout, jitted once for the session."""
    return jax.jit(lambda params, x_t, t: tiny_unet.apply({"params": params}, x_t, t))
