"""The convolution of a doubled picture, in each of its forms, against loops and against the plain way."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models.upsample_conv import UpsampleConv, upsample_conv, upsample_nearest

PLATFORMS = ("cpu", "tpu", "default")
NUMBERS = ("NHWC", "HWIO", "NHWC")


def pictures_and_kernel():
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in ((2, 3, 4, 5), (3, 3, 5, 6)))


def the_plain_way(x, kernel):
    return jax.lax.conv_general_dilated(upsample_nearest(x), kernel, (1, 1), "SAME", dimension_numbers=NUMBERS)


@pytest.fixture(params=PLATFORMS)
def form(request, monkeypatch):
    """The function with what it does on one platform."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, **forms: forms[request.param](*args))
    return lambda x, kernel: upsample_conv(x, kernel, jnp.float32)


def test_it_is_the_loop_over_the_doubled_picture(form):
    x, kernel = pictures_and_kernel()
    doubled = np.pad(np.asarray(x, np.float64).repeat(2, 1).repeat(2, 2), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((2, 6, 8, 6))
    for i in range(6):
        for j in range(8):
            expected[:, i, j] = np.tensordot(doubled[:, i : i + 3, j : j + 3], np.asarray(kernel, np.float64), 3)
    # 45 products of numbers of order 1, in float32.
    np.testing.assert_allclose(form(x, kernel), expected, atol=45 * 2**-24 * 10)


def test_its_gradients_are_those_of_the_plain_way(form):
    x, kernel = pictures_and_kernel()
    weights = np.random.default_rng(1).standard_normal((2, 6, 8, 6), np.float32)
    got, expected = (
        jax.grad(lambda x, kernel, form=form: jnp.sum(weights * form(x, kernel)), (0, 1))(x, kernel)
        for form in (form, the_plain_way)
    )
    for one, other in zip(got, expected, strict=True):
        # Up to 96 products of numbers of order 1.
        np.testing.assert_allclose(one, other, atol=96 * 2**-24 * 10)


@pytest.mark.parametrize(
    "platform,shape,is_dilated", [("cpu", "2x2", False), ("tpu", "4x4", True), ("cuda", "3x3", False)]
)
def test_each_platform_has_the_form_that_it_does_well(platform, shape, is_dilated):
    """In its gradients too: XLA for CPU would take a hundred times as long for zeros between pixels."""
    x, kernel = pictures_and_kernel()
    gradient = jax.grad(lambda x, kernel: jnp.sum(upsample_conv(x, kernel, jnp.float32) ** 2), (0, 1))
    program = jax.jit(gradient).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    (first, *_) = (line for line in program.splitlines() if "stablehlo.convolution" in line)
    assert f"tensor<{shape}x5x6xf32>" in first
    assert ("lhs_dilate = [2, 2]" in program) == is_dilated


def test_it_has_the_parameters_of_a_plain_convolution():
    x, _ = pictures_and_kernel()
    ours, plain = UpsampleConv(6, jnp.bfloat16), nn.Conv(6, (3, 3), dtype=jnp.bfloat16)
    params, theirs = (module.init(jax.random.key(0), x)["params"] for module in (ours, plain))
    assert jax.tree.map(lambda p: (p.shape, p.dtype), params) == jax.tree.map(lambda p: (p.shape, p.dtype), theirs)
    params = params | {"bias": jnp.arange(6.0)}
    got, expected = ours.apply({"params": params}, x), plain.apply({"params": params}, upsample_nearest(x))
    assert got.dtype == expected.dtype == jnp.bfloat16
    # Roundings to bfloat16, of 2^-9 each: of x, the weights, the sum and the bias that is added to it.
    size = jnp.max(the_plain_way(jnp.abs(x), jnp.abs(params["kernel"]))) + 5
    np.testing.assert_allclose(got.astype(jnp.float32), expected.astype(jnp.float32), atol=float(size) * 2 * 4 * 2**-9)
