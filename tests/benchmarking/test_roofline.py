"""benchmarks/roofline.py: what it counts, and where the bytes' time meets the FLOPs'."""

import jax
import jax.numpy as jnp
import pytest


@pytest.fixture(scope="module")
def roofline(benchmark_module):
    return benchmark_module("roofline")


def test_equations_of_inner_functions_are_found(roofline):
    def inner(x):
        return jax.lax.conv(x, jnp.ones((4, 3, 3, 3)), (1, 1), "SAME")

    def outer(x):
        return jax.lax.scan(lambda total, _: (total + jax.jit(inner)(x).sum(), None), 0.0, None, length=3)[0]

    program = jax.make_jaxpr(outer)(jnp.ones((2, 3, 8, 8)))
    (conv,) = (
        eqn for eqn in roofline.equations(program.jaxpr, "cpu") if eqn.primitive.name == "conv_general_dilated"
    )
    floats = 2 * 3 * 8 * 8 + 4 * 3 * 3 * 3 + 2 * 4 * 8 * 8
    assert roofline.num_bytes(var.aval for var in (*conv.invars, *conv.outvars)) == 4 * floats


@pytest.mark.parametrize("platform,taken,left", [("cpu", "sin", "cos"), ("cuda", "cos", "sin")])
def test_of_a_choice_by_platform_one_is_counted(roofline, platform, taken, left):
    program = jax.make_jaxpr(lambda x: jax.lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos))(1.0)
    names = [equation.primitive.name for equation in roofline.equations(program.jaxpr, platform)]
    assert taken in names and left not in names


def test_costs_are_linear_in_the_batch(roofline, tiny_overrides, monkeypatch):
    """So that two batch sizes are enough: two others give the same at a third."""
    real = roofline.load_config
    monkeypatch.setattr(roofline, "load_config", lambda net, own: real(net, [*tiny_overrides, *own]))
    one = roofline.costs_of("digits", "bfloat16")
    monkeypatch.setattr(roofline, "BATCH_SIZES", (4, 12))
    other = roofline.costs_of("digits", "bfloat16")
    assert one.fused(64) == other.fused(64)
    for line, again in ((one.flops, other.flops), (one.apart, other.apart)):
        assert line(64) == pytest.approx(again(64), rel=2e-4)  # random bits come in whole blocks
    assert one.fused.each < one.apart.each and one.fused.fixed > 0


@pytest.mark.parametrize("fixed, each", [(5e6, 1e3), (1e6, 2e3)])
def test_the_step_turns_where_both_take_the_same_time(roofline, fixed, each):
    peak, bandwidth, moved = 1e12, 1e9, roofline.Line(fixed, each)
    costs = roofline.Costs(roofline.Line(1e6, 3e6), moved, moved)
    batch = int(roofline.turning_batch(costs, moved, peak, bandwidth).replace(",", ""))
    assert costs.flops(batch) / peak >= moved(batch) / bandwidth
    assert costs.flops(batch - 1) / peak < moved(batch - 1) / bandwidth


def test_it_never_turns_where_the_bytes_of_a_picture_take_longer(roofline):
    moved = roofline.Line(0.0, 4e3)
    costs = roofline.Costs(roofline.Line(0.0, 3e6), moved, moved)
    assert roofline.turning_batch(costs, moved, 1e12, 1e9) == "never"
