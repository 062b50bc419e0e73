"""The objective with self-conditioning: what the network sees in training, what reaches the gradient, and the coin."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.data.batch import Batch
from ddpm_jax.diffusion.forward_process import q_sample
from ddpm_jax.diffusion.losses import make_loss_fn
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.self_conditioning import with_estimate
from ddpm_jax.runtime.devices import batch_sharded, make_mesh, replicated
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.training.diffusion_objective import DiffusionObjective
from ddpm_jax.training.optimizer import make_ema_decays
from ddpm_jax.training.train_state import init_state
from ddpm_jax.training.train_step import make_train_step

T, SIZE = 20, (4, 4, 3)
PROCESS = Process(make_schedule("cosine", num_steps=T))
LOSS_FN = make_loss_fn(PROCESS)
SGD, EMA = optax.sgd(0.1), make_ema_decays([0.9])
IMAGES = np.random.default_rng(0).integers(0, 256, (16, *SIZE), dtype=np.uint8)
KEY = jax.random.key(3)  # of training; its first three steps have both kinds of steps
PARAMS = {name: np.float32(value) for name, value in (("a", 0.8), ("c", 0.4), ("first", 0.3))}


class Line(nn.Module):
    """a x_t + c x_0_prev, and `first` x_t in a call without an estimate."""

    @nn.compact
    def __call__(self, inputs, t, condition, *, train=False):
        x_t, x_0_prev = jnp.split(inputs, 2, axis=-1)
        a, c, first = (self.param(name, nn.initializers.ones, ()) for name in PARAMS)
        return a * x_t + c * x_0_prev + jnp.where(jnp.all(x_0_prev == 0), first, 0.0) * x_t


class Padded(nn.Module):
    """`Line` without self-conditioning, as a network of x_t."""

    @nn.compact
    def __call__(self, x_t, t, condition, *, train=False):
        line = Line()
        nn.share_scope(self, line)
        return line(jnp.concatenate([x_t, jnp.zeros_like(x_t)], axis=-1), t, condition, train=train)


def objective(rate=0.5, model=None):
    return DiffusionObjective(model or Line(), LOSS_FN, self_conditioning=True, self_conditioning_rate=rate)


def drawn_of(made, step=0):
    key = jax.random.fold_in(KEY, step)
    return made.draw(made.frozen, Batch(jnp.asarray(IMAGES)), key, {})[0]


def model_fn_of(params):
    return lambda x_t, t: Line().apply({"params": params}, x_t, t, {})


@jax.jit
def estimate_of(params, drawn):
    """By hand: x_0_hat of the call with zeros, limited."""
    x_t = q_sample(PROCESS.schedule, x_0=drawn.x_0, t=drawn.t, eps=drawn.eps)
    eps_hat = model_fn_of(params)(jnp.concatenate([x_t, jnp.zeros_like(x_t)], axis=-1), drawn.t)
    return jnp.clip(PROCESS.x_0_hat(eps_hat, x_t=x_t, t=drawn.t), -1, 1)


def test_no_gradient_flows_through_the_first_call():
    made = objective(rate=1.0)
    drawn = drawn_of(made)
    x_0_prev = estimate_of(PARAMS, drawn)

    @jax.jit
    def gradients(params):
        ours = lambda params: jnp.mean(made.losses(params, made.frozen, drawn, jax.random.key(1), {})[0]["loss"])  # noqa: E731

        def with_constant(params):
            model_fn = with_estimate(model_fn_of(params), x_0_prev)
            return jnp.mean(LOSS_FN(model_fn, x_0=drawn.x_0, t=drawn.t, eps=drawn.eps)["loss"])

        return jax.value_and_grad(ours)(params), jax.value_and_grad(with_constant)(params)

    (loss, grads), (expected, constant) = gradients(PARAMS)
    # `first` acts in the first call alone: the loss depends on it, the gradient is exactly 0.
    assert grads["first"] == 0
    assert abs(gradients(PARAMS | {"first": np.float32(0.5)})[0][0] - loss) > 1e-3
    # Sums of 768 float32 terms, in two programs.
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for name in ("a", "c"):
        np.testing.assert_allclose(grads[name], constant[name], rtol=1e-4)
        assert abs(grads[name]) > 1e-2


def run(made, num_steps, num_parts=1, num_devices=1):
    mesh = make_mesh(num_devices)
    step_fn = jax.jit(
        make_train_step(made, SGD, ema_decays=EMA, flip=True, num_parts=num_parts),
        in_shardings=(replicated(mesh), batch_sharded(mesh), replicated(mesh)),
        out_shardings=replicated(mesh),
    )
    state = jax.device_put(init_state(jax.tree.map(jnp.asarray, PARAMS), SGD, EMA), replicated(mesh))
    batch, losses = jax.device_put(Batch(jnp.asarray(IMAGES)), batch_sharded(mesh)), []
    for _ in range(num_steps):
        state, metrics = step_fn(state, batch, KEY)
        losses.append(float(metrics["loss"]))
    return jax.device_get(state.params), losses


def coins(made, steps):
    return np.array([bool(drawn_of(made, step).sees_estimate[0]) for step in steps])


def test_the_coin_is_one_per_step_and_of_the_rate():
    made = objective(rate=0.3)
    drawn = jax.jit(jax.vmap(lambda step: drawn_of(made, step).sees_estimate))(jnp.arange(400))
    assert drawn.shape == (400, 16) and np.all(drawn == drawn[:, :1])
    assert abs(np.mean(drawn[:, 0]) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)  # four deviations
    for rate in (0.0, 1.0):
        assert np.all(coins(objective(rate), range(4)) == bool(rate))


def test_rate_0_trains_the_network_with_zeros():
    plain = DiffusionObjective(Padded(), LOSS_FN)
    params, losses = run(objective(rate=0.0), 3)
    expected, plain_losses = run(plain, 3)
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-5)  # two programs: a few roundings a step
    for name, value in expected.items():
        np.testing.assert_allclose(params[name], value, rtol=1e-5)


def test_parts_and_devices_make_no_difference():
    made = objective()
    assert set(coins(made, range(3))) == {True, False}  # both kinds of steps
    params, losses = run(made, 3)
    for num_parts, num_devices in ((4, 1), (2, 8)):
        other, other_losses = run(made, 3, num_parts, num_devices)
        # Sums in another order, over three steps.
        np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
        for name, value in params.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-4)


def test_both_calls_are_in_training_mode():
    """Algorithm 1 of the paper calls the same network twice; `test_keys` sees that they drop out different things."""
    seen = []

    class Seen(Line):
        @nn.compact
        def __call__(self, inputs, t, condition, *, train=False):
            seen.append(train and self.has_rng("dropout"))
            return inputs[..., : SIZE[-1]] * self.param("a", nn.initializers.ones, ())

    made = objective(1.0, Seen())
    made.losses(PARAMS, made.frozen, drawn_of(made), jax.random.key(1), {})
    assert seen == [True, True]


def test_the_eval_loss_is_that_with_zeros():
    batch, ids = Batch(jnp.asarray(IMAGES)), jnp.arange(16)
    losses = [
        jax.jit(made.eval_losses)(PARAMS, made.frozen, batch, ids, jax.random.key(2))
        for made in (objective(1.0), DiffusionObjective(Padded(), LOSS_FN))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_parameters_are_those_of_twice_the_channels(tiny_unet):
    made = objective(model=tiny_unet.clone(out_channels=3))
    params = jax.eval_shape(lambda key: made.init_params(key, (8, 8, 3), {}), jax.random.key(0))
    assert params["conv_in"]["kernel"].shape[2] == 6 and params["conv_out"]["kernel"].shape[3] == 3


@pytest.mark.parametrize("rate", [-0.1, 1.5, np.nan])
def test_a_rate_out_of_its_range_is_an_error(rate):
    with pytest.raises(UserError, match=r"^self_conditioning_rate must be in \[0, 1\]; got"):
        objective(rate)
