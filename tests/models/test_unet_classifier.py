"""The classifier of noised images: its sizes, and its pool against the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models.parameters import init_params, num_params
from ddpm_jax.models.unet_checks import check_blocks
from ddpm_jax.models.unet_classifier import AttentionPool, UNetClassifier
from ddpm_jax.runtime.errors import UserError

TINY = UNetClassifier(
    channels=8, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(4,), num_groups=4, head_channels=4,
    num_outputs=5, dropout=0.5,
)  # fmt: skip
# guided-diffusion's classifiers (width 128): size, multiples, blocks per level, and their parameters, counted in the
# original code.
PUBLISHED = [
    (64, (1, 2, 3, 4), 4, 65_438_568),
    (128, (1, 1, 2, 3, 4), 2, 42_568_040),
    (256, (1, 1, 2, 2, 4, 4), 2, 54_096_360),
    (512, (0.5, 1, 1, 2, 2, 4, 4), 2, 54_448_360),
]


@pytest.mark.parametrize(("size", "mults", "depth", "count"), PUBLISHED)
def test_the_published_classifiers_have_their_size(size, mults, depth, count):
    network = UNetClassifier(
        channels=128, channel_mults=mults, num_res_blocks=depth, attention_resolutions=(32, 16, 8), head_channels=64,
        scale_shift_norm=True, resample_in_blocks=True, conv_in_channels=round(128 * mults[0]),
    )  # fmt: skip
    check_blocks(network, (size, size))
    shapes = jax.eval_shape(lambda key: init_params(network, key, (size, size, 3), {}), jax.random.key(0))
    assert num_params(shapes) == count


def test_the_pool_is_the_formula():
    """Attention of the mean pixel over itself and all pixels, in NumPy, one head after another."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 2, 3, 8)), jnp.float32)
    pool = AttentionPool(num_heads=2, num_outputs=3)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), pool.init(jax.random.key(0), x)["params"]
    )
    got = pool.apply({"params": params}, x)
    pixels = np.asarray(x, np.float64).reshape(2, 6, 8)
    tokens = np.concatenate([pixels.mean(1, keepdims=True), pixels], 1) + params["position"]
    of = {name: tokens @ params[name]["kernel"] + params[name]["bias"] for name in ("query", "key", "value")}
    pooled = np.zeros((2, 8))
    for head in (slice(0, 4), slice(4, 8)):
        logits = np.einsum("bc,btc->bt", of["query"][:, 0, head], of["key"][..., head]) / np.sqrt(4)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        pooled[:, head] = np.einsum("bt,btc->bc", weights, of["value"][..., head])
    np.testing.assert_allclose(got, pooled @ params["out"]["kernel"] + params["out"]["bias"], rtol=2e-5, atol=2e-5)


@pytest.fixture(scope="module")
def filled():
    """Parameters without zeros, so that every layer has a part."""
    params = init_params(TINY, jax.random.key(0), (8, 8, 2), {})
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape).astype(np.float32), params)


def test_images_do_not_mix_and_all_inputs_matter(filled):
    rng = np.random.default_rng(2)
    x, t = jnp.asarray(rng.standard_normal((3, 8, 8, 2)), jnp.float32), jnp.array([3, 7, 900])
    apply = jax.jit(lambda x, t: TINY.apply({"params": filled}, x, t))
    logits = apply(x, t)
    assert logits.shape == (3, 5) and logits.dtype == jnp.float32
    np.testing.assert_allclose(apply(x[::-1], t[::-1])[::-1], logits, rtol=1e-5, atol=1e-6)
    other = apply(x.at[0].set(0.0), t)
    np.testing.assert_allclose(other[1:], logits[1:], rtol=1e-5, atol=1e-6)
    assert np.all(np.abs(apply(x, t + 5) - logits).max(1) > 1e-3)
    by_pixel = jax.jit(jax.grad(lambda x: jnp.sum(apply(x, t)[:, 0])))(x)
    assert np.all(by_pixel != 0)


def test_dropout_is_for_training_and_remat_changes_nothing(filled):
    x, t, keys = jnp.ones((2, 8, 8, 2)), jnp.array([3, 7]), [jax.random.key(i) for i in range(2)]

    def apply(network):
        return jax.jit(lambda key: network.apply({"params": filled}, x, t, train=True, rngs={"dropout": key}))

    trained = [apply(TINY)(key) for key in keys]
    assert np.any(trained[0] != trained[1])
    again = apply(TINY.clone(remat=True))(keys[0])
    np.testing.assert_allclose(again, trained[0], rtol=1e-5, atol=1e-6)


def test_half_precision_computes_low_and_answers_in_float32(filled):
    x, t = jnp.ones((2, 8, 8, 2)), jnp.array([3, 7])
    low, full = (jax.jit(net.apply)({"params": filled}, x, t) for net in (TINY.clone(dtype=jnp.bfloat16), TINY))
    assert low.dtype == jnp.float32 and np.any(low != full)
    np.testing.assert_allclose(low, full, atol=0.1 * np.abs(full).max())


def test_it_takes_no_condition(filled):
    with pytest.raises(UserError, match=r"takes the condition \[\]; got \['label'\]"):
        TINY.apply({"params": filled}, jnp.ones((1, 8, 8, 2)), jnp.array([1]), {"label": jnp.array([1])})
