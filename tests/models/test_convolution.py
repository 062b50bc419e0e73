"""The convolution against that of `jax.lax`: values, derivatives of every kind, and the programs of each platform.

Whole numbers, so that all sums are exact and results must be equal, in whatever order they are added.
"""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.models.convolution import Conv, convolution
from ddpm_jax.models.layers import Downsample, Upsample

NUMBERS = ("NHWC", "HWIO", "NHWC")
# The size of the kernel, strides, padding, and the dilations of the image and of the kernel.
WINDOWS = {
    "3x3": ((3, 3), (1, 1), "SAME", None, None),
    "down, end": ((3, 3), (2, 2), ((0, 1), (0, 1)), None, None),
    "down, both": ((3, 3), (2, 2), ((1, 1), (1, 1)), None, None),
    "1x1, strides": ((1, 1), (2, 2), "VALID", None, None),
    "up, a corner": ((2, 2), (1, 1), ((1, 0), (0, 1)), None, None),
    "up, dilated": ((4, 4), (1, 1), ((2, 2), (2, 2)), (2, 2), None),
    "cropped": ((5, 4), (3, 2), ((-1, 2), (4, -1)), None, None),
    "all": ((3, 2), (2, 3), ((1, 2), (0, 3)), (3, 2), (2, 1)),
}
FAST = "b01f_01io->b01f"


def whole(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).integers(-1, 2, shape), dtype)


def both(window, dtype=jnp.float32):
    """(x, kernel) -> the convolution, ours and that of jax.lax; and its arguments."""
    size, strides, padding, *dilations = window
    arrays = whole(0, 2, 7, 8, 3, dtype=dtype), whole(1, *size, 3, 4, dtype=dtype)

    def form(function):
        return lambda x, kernel: function(x, kernel, strides, padding, *dilations, NUMBERS)

    return (form(convolution), form(lax.conv_general_dilated)), arrays


def assert_same(function, forms, *arrays):
    """function(form, *arrays) is the same tree for both forms."""
    ours, theirs = (jax.jit(lambda *arrays, form=form: function(form, *arrays))(*arrays) for form in forms)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
        assert np.any(np.asarray(other) != 0)


def gradients(form):
    """(x, kernel) -> of a loss of the third order in each."""

    def loss(x, kernel):
        out = form(x, kernel)
        return jnp.sum(whole(2, *out.shape, dtype=out.dtype) * out**3)

    return jax.grad(loss, (0, 1))


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_values_and_gradients_are_those_of_jax(window):
    def results(form, x, kernel):
        others = whole(3, *x.shape), whole(4, *kernel.shape)
        return form(x, kernel), gradients(form)(x, kernel), jax.jvp(form, (x, kernel), others)

    forms, arrays = both(window)
    assert_same(results, forms, *arrays)


def test_the_precision_is_that_of_the_trace():
    """The context ends before anything is lowered; the gradients take it over."""
    forms, arrays = both(WINDOWS["3x3"])

    def precise(form):
        def loss(*arrays):
            with jax.default_matmul_precision("highest"):
                return jnp.sum(form(*arrays) ** 2)

        return jax.jit(jax.grad(loss, (0, 1))).trace(*arrays).lower().as_text()

    ours, theirs = map(precise, forms)
    assert ours.count("precision HIGHEST") == theirs.count("precision HIGHEST") >= 3


def test_under_shard_map():
    """The gradient of a kernel that all devices share is summed over them, as JAX does."""
    mesh, over = Mesh(np.array(jax.devices()[:2]), ("data",)), PartitionSpec("data")

    def loss(form, x, kernel):
        mean = lambda x, kernel: jax.lax.psum(jnp.sum(form(x, kernel) ** 2), "data")  # noqa: E731
        return jax.shard_map(mean, mesh=mesh, in_specs=(over, PartitionSpec()), out_specs=PartitionSpec())(x, kernel)

    forms, arrays = both(WINDOWS["3x3"])
    assert_same(lambda form, *arrays: jax.grad(functools.partial(loss, form), (0, 1))(*arrays), forms, *arrays)


@pytest.mark.parametrize("name", ["down, end", "all"])
def test_second_derivatives_are_those_of_jax(name):
    """By the image, the kernel, and one after the other, in both modes."""

    def results(form, x, kernel):
        others = whole(3, *x.shape), whole(4, *kernel.shape)
        forward = jax.jvp(gradients(form), (x, kernel), others)[1]
        back = jax.vjp(gradients(form), x, kernel)[1](others)
        linear = jax.linearize(gradients(form), x, kernel)[1](*others)
        return forward, back, linear

    forms, arrays = both(WINDOWS[name])
    assert_same(results, forms, *arrays)


@pytest.mark.parametrize("axes", [(1, None), (None, 3), (3, 0)], ids=["images", "kernels", "both"])
def test_it_maps_over_batches(axes):
    def results(form, x, kernel):
        x, kernel = (
            array if axis is None else jnp.stack([array, jnp.flip(array)], axis)
            for array, axis in zip((x, kernel), axes, strict=True)
        )
        return jax.vmap(form, axes)(x, kernel), jax.vmap(gradients(form), axes)(x, kernel)

    forms, arrays = both(WINDOWS["down, end"])
    assert_same(results, forms, *arrays)


