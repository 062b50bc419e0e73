"""A convolution whose gradients are as fast inside loops as outside of them on CPUs; elsewhere it is that of `jax.lax`.

The gradients of a convolution are convolutions of arrays whose axes are in another order: for the gradient by the input
the channels of the kernel change places, for that by the kernel the channels and the batch. XLA's fast convolution on
CPUs takes one order only. XLA transposes the arrays for it, but only outside of loops; inside, as in a sampler that
follows the gradient of a classifier, it falls back to a slow one. Here the transpositions are part of the CPU program.

The order is chosen where JAX transposes its convolution, so this is a primitive of its own, made as JAX's documentation
says ("How JAX primitives work"). It is bilinear, and its transposes are convolutions of the same kind: all derivatives
follow, of any order and mode. A vmap over images and kernels at once is JAX's grouped convolution, slow in loops as
before. Image sizes must be numbers, also in `jax.export`; the batch need not be.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType
from jaxtyping import Array

Padding = str | Sequence[tuple[int, int]]

# The name and the names of the parameters are those of `jax.lax`, for all that counts or times operations by name.
convolution_p = Primitive("conv_general_dilated")


def convolution(
    x: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Array:
    """`jax.lax.conv_general_dilated` of these arguments."""
    ones = (1,) * (x.ndim - 2)
    settings = {
        "window_strides": tuple(window_strides),
        "lhs_dilation": ones if lhs_dilation is None else tuple(lhs_dilation),
        "rhs_dilation": ones if rhs_dilation is None else tuple(rhs_dilation),
        "dimension_numbers": lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers),
        # Read here, as JAX does: a lowering may come after the end of `with jax.default_matmul_precision(...)`.
        "precision": jax.config.jax_default_matmul_precision if precision is None else precision,
    }
    # The rules below are not for groups, two dtypes, `jax.shard_map` and explicit meshes, which no network here has.
    is_automatic = all(kind == AxisType.Auto for kind in jax.sharding.get_abstract_mesh().axis_types)
    is_plain = feature_group_count == 1 and x.dtype == kernel.dtype and is_automatic
    has_no_such_padding = isinstance(padding, str) and settings["lhs_dilation"] != ones
    if not is_plain or has_no_such_padding:
        return lax.conv_general_dilated(x, kernel, padding=padding, feature_group_count=feature_group_count, **settings)
    return convolution_p.bind(x, kernel, padding=_in_numbers(padding, x, kernel, settings), **settings)


# nn.Conv with this convolution.
Conv = functools.partial(nn.Conv, conv_general_dilated_cls=lambda: convolution)


def _in_numbers(padding: Padding, x: Array, kernel: Array, settings: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    """The zeros before and after each spatial axis."""
    if isinstance(padding, str):
        of_x, of_kernel, _ = settings["dimension_numbers"]
        sizes = [x.shape[axis] for axis in of_x[2:]]
        windows = _dilated([kernel.shape[axis] for axis in of_kernel[2:]], settings["rhs_dilation"])
        padding = lax.padtype_to_pads(sizes, windows, settings["window_strides"], padding)
    return tuple((int(before), int(after)) for before, after in padding)


def _of_jax(x: Array, kernel: Array, **settings: Any) -> Array:
    return lax.conv_general_dilated(x, kernel, **settings)


def _in_fast_order(x: Array, kernel: Array, *, dimension_numbers: lax.ConvDimensionNumbers, **settings: Any) -> Array:
    """The same, of x with the axes batch, space, channels and a kernel with space, channels in, channels out."""
    of_x, of_kernel, of_out = dimension_numbers
    spatial = tuple(range(1, x.ndim - 1))
    image, weights = (0, x.ndim - 1, *spatial), (x.ndim - 1, x.ndim - 2, *range(x.ndim - 2))
    x = lax.transpose(x, (of_x[0], *of_x[2:], of_x[1]))
    kernel = lax.transpose(kernel, (*of_kernel[2:], of_kernel[1], of_kernel[0]))
    out = _of_jax(x, kernel, dimension_numbers=lax.ConvDimensionNumbers(image, weights, image), **settings)
    return lax.transpose(out, np.argsort((of_out[0], *of_out[2:], of_out[1])))


def _out_aval(*avals: Any, **settings: Any) -> Any:
    (aval,) = jax.make_jaxpr(functools.partial(_of_jax, **settings))(*avals).out_avals
    return aval


def _gradient_by_x(g: Array, x: Any, kernel: Array, **settings: Any) -> Array:
    """The convolution of g with the reversed kernel; strides of one are dilations of the other."""
    if g.size == 0:
        return jnp.zeros(x.aval.shape, x.aval.dtype)
    of_x, of_kernel, of_out = settings["dimension_numbers"]
    size, window, size_out = _dilated_sizes(x.aval, kernel, g, settings)
    before = window - 1 - np.array([before for before, _ in settings["padding"]])
    after = size + window - 1 - size_out - before
    swapped = {
        "window_strides": settings["lhs_dilation"],
        "lhs_dilation": settings["window_strides"],
        "padding": _pairs(before, after),
        "dimension_numbers": lax.ConvDimensionNumbers(of_out, _swapped(of_kernel), of_x),
    }
    return convolution_p.bind(g, lax.rev(kernel, of_kernel[2:]), **settings | swapped)


def _gradient_by_kernel(g: Array, x: Array, kernel: Any, **settings: Any) -> Array:
    """The convolution of x with g, summed over the batch."""
    if g.size == 0:
        return jnp.zeros(kernel.aval.shape, kernel.aval.dtype)
    size, window, size_out = _dilated_sizes(x, kernel.aval, g, settings)
    before = np.array([before for before, _ in settings["padding"]])
    after = size_out + window - 1 - size - before
    of_x, of_kernel, of_out = map(_swapped, settings["dimension_numbers"])
    swapped = {
        "window_strides": settings["rhs_dilation"],
        "rhs_dilation": settings["window_strides"],
        "padding": _pairs(before, after),
        "dimension_numbers": lax.ConvDimensionNumbers(of_x, of_out, of_kernel),
    }
    return convolution_p.bind(x, g, **settings | swapped)


def _dilated_sizes(x: Any, kernel: Any, out: Any, settings: dict[str, Any]) -> list[np.ndarray]:
    """Of x, the kernel and the result: the spatial sizes, of the result as if strides were zeros between pixels."""
    names = ("lhs_dilation", "rhs_dilation", "window_strides")
    return [
        _dilated([array.shape[axis] for axis in order[2:]], settings[name])
        for array, order, name in zip((x, kernel, out), settings["dimension_numbers"], names, strict=True)
    ]


def _dilated(sizes: Sequence[int], dilation: Sequence[int]) -> np.ndarray:
    return (np.array(sizes, int) - 1) * np.array(dilation, int) + 1


def _swapped(order: tuple[int, ...]) -> tuple[int, ...]:
    """The order of axes with batch and channels, or channels out and in, in each other's place."""
    return (order[1], order[0], *order[2:])


