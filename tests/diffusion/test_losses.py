"""The regression losses against NumPy; the bound as a loss is tested with the likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.forward_process import q_posterior_mean, q_sample
from ddpm_jax.diffusion.losses import BOUNDS, make_loss_fn
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.runtime.errors import UserError

SCHEDULE = make_schedule("linear", num_steps=100)
T = np.array([0, 3, 50, 99])
SHAPE = (4, 5, 2, 3)


def case(seed=0):
    rng = np.random.default_rng(seed)
    return (jnp.asarray(rng.standard_normal(SHAPE), jnp.float32) for _ in range(2))


def model_fn(x_t, t):
    return 0.7 * x_t + 0.01 * t.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
@pytest.mark.parametrize("loss", ["simple", "l1", "huber"])
def test_formulas(loss, prediction):
    x_0, eps = (np.asarray(a, np.float64) for a in case())
    bar = SCHEDULE.host_alphas_bar[T].reshape(-1, 1, 1, 1)
    x_t = np.sqrt(bar) * x_0 + np.sqrt(1 - bar) * eps
    target = {"eps": eps, "x_0": x_0, "v": np.sqrt(bar) * eps - np.sqrt(1 - bar) * x_0}[prediction]
    error = np.abs(target - model_fn(x_t, T))
    values = {
        "simple": error**2,
        "l1": error,
        "huber": np.where(error <= 0.5, error**2, 2 * 0.5 * error - 0.5**2),
    }[loss]
    loss_fn = make_loss_fn(Process(SCHEDULE, prediction=prediction), loss=loss, huber_delta=0.5)
    x_0, eps = case()
    got = loss_fn(model_fn, x_0=x_0, t=jnp.asarray(T), eps=eps)["loss"]
    assert got.shape == (4,) and got.dtype == jnp.float32
    # Errors of size 1 to 5 carry some ulp of the numbers they are differences of.
    np.testing.assert_allclose(got, values.reshape(4, -1).mean(1), rtol=1e-5)


@pytest.mark.parametrize("loss", ["simple", "l1", "huber"])
def test_the_loss_of_a_region_is_the_mean_over_it(loss):
    x_0, eps = case()
    loss_fn = make_loss_fn(Process(SCHEDULE), loss=loss)
    region = jnp.asarray(np.random.default_rng(1).integers(0, 2, (*SHAPE[:3], 1)), jnp.float32).at[3].set(0)
    at = {"x_0": x_0, "t": jnp.asarray(T), "eps": eps}
    got = loss_fn(model_fn, region=region, **at)["loss"]
    # The mean over a region is the mean over everything of an image that is right elsewhere, times the ratio of sizes.
    right = lambda x_t, t: jnp.where(region > 0, model_fn(x_t, t), eps)  # noqa: E731
    share = np.asarray(region).reshape(4, -1).mean(1)
    np.testing.assert_allclose(got * share, loss_fn(right, **at)["loss"], rtol=1e-6)
    assert got[3] == 0 and np.all(got[:3] > 0)
    everything = loss_fn(model_fn, region=jnp.ones_like(region), **at)["loss"]
    np.testing.assert_allclose(everything, loss_fn(model_fn, **at)["loss"], rtol=1e-6)


def test_a_bound_has_no_region():
    x_0, eps = case()
    loss_fn = make_loss_fn(Process(SCHEDULE), loss="vlb")
    with pytest.raises(UserError, match="loss='vlb' is of whole images; for a region take 'simple'"):
        loss_fn(model_fn, x_0=x_0, t=jnp.asarray(T), eps=eps, region=jnp.ones((*SHAPE[:3], 1)))


def test_huber_is_l2_for_wide_deltas_and_l1_for_narrow_ones():
    x_0, eps = case()
    arguments = dict(x_0=x_0, t=jnp.asarray(T), eps=eps)
    simple = make_loss_fn(Process(SCHEDULE))(model_fn, **arguments)["loss"]
    wide = make_loss_fn(Process(SCHEDULE), loss="huber", huber_delta=1e3)(model_fn, **arguments)["loss"]
    np.testing.assert_array_equal(wide, simple)
    l1 = make_loss_fn(Process(SCHEDULE), loss="l1")(model_fn, **arguments)["loss"]
    narrow = make_loss_fn(Process(SCHEDULE), loss="huber", huber_delta=1e-4)(model_fn, **arguments)["loss"]
    # 2 delta |e| - delta^2, divided by 2 delta, is |e| - delta/2: at most 1e-4 less than |e|.
    np.testing.assert_allclose(narrow / 2e-4, l1, atol=1e-4)


def test_huber_is_smooth_where_it_turns():
    def huber(e):
        x_0 = jnp.zeros((1, 1))
        loss_fn = make_loss_fn(Process(SCHEDULE, prediction="x_0"), loss="huber", huber_delta=0.5)
        return loss_fn(lambda x_t, t: x_0 + e, x_0=x_0, t=jnp.array([0]), eps=x_0)["loss"][0]

    inside, outside = (jax.value_and_grad(huber)(e) for e in (0.5 * (1 - 1e-6), 0.5 * (1 + 1e-6)))
    np.testing.assert_allclose(inside, outside, rtol=1e-5)
    np.testing.assert_allclose(inside, (0.25, 1.0), rtol=1e-5)


@pytest.mark.parametrize("loss", ["simple", "l1", "huber", "vlb", "rescaled_vlb"])
@pytest.mark.parametrize("prediction", ["eps", "x_0", "v", "mean"])
def test_a_perfect_network_has_the_smallest_loss_and_a_loss_per_sample(loss, prediction):
    x_0, eps = case()
    x_0, t = jnp.tanh(x_0), jnp.asarray(T)
    bar = jnp.asarray(SCHEDULE.host_alphas_bar[T].reshape(-1, 1, 1, 1), jnp.float32)
    v = jnp.sqrt(bar) * eps - jnp.sqrt(1 - bar) * x_0
    mean = q_posterior_mean(SCHEDULE, x_0=x_0, x_t=q_sample(SCHEDULE, x_0=x_0, t=t, eps=eps), t=t)
    truth = {"eps": eps, "x_0": x_0, "v": v, "mean": mean}[prediction]
    loss_fn = make_loss_fn(Process(SCHEDULE, prediction=prediction, variance="fixed_small"), loss=loss)
    best = loss_fn(lambda x_t, t: truth, x_0=x_0, t=t, eps=eps)["loss"]
    off = loss_fn(lambda x_t, t: truth.at[2].add(0.5), x_0=x_0, t=t, eps=eps)["loss"]
    assert best.shape == (4,)
    np.testing.assert_array_equal(off[jnp.array([0, 1, 3])], best[jnp.array([0, 1, 3])])
    assert off[2] > best[2]
    regression = slice(1, None) if loss in BOUNDS else slice(None)  # the decoder's term at t=0 is no distance
    np.testing.assert_allclose(best[regression], 0, atol=1e-5 * (100 if loss == "rescaled_vlb" else 1))


def test_nothing_is_clipped_in_training():
    """The bound of a network far outside [-1, 1] still pulls it back."""
    loss_fn = make_loss_fn(Process(SCHEDULE, prediction="x_0"), loss="vlb")
    x_0 = jnp.zeros((1, 3))
    f = lambda w: loss_fn(lambda x_t, t: w + 0 * x_t, x_0=x_0, t=jnp.array([5]), eps=x_0)["loss"][0]  # noqa: E731
    assert f(4.0) > f(2.0) and jax.grad(f)(4.0) > 0


@pytest.mark.parametrize(
    "variance,settings,message",
    [
        ("fixed_large", dict(loss="mse"), "loss must be one of"),
        ("learned", dict(), "'learned' is not trained by loss='simple': take 'hybrid', 'vlb'"),
        ("fixed_large", dict(loss="hybrid"), "trains a learned variance; got variance='fixed_large': take"),
        ("learned", dict(loss="hybrid", vlb_lambda=0.0), "vlb_lambda must be above 0; got 0.0"),
        ("fixed_large", dict(loss="vlb", weights=jnp.ones(100)), "weights must be None with loss='vlb'"),
        ("fixed_large", dict(loss="huber", huber_delta=0.0), "huber_delta must be above 0; got 0.0"),
    ],
)
def test_what_is_refused(variance, settings, message):
    with pytest.raises(UserError, match=message):
        make_loss_fn(Process(SCHEDULE, variance=variance), **settings)