def test_in_bfloat16():
    """Sums of at most 27 numbers -1, 0 or 1 are exact in bfloat16 too."""

    def results(form, x, kernel):
        out, pull = jax.vjp(form, x, kernel)
        return out, pull(out.at[1:].set(0).at[:, 2:].set(0).clip(-1, 1))

    forms, arrays = both(WINDOWS["3x3"], jnp.bfloat16)
    assert_same(results, forms, *arrays)


def test_what_it_leaves_to_jax():
    """Groups of channels, and the errors."""
    x, kernel = whole(0, 2, 4, 4, 6), whole(1, 3, 3, 3, 4)
    for function in (convolution, lax.conv_general_dilated):
        with pytest.raises(ValueError, match="transposed convolution"):
            function(x, whole(1, 3, 3, 6, 4), (1, 1), "SAME", (2, 2), None, NUMBERS)
    out = convolution(x, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS, feature_group_count=2)
    theirs = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS, feature_group_count=2)
    np.testing.assert_array_equal(out, theirs)


@pytest.mark.parametrize("shape", [(0, 5, 5, 3), (2, 2, 2, 3), (2, 5, 5, 0)], ids=["batch", "result", "channels"])
@pytest.mark.parametrize("stride", [1, 2])
def test_empty_arrays(shape, stride):
    x, kernel = whole(0, *shape), whole(1, 3, 3, shape[3], 4)

    def loss(x, kernel):
        return jnp.sum(convolution(x, kernel, (stride, stride), "VALID", dimension_numbers=NUMBERS) ** 2)

    for array, gradient in zip((x, kernel), jax.jit(jax.grad(loss, (0, 1)))(x, kernel), strict=True):
        np.testing.assert_array_equal(gradient, 0 * array)
    assert jax.vmap(loss, (0, None))(x[None][:0], kernel).shape == (0,)


class Net(nn.Module):
    """The convolutions of a U-Net: plain, down and up."""

    @nn.compact
    def __call__(self, x):
        h = nn.swish(Conv(8, (3, 3))(x))
        h = nn.swish(Upsample(jnp.float32)(Downsample(jnp.float32)(h)))
        return Conv(x.shape[-1], (3, 3))(h)


def loss(params, x):
    return jnp.mean((Net().apply(params, x) - x) ** 2)


def of_net(seed=0):
    x = jax.random.normal(jax.random.key(seed), (2, 8, 8, 3))
    return jax.eval_shape(lambda: Net().init(jax.random.key(0), x)), x


def test_gradients_in_a_loop_take_the_fast_convolution_of_cpus():
    """By the image, as in guidance, and by the parameters, as in gradient accumulation."""

    def steps(params, x):
        def step(carry, _):
            return jax.tree.map(jnp.subtract, carry, jax.grad(loss, (0, 1))(*carry)), None

        return lax.scan(step, (params, x), None, length=3)[0]

    program = jax.jit(steps).lower(*of_net()).compile().as_text()
    assert "while(" in program
    orders = re.findall(r"dim_labels=([\w>-]+)", "\n".join(re.findall(r".* convolution\(.*", program)))
    # Two plain convolutions, one down and four that go up; each has two gradients, all in the loop.
    assert len(orders) == 3 * 7
    assert set(orders) == {FAST}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_have_the_programs_of_jax(platform):
    def program(form, arrays):
        traced = jax.jit(lambda x, kernel: (jax.jvp(form, (x, kernel), (x, kernel)), gradients(form)(x, kernel)))
        return traced.trace(*arrays).lower(lowering_platforms=(platform,)).as_text()

    for window in WINDOWS.values():
        forms, arrays = both(window)
        ours, theirs = (program(form, arrays) for form in forms)
        assert ours == theirs


def test_it_is_exported_for_several_platforms():
    (form, _), arrays = both(WINDOWS["down, end"])
    exported = export.export(jax.jit(gradients(form)), platforms=("cpu", "tpu"))(*arrays)
    for one, other in zip(exported.call(*arrays), gradients(form)(*arrays), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kernel_axis", [None, 2, 3])
def test_it_is_split_over_devices(kernel_axis):
    """Images over one axis of the mesh, the kernel over the other, or on all devices."""
    form, _ = both(WINDOWS["3x3"])[0]
    x, kernel = whole(0, 4, 6, 6, 4), whole(1, 3, 3, 4, 4)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("images", "kernel"))
    spec = [None] * 4
    if kernel_axis is not None:
        spec[kernel_axis] = "kernel"
    split = NamedSharding(mesh, PartitionSpec("images")), NamedSharding(mesh, PartitionSpec(*spec))
    many = jax.jit(gradients(form), in_shardings=split, out_shardings=split)(x, kernel)
    for one, other in zip(many, jax.jit(gradients(form))(x, kernel), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_layer_is_that_of_flax():
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
    ours, theirs = (conv(4, (3, 3), strides=2) for conv in (Conv, nn.Conv))
    params = ours.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, params, theirs.init(jax.random.key(1), x))
    np.testing.assert_array_equal(ours.apply(params, x), theirs.apply(params, x))