def _pairs(before: np.ndarray, after: np.ndarray) -> tuple[tuple[int, int], ...]:
    return tuple(zip(before.tolist(), after.tolist(), strict=True))


def _batched(arrays: tuple[Array, Array], axes: tuple[int | None, int | None], **settings: Any) -> tuple[Array, int]:
    """A batch of images or of kernels is more images or more channels out."""
    if None not in axes:
        return jax.vmap(functools.partial(_of_jax, **settings), axes)(*arrays), 0
    which = 0 if axes[1] is None else 1
    into = settings["dimension_numbers"][which][0]
    array = jnp.moveaxis(arrays[which], axes[which], into)
    merged = lax.collapse(array, into, into + 2)
    out = convolution_p.bind(*(merged if i == which else arrays[i] for i in (0, 1)), **settings)
    axis = settings["dimension_numbers"][2][which]
    return out.reshape(*out.shape[:axis], *array.shape[into : into + 2], *out.shape[axis + 1 :]), axis


convolution_p.def_impl(_of_jax)
convolution_p.def_abstract_eval(_out_aval)
ad.defbilinear(convolution_p, _gradient_by_x, _gradient_by_kernel)
batching.primitive_batchers[convolution_p] = _batched
mlir.register_lowering(convolution_p, mlir.lower_fun(_of_jax, multiple_results=False))
mlir.register_lowering(convolution_p, mlir.lower_fun(_in_fast_order, multiple_results=False), platform="cpu")
