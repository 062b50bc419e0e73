"""Rematerialisation: the same parameters, dropout and gradient, from less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.experiment.config_changes import check_same_run
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.models.parameters import init_params
from ddpm_jax.models.unet import UNet
from ddpm_jax.runtime.compilation import quick_compile_options, remat_options

# Every kind of block: attention, shortcuts, resampling, the last block, scaled skips, and dropout of half of each
# activation.
UNET = UNet(
    16, (1, 2), 1, (8,), dropout=0.5, num_groups=4, head_channels=8, resample_in_blocks=True, downsample_first=True,
    scale_skips=True,
)  # fmt: skip


def shapes_of(unet):
    return jax.eval_shape(lambda key: init_params(unet, key, (16, 16, 3)), jax.random.key(0))


def random_params(unet):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape), leaf.dtype), shapes_of(unet))


def compiled_gradient(unet):
    """(params, x_t, key) -> the loss and its gradient, compiled."""
    batch = 8
    t = jnp.arange(batch) * 100

    def loss(params, x_t, key):
        out = unet.apply({"params": params}, x_t, t, train=True, rngs={"dropout": key})
        return jnp.mean(jnp.square(out - x_t))

    x_t = jax.ShapeDtypeStruct((batch, 16, 16, 3), jnp.float32)
    step = jax.jit(jax.value_and_grad(loss), compiler_options=remat_options() | quick_compile_options())
    return step.lower(shapes_of(unet), x_t, jax.random.key(0)).compile()


@pytest.fixture(scope="module")
def both():
    """The network without and with remat, and the compiled gradient of each."""
    return [(unet, compiled_gradient(unet)) for unet in (UNET, UNET.clone(remat=True))]


def test_the_parameters_have_the_same_names(both):
    (plain, _), (remat, _) = both
    assert jax.tree.structure(shapes_of(plain)) == jax.tree.structure(shapes_of(remat))
    assert shapes_of(plain) == shapes_of(remat)


def test_the_loss_and_the_gradient_are_the_same(both):
    """Dropout of 0.5 included: another mask changes the loss in the fourth digit."""
    (plain, gradient), (_, remat_gradient) = both
    params, x_t = random_params(plain), jax.random.normal(jax.random.key(2), (8, 16, 16, 3))
    key = jax.random.key(3)
    loss, grads = gradient(params, x_t, key)
    remat_loss, remat_grads = remat_gradient(params, x_t, key)
    np.testing.assert_allclose(remat_loss, loss, rtol=1e-6)
    assert abs(gradient(params, x_t, jax.random.key(4))[0] - loss) > 1e-4 * loss
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(remat_grads), strict=True
    ):
        # A gradient sums up to 8 * 16 * 16 terms of either sign in an order of the compiler's, through some 50
        # layers: sqrt(2048 * 50) roundings of 2^-24 of the largest. The key's bias has no gradient but rounding.
        largest = max(np.abs(one).max(), 1e-3 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads)))
        assert np.abs(other - one).max() <= 320 * 2**-24 * largest, jax.tree_util.keystr(path)


def test_the_memory_is_less(both):
    """Half and less of the temporaries: 12 tensors of a residual block become its input and two outputs."""
    plain, remat = (gradient.memory_analysis().temp_size_in_bytes for _, gradient in both)
    assert remat < 0.6 * plain


def test_convolutions_are_not_computed_again(both):
    def flops(compiled):
        costs = compiled.cost_analysis()
        return (costs[0] if isinstance(costs, list) else costs)["flops"]

    plain, remat = (flops(gradient) for _, gradient in both)
    assert plain < remat < 1.1 * plain


def test_a_run_goes_on_with_it_and_without():
    config = load_config("digits")
    check_same_run(config, load_config("digits", ["model.remat=true"]))
    before = config.copy_and_resolve_references().unlock()
    del before.model.remat  # of a run that is older than the field
    check_same_run(before, config)


def test_the_barriers_are_kept_on_cpu_alone(monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CPU_OPTIONS", "0")
    assert remat_options() == {}
    monkeypatch.delenv("DDPM_JAX_CPU_OPTIONS")
    assert remat_options() == {"xla_disable_hlo_passes": "cse_barrier_expander"}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert remat_options() == {}
