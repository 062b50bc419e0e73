"""The train step: parts, clipping, devices, flips, dropout and keys, each against a slower or smaller way."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.codecs.pixels import to_model_scale
from ddpm_jax.data.batch import Batch
from ddpm_jax.diffusion.losses import LossFn, make_loss_fn
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_samplers import make_timestep_sampler
from ddpm_jax.runtime.devices import batch_sharded, make_mesh, replicated
from ddpm_jax.training.diffusion_objective import DiffusionObjective
from ddpm_jax.training.optimizer import make_ema_decays
from ddpm_jax.training.train_state import init_state
from ddpm_jax.training.train_step import _random_flip, make_train_step

T = 20
PROCESS = Process(make_schedule("cosine", num_steps=T))
LOSS_FN = make_loss_fn(PROCESS)
SGD = optax.sgd(0.1)
EMA = make_ema_decays([0.9])


class Line(nn.Module):
    """a[h, w, c] * x_t + b * t/T: a 'network' whose gradients compile at once; dropout zeroes parts of x_t."""

    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_t, t, condition, *, train=False):
        a = self.param("a", nn.initializers.ones, x_t.shape[1:])
        b = self.param("b", nn.initializers.ones, ())
        if train and self.dropout:
            x_t = x_t * self.mask(self.make_rng("dropout"), x_t.shape)
        return a[None] * x_t + b / T * t[:, None, None, None]

    def mask(self, key, shape):
        return jax.random.bernoulli(key, 1 - self.dropout, shape)


# NumPy here and below: every JAX operation outside a jit is a small program to compile.
PARAMS = {"a": np.linspace(-20, 20, 48, dtype=np.float32).reshape(4, 4, 3), "b": np.float32(0.3)}


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (16, 4, 4, 3), dtype=np.uint8))


def make(model=None, optimizer=SGD, ema="constant", *, loss_fn=LOSS_FN, time_sampler=None, **kwargs):
    objective = DiffusionObjective(model or Line(), loss_fn, time_sampler)
    return make_train_step(objective, optimizer, ema_decays=make_ema_decays([0.9], start=ema), **kwargs)


def run(step_fn, images, num_steps=1, optimizer=SGD, key=0, start=0):
    state = jax.jit(lambda: init_state(jax.tree.map(jnp.asarray, PARAMS), optimizer, EMA))()
    state = state.replace(step=jnp.asarray(np.int32(start)))
    jitted = jax.jit(step_fn)
    for _ in range(num_steps):
        state, metrics = jitted(state, Batch(images), jax.random.key(key))
    return state, metrics


def close(one, other, atol):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@jax.jit
def draws(images, key=0, step=0):
    """x_0, t and eps of a step without flips, by the rule in its docstring."""
    _, key_t, key_eps, _ = jax.random.split(jax.random.fold_in(jax.random.key(key), step), 4)
    x_0 = to_model_scale(images)
    return x_0, jax.random.randint(key_t, (len(x_0),), 0, T), jax.random.normal(key_eps, x_0.shape)


@jax.jit
def gradient(x_0, t, eps):
    def mean(params):
        return jnp.mean(
            LOSS_FN(lambda x_t, t: Line().apply({"params": params}, x_t, t, {}), x_0=x_0, t=t, eps=eps)["loss"]
        )

    return jax.grad(mean)(jax.tree.map(jnp.asarray, PARAMS))


def norm(tree):
    return float(np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in jax.tree.leaves(tree))))


@pytest.mark.parametrize("num_parts", [2, 4])
def test_parts_equal_the_full_batch(images, num_parts):
    whole, whole_metrics = run(make(), images)
    parts, metrics = run(make(num_parts=num_parts), images)
    # Sums of up to 16 * 48 float32 terms in another order: some 30 roundings of 6e-8 of a gradient below 50.
    close(parts.params, whole.params, 0.1 * 30 * 6e-8 * 50)
    close(metrics, whole_metrics, 1e-4)
    assert norm(jax.tree.map(lambda a, b: np.asarray(a) - b, whole.params, PARAMS)) > 0.1


@pytest.mark.parametrize("num_parts", [1, 4])
def test_each_part_is_clipped_alone(images, num_parts):
    x_0, t, eps = jax.device_get(draws(images))
    clipped = []
    for part in range(num_parts):
        grads = gradient(*(array[part::num_parts] for array in (x_0, t, eps)))
        assert norm(grads) > 1.1  # or clipping would do nothing
        scale = 1 / max(norm(grads), 1.0)
        clipped.append({name: scale * np.asarray(g) for name, g in grads.items()})
    mean = jax.tree.map(lambda *parts: sum(parts) / num_parts, *clipped)
    state, metrics = run(make(num_parts=num_parts, clip_each_part=1.0), images)
    close(state.params, jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, mean), 4e-6)
    np.testing.assert_allclose(metrics["grad_norm"], norm(mean), rtol=1e-5)
    if num_parts == 1:
        globally = optax.chain(optax.clip_by_global_norm(1.0), SGD)
        close(run(make(optimizer=globally), images, optimizer=globally)[0].params, state.params, 4e-6)


def test_grad_norm_is_before_the_clip(images):
    optimizer = optax.chain(optax.clip_by_global_norm(0.01), SGD)
    _, metrics = run(make(optimizer=optimizer), images, optimizer=optimizer)
    np.testing.assert_allclose(metrics["grad_norm"], norm(gradient(*draws(images))), rtol=1e-5)


@pytest.mark.parametrize("num_parts", [1, 2])
def test_eight_devices_equal_one(images, num_parts):
    results = []
    for count in (1, 8):
        mesh = make_mesh(count)
        step_fn = jax.jit(
            make(flip=True, num_parts=num_parts),
            in_shardings=(replicated(mesh), batch_sharded(mesh), replicated(mesh)),
            out_shardings=replicated(mesh),
        )
        state = jax.device_put(init_state(jax.tree.map(jnp.asarray, PARAMS), SGD, EMA), replicated(mesh))
        batch = jax.device_put(Batch(images), batch_sharded(mesh))
        losses = []
        for _ in range(3):
            state, metrics = step_fn(state, batch, jax.random.key(0))
            losses.append(float(metrics["loss"]))
        results.append((losses, jax.device_get(state.params)))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-6)
    close(results[1][1], results[0][1], 1e-5)


def test_flips_are_of_half_the_images_and_of_key_and_step():
    x_0 = jnp.asarray(np.random.default_rng(2).normal(size=(400, 2, 3, 1)), jnp.float32)
    flip = jax.jit(lambda key, x_0: _random_flip(key, x_0, {}, {})[0])
    once, again, other = (np.asarray(flip(jax.random.key(key), x_0)) for key in (0, 0, 1))
    x_0 = np.asarray(x_0)
    mirrored = np.array([np.array_equal(f, x[:, ::-1]) for f, x in zip(once, x_0, strict=True)])
    kept = np.array([np.array_equal(f, x) for f, x in zip(once, x_0, strict=True)])
    assert np.all(mirrored ^ kept)
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(400)  # four deviations
    assert np.array_equal(once, again) and not np.array_equal(once, other)


def test_step_applies_flips_where_told(images):
    symmetric = jnp.asarray(np.concatenate([images, np.asarray(images)[:, :, ::-1]], axis=2))
    assert loss_of_zero(symmetric, True) == loss_of_zero(symmetric, False)  # a mirror image of itself
    assert loss_of_zero(images, True) != loss_of_zero(images, False)


def loss_of_zero(images, flip):
    class Zero(Line):
        @nn.compact
        def __call__(self, x_t, t, condition, *, train=False):
            return jnp.zeros_like(x_t)

    loss_fn = make_loss_fn(Process(make_schedule("cosine", num_steps=T), prediction="v"))
    step_fn = make(Zero(), loss_fn=loss_fn, flip=flip)
    return float(run(step_fn, images)[1]["loss"])


def test_randomness_is_of_key_and_step_alone(images):
    step_fn = make(Line(dropout=0.5), flip=True)
    at_7 = run(step_fn, images, start=7)
    assert equal(at_7, run(step_fn, images, start=7))
    assert at_7[1]["loss"] != run(step_fn, images, start=8)[1]["loss"]
    assert at_7[1]["loss"] != run(step_fn, images, start=7, key=1)[1]["loss"]
    # Seven steps before make no difference to what step 7 draws.
    state, _ = run(step_fn, images, num_steps=7)
    after = jax.jit(step_fn)(state.replace(params=jax.tree.map(jnp.asarray, PARAMS)), Batch(images), jax.random.key(0))
    assert equal(at_7[1], after[1])


def test_dropout_differs_by_step_and_part(images):
    """With t and eps taken out of the loss, only dropout is left."""

    def loss_fn(model_fn, x_0, t, eps):
        return {"loss": jnp.mean(model_fn(jnp.ones_like(x_0), 0 * t), axis=(1, 2, 3))}

    def loss(num_parts=1, start=0, dropout=0.5):
        model = Line(dropout)
        step_fn = make(model, loss_fn=LossFn(PROCESS, loss_fn), num_parts=num_parts)
        return float(run(step_fn, images, start=start)[1]["loss"])

    assert loss(start=0) != loss(start=1)
    assert loss(start=0, dropout=0.0) == loss(start=1, dropout=0.0)
    seen = []

    class Watched(Line):
        def mask(self, key, shape):
            jax.debug.callback(lambda data: seen.append(tuple(np.asarray(data).tolist())), jax.random.key_data(key))
            return super().mask(key, shape)

    step_fn = make(Watched(0.5), loss_fn=LossFn(PROCESS, loss_fn), num_parts=4)
    run(step_fn, images)
    jax.effects_barrier()
    assert len(set(seen)) == 4


@pytest.mark.parametrize("num_parts", [1, 4])
def test_t_bins_count_all_images(images, num_parts):
    _, metrics = run(make(num_parts=num_parts), images)
    assert float(metrics["loss_t"].count.sum()) == len(images)
    np.testing.assert_allclose(metrics["loss_t"].total.sum() / len(images), metrics["loss"], rtol=1e-5)
    x_0, t, eps = draws(images)
    params = jax.tree.map(jnp.asarray, PARAMS)
    losses = jax.jit(
        lambda x_0, t, eps: LOSS_FN(lambda x_t, t: Line().apply({"params": params}, x_t, t, {}), x_0=x_0, t=t, eps=eps)
    )(x_0, t, eps)["loss"]
    for i in range(4):
        inside = (np.asarray(t) >= 5 * i) & (np.asarray(t) < 5 * (i + 1))
        assert float(metrics["loss_t"].count[i]) == inside.sum()
        np.testing.assert_allclose(metrics["loss_t"].total[i], np.asarray(losses)[inside].sum(), rtol=1e-5)


def test_no_product_of_matrices_outside_of_the_network(images):
    """A TPU would round what goes into it to bfloat16."""
    state = jax.eval_shape(lambda: init_state(jax.tree.map(jnp.asarray, PARAMS), SGD, EMA))
    program = jax.make_jaxpr(make(num_parts=2))(state, Batch(images), jax.eval_shape(lambda: jax.random.key(0)))
    assert "dot_general" not in str(program)


@pytest.mark.parametrize("num_devices,num_parts", [(1, 1), (8, 2)])
def test_importance_sampling_weighs_the_loss_and_remembers_it(images, num_devices, num_parts):
    """One step from a history that prefers some t; the history after it is the same on eight devices."""
    sampler = make_timestep_sampler("loss_second_moment", T)
    before = jnp.asarray(np.linspace(0.1, 2, T), jnp.float32)
    history = sampler.update(sampler.init(), jnp.tile(jnp.arange(T), 10), jnp.tile(before, 10))
    mesh = make_mesh(num_devices)
    step_fn = jax.jit(
        make(time_sampler=sampler, num_parts=num_parts),
        in_shardings=(replicated(mesh), batch_sharded(mesh), replicated(mesh)),
        out_shardings=replicated(mesh),
    )
    state = init_state(jax.tree.map(jnp.asarray, PARAMS), SGD, EMA, {"t_history": history})
    state = jax.device_put(state, replicated(mesh))
    after, metrics = step_fn(state, jax.device_put(Batch(images), batch_sharded(mesh)), jax.random.key(0))

    _, key_t, key_eps, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 4)
    t, weights = sampler.sample(history, key_t, 16)
    x_0, eps = to_model_scale(images), jax.random.normal(key_eps, images.shape)

    def mean(params):
        losses = LOSS_FN(lambda x_t, t: Line().apply({"params": params}, x_t, t, {}), x_0=x_0, t=t, eps=eps)["loss"]
        return jnp.mean(weights * losses), losses

    params = jax.tree.map(jnp.asarray, PARAMS)
    (loss, losses), grads = jax.jit(jax.value_and_grad(mean, has_aux=True))(params)
    assert len(np.unique(weights)) > 3
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    close(after.params, jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, jax.device_get(grads)), 2e-5)
    expected = sampler.update(history, t, losses)
    np.testing.assert_array_equal(after.extra["t_history"].counts, expected.counts)
    np.testing.assert_allclose(after.extra["t_history"].losses, expected.losses, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_t"].count.sum(), weights.sum(), rtol=1e-5)


def test_the_parts_of_the_loss_are_reported(images):
    def loss_fn(model_fn, x_0, t, eps):
        losses = jnp.mean((eps - model_fn(x_0, t)) ** 2, axis=(1, 2, 3))
        return {"loss": losses + 3.0, "simple": losses, "vlb": jnp.full_like(losses, 3.0)}

    step_fn = make(loss_fn=LossFn(PROCESS, loss_fn))
    metrics = run(step_fn, images)[1]
    assert float(metrics["vlb"]) == 3.0
    np.testing.assert_allclose(metrics["loss"], metrics["simple"] + 3, rtol=1e-6)


def test_ema_follows_the_new_parameters(images):
    state, _ = run(make(), images)
    wanted = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * np.asarray(new), PARAMS, state.params)
    close(state.ema_params, wanted, 4e-6)  # two roundings at 20
    assert int(state.step) == 1
    copied, _ = run(make(ema="copy_first"), images)
    assert equal(copied.ema_params, copied.params)


def test_each_average_is_what_it_is_alone(images):
    ema_decays = make_ema_decays([0.9, 0.5], start="constant")
    params = jax.tree.map(jnp.asarray, PARAMS)
    step_fn = jax.jit(make_train_step(DiffusionObjective(Line(), LOSS_FN), SGD, ema_decays=ema_decays))
    state = init_state(params, SGD, ema_decays)
    for _ in range(2):
        state, _ = step_fn(state, Batch(images), jax.random.key(0))
    assert equal(state.ema_params, state.ema["0.9"]) and not equal(state.ema["0.9"], state.ema["0.5"])
    assert equal(state.ema_params, run(make(), images, num_steps=2)[0].ema_params)


def test_a_step_that_is_not_finite_is_skipped(images):
    """A NaN in the network, and not in what it reports: only the step is counted; the next step is as if alone."""

    class Broken(Line):
        @nn.compact
        def __call__(self, x_t, t, condition, *, train=False):
            return super().__call__(x_t, t, condition, train=train) * self.param("nan", nn.initializers.ones, ())

    adam = optax.adam(0.1)
    time_sampler = make_timestep_sampler("loss_second_moment", T)
    step_fn = jax.jit(make(Broken(), adam, skip_nonfinite=True, time_sampler=time_sampler))
    history = time_sampler.init()
    good = init_state(jax.tree.map(jnp.asarray, PARAMS | {"nan": np.float32(1)}), adam, EMA, {"t_history": history})
    bad = good.replace(params=good.params | {"nan": jnp.float32(np.nan)})
    after, metrics = step_fn(bad, Batch(images), jax.random.key(0))
    assert np.isnan(metrics["loss"]) and int(after.step) == 1
    for name in ("params", "ema", "opt_state", "extra"):
        for now, before in zip(*map(jax.tree.leaves, (getattr(after, name), getattr(bad, name))), strict=True):
            np.testing.assert_array_equal(now, before)
    taken, metrics = step_fn(good, Batch(images), jax.random.key(0))
    assert np.isfinite(metrics["loss"]) and not equal(taken.params, good.params)


def test_param_norm_is_of_the_new_parameters(images):
    state, metrics = run(make(), images)
    norm = np.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(jax.device_get(state.params))))
    assert float(metrics["param_norm"]) == pytest.approx(norm, rel=1e-6)


class Told(DiffusionObjective):
    """With other losses, weights and metrics."""

    def losses(self, params, frozen, drawn, key, extra):
        found, of_part = super().losses(params, frozen, drawn, key, extra)
        return self.change(found), of_part

    def update(self, extra, drawn, weights, losses, of_parts):
        extra, metrics = super().update(extra, drawn, weights, losses, of_parts)
        return extra, metrics | self.more

    change, more = staticmethod(dict), {}


@pytest.mark.parametrize("num_parts", [1, 2])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"change": lambda found: {"loss": found["loss"][:, None]}}, r"must give losses \[B\] by name"),
        ({"change": lambda found: {"loss": jnp.mean(found["loss"])}}, r"must give losses \[B\] by name"),
        ({"change": lambda found: {"other": found["loss"]}}, "'loss' among them"),
        ({"change": lambda found: found | {"grad_norm": found["loss"]}}, r"none of \('grad_norm', 'param_norm'\)"),
        ({"more": {"loss": jnp.ones(())}}, r"must not have the names of losses and norms; got \['loss'\]"),
    ],
)
def test_an_objective_that_breaks_its_promise(images, fields, message, num_parts):
    objective = type("Broken", (Told,), {n: staticmethod(v) if callable(v) else v for n, v in fields.items()})
    step_fn = make_train_step(objective(Line(), LOSS_FN), SGD, ema_decays=EMA, num_parts=num_parts)
    state = jax.eval_shape(lambda: init_state(jax.tree.map(jnp.asarray, PARAMS), SGD, EMA))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(step_fn, state, Batch(images), jax.random.key(0))
