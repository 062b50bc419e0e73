"""The learning rate, Adam with its clip and the decay of the EMA, against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.runtime.errors import UserError
from ddpm_jax.training.optimizer import (
    make_ema_decay,
    make_ema_decays,
    make_learning_rate,
    make_optimizer,
    update_averages,
)
from ddpm_jax.training.train_state import init_state


def test_learning_rate():
    warm = make_learning_rate(0.5, warmup_steps=4)
    assert [float(warm(n)) for n in (0, 1, 3, 4, 1000)] == [0.125, 0.25, 0.5, 0.5, 0.5]
    paper = make_learning_rate(0.5, warmup_steps=4, first_step_zero=True)
    assert [float(paper(n)) for n in (0, 1, 3, 4, 1000)] == [0.0, 0.125, 0.375, 0.5, 0.5]
    assert [float(make_learning_rate(0.5)(n)) for n in (0, 1)] == [0.5, 0.5]


def test_cosine_decay_of_the_learning_rate():
    rate = make_learning_rate(0.5, warmup_steps=2, decay_steps=8)
    wanted = [0.5 * min((n + 1) / 2, 1) * (1 + np.cos(np.pi * min(n / 8, 1))) / 2 for n in range(12)]
    np.testing.assert_allclose([rate(n) for n in range(12)], wanted, rtol=1e-5, atol=1e-8)
    assert float(rate(8)) < 1e-8 and float(rate(11)) < 1e-8


def ema_of(values, decay, start):
    """The recursion in NumPy."""
    ema = values[0]
    for n, value in enumerate(values[1:]):
        if start == "warmup":
            now = min(decay, (1 + n) / (10 + n))
        elif start == "copy_first":
            now = 0.0 if n == 0 else decay
        else:
            now = decay
        ema = now * ema + (1 - now) * value
    return ema


@pytest.mark.parametrize("start", ["warmup", "constant", "copy_first"])
def test_ema_decay(start):
    values = np.random.default_rng(0).normal(size=50)
    decay = make_ema_decay(0.7, start=start)  # the warm-up passes 0.7 at n = 20
    ema = jnp.float32(values[0])
    for n, value in enumerate(values[1:]):
        now = decay(jnp.int32(n))
        ema = now * ema + (1 - now) * jnp.float32(value)
        # At every update: late ones have forgotten how the average began.
        np.testing.assert_allclose(ema, ema_of(values[: n + 2], 0.7, start), atol=1e-5)
    others = {other: ema_of(values[:8], 0.7, other) for other in ("warmup", "constant", "copy_first")}
    assert len(set(others.values())) == 3


def test_ema_errors():
    for decay in (1.0, -0.1, 2.0):
        with pytest.raises(UserError, match=r"^decay must be in \[0, 1\); got "):
            make_ema_decay(decay)
    with pytest.raises(UserError, match="^start must be one of .*did you mean 'warmup'"):
        make_ema_decay(0.9, start="warm_up")


def test_averages_are_named_by_their_decays():
    assert list(make_ema_decays([0.99995, 0.9999, 0.0])) == ["0.99995", "0.9999", "0.0"]
    for decays in ([], [0.9, 0.5, 0.9]):
        with pytest.raises(UserError, match="^decays must be at least one decay, and all different; got "):
            make_ema_decays(decays)


def test_averages_of_other_names_are_refused():
    with pytest.raises(UserError, match=r"must be those of the decays, \['0.5', '0.9'\]; got \['0.9'\]$"):
        update_averages({"0.9": {}}, {}, jnp.int32(0), make_ema_decays([0.9, 0.5]))


@pytest.mark.parametrize("names", [("0.9", "0.5"), ("0.5", "0.9")])
def test_the_first_average_stays_the_primary_one(names):
    """JAX returns dicts with their keys sorted."""
    optimizer = make_optimizer(make_learning_rate(0.1))
    state = init_state({"w": np.zeros(3)}, optimizer, names, {"t_history": {"a": np.ones(2)}, "mean": np.ones(3)})
    state = state.replace(ema={name: {"w": np.full(3, float(name))} for name in names})
    after = jax.jit(lambda state: state)(state)
    assert after.primary == names[0] and np.all(after.ema_params["w"] == np.float32(names[0]))
    items = after.items()
    assert list(items)[0] == "params" and items.keys() == {
        "params", "ema_params", f"ema_{names[1]}", "opt_state", "t_history", "mean"
    }  # fmt: skip
    assert items["ema_params"] is after.ema[names[0]] and items[f"ema_{names[1]}"] is after.ema[names[1]]
    assert items["mean"].keys() == {"value"}  # Orbax saves no single array
    again = state.with_items(jnp.int32(7), {name: name for name in items} | {"mean": {"value": "mean"}})
    assert again == after.replace(
        step=again.step, params="params", ema={names[0]: "ema_params", names[1]: f"ema_{names[1]}"},
        opt_state="opt_state", extra={"t_history": "t_history", "mean": "mean"},
    )  # fmt: skip
    with pytest.raises(UserError, match="^ema_names must name at least one average; got none"):
        init_state({}, optimizer, ())
    for names_twice in (["0.9", "0.9"], "0.9"):
        with pytest.raises(ValueError, match="ema_names must be different names"):
            init_state({}, optimizer, names_twice)
    for name in ("../x", "a/b", "", "x" * 300):
        with pytest.raises(ValueError, match="must be of up to 64 letters, digits and _"):
            init_state({}, optimizer, names, {name: {}})
    for name in ("params", "config", "ema_5"):
        with pytest.raises(ValueError, match=f"extra must not have the names .*; got \\['{name}'\\]"):
            init_state({}, optimizer, names, {name: {}})


@pytest.mark.parametrize(("clip", "decay"), [(0.0, 0.0), (0.5, 0.0), (100.0, 0.0), (0.5, 0.2)])
def test_optimizer_is_adam_after_the_clip(clip, decay):
    """With a decay AdamW: the clip and the moments do not see it."""
    b1, b2, eps, rate = 0.8, 0.95, 1e-3, 0.1
    learning_rate = make_learning_rate(rate, warmup_steps=3)
    optimizer = make_optimizer(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=decay, grad_clip=clip)
    grads = np.random.default_rng(1).normal(size=(6, 5))
    grads[2] *= 50
    params = {"w": jnp.full(3, 0.5), "v": jnp.full(2, 0.5)}
    opt_state, update = optimizer.init(params), jax.jit(optimizer.update)
    w, m, v = np.full(5, 0.5), np.zeros(5), np.zeros(5)
    for n, gradient in enumerate(grads):
        tree = {"w": jnp.asarray(gradient[:3], jnp.float32), "v": jnp.asarray(gradient[3:], jnp.float32)}
        updates, opt_state = update(tree, opt_state, params)
        params = jax.tree.map(lambda p, u: np.asarray(p) + np.asarray(u), params, updates)
        length = np.sqrt(np.sum(gradient**2))
        g = gradient * min(1, clip / length) if clip else gradient
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        step = (m / (1 - b1 ** (n + 1))) / (np.sqrt(v / (1 - b2 ** (n + 1))) + eps)
        w = w - rate * min((n + 1) / 3, 1) * (step + decay * w)
    np.testing.assert_allclose(np.concatenate([params["w"], params["v"]]), w, rtol=1e-5, atol=1e-6)


def test_first_step_zero_changes_nothing():
    optimizer = make_optimizer(make_learning_rate(0.1, warmup_steps=3, first_step_zero=True))
    params = {"w": jnp.ones(3)}
    updates, opt_state = optimizer.update({"w": jnp.ones(3)}, optimizer.init(params), params)
    assert not np.any(updates["w"])
    assert np.all(optimizer.update({"w": jnp.ones(3)}, opt_state, params)[0]["w"] != 0)


def test_init_state_shares_no_buffer():
    """Two names of one buffer could not both be donated."""
    state = init_state({"w": jnp.ones(3)}, make_optimizer(make_learning_rate(0.1)), ["0.9", "0.5"])
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    assert int(step(state).step) == 1
    assert all(tree["w"].is_deleted() for tree in (state.params, *state.ema.values()))


def test_averages_of_bfloat16_move():
    """A step of 1e-4 is below what bfloat16 resolves near 1; float32 follows the recursion."""
    params = {"w": jnp.ones(3, jnp.bfloat16), "n": jnp.arange(3)}
    state = init_state(params, make_optimizer(make_learning_rate(0.1)), ["0.9999"])
    ema, expected = state.ema, 1.0
    assert ema["0.9999"]["w"].dtype == jnp.float32 and ema["0.9999"]["n"].dtype == params["n"].dtype
    params, decays = {"w": jnp.zeros(3, jnp.bfloat16), "n": params["n"]}, make_ema_decays([0.9999], start="constant")
    update = jax.jit(lambda ema, n: update_averages({"0.9999": {"w": ema}}, {"w": params["w"]}, n, decays))
    average = ema["0.9999"]["w"]
    for n in range(1000):
        average = update(average, jnp.int32(n))["0.9999"]["w"]
        expected *= 0.9999
    np.testing.assert_allclose(average, expected, rtol=1000 * 2.0**-24)
    assert average.dtype == jnp.float32
