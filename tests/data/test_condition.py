"""Conditions: what an entry's spec says, dropping and mirroring, and one of a user's own through all that trains.

The user's own is an image, concatenated to x_t: its network, its data and its spec stand here, and nothing else in the
package knows it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.codecs.pixels import to_model_scale
from ddpm_jax.data.batch import Batch
from ddpm_jax.data.batch_loader import BatchLoader
from ddpm_jax.data.condition import Entry, drop, has_null, mirror, null_condition
from ddpm_jax.data.image_source import ArraySource
from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.losses import make_loss_fn
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers.ddim import ddim_table
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.evaluation.elbo_bits_per_dim import BitsPerDim
from ddpm_jax.experiment.generator import Generator
from ddpm_jax.models.parameters import init_params
from ddpm_jax.runtime.devices import make_mesh, put_batch
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.runtime.image_files import save_npz
from ddpm_jax.training.diffusion_objective import DiffusionObjective
from ddpm_jax.training.eval_loss import EvalLoss
from ddpm_jax.training.optimizer import make_ema_decays
from ddpm_jax.training.train_state import init_state
from ddpm_jax.training.train_step import make_train_step

SPEC = {
    "label": Entry(null=3),
    "hint": Entry((4, 4, 1), "float32", "spatial", null=0.0),
    "weight": Entry((2,), "float32", null=-1.0),
}
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (8, 4, 4, 1), dtype=np.uint8)
CONDITION = {
    "label": np.arange(8, dtype=np.int32) % 3,
    "hint": RNG.standard_normal((8, 4, 4, 1)).astype(np.float32),
    "weight": RNG.standard_normal((8, 2)).astype(np.float32),
}


def test_all_entries_of_a_dropped_image_are_null():
    dropped = jnp.array([True, False] * 4)
    got = drop(SPEC, CONDITION, dropped)
    for name, rows in null_condition(SPEC, 8).items():
        assert got[name].dtype == CONDITION[name].dtype
        np.testing.assert_array_equal(got[name][::2], rows[::2])
        np.testing.assert_array_equal(got[name][1::2], CONDITION[name][1::2])


def test_spatial_entries_are_mirrored_with_the_image():
    mirrored = jnp.array([True, False] * 4)
    got = mirror(SPEC, CONDITION, mirrored)
    np.testing.assert_array_equal(got["hint"][::2], CONDITION["hint"][::2, :, ::-1])
    np.testing.assert_array_equal(got["hint"][1::2], CONDITION["hint"][1::2])
    for name in ("label", "weight"):
        np.testing.assert_array_equal(got[name], CONDITION[name])


def test_a_null_is_of_all_entries():
    assert has_null(SPEC) and not has_null({}) and not has_null(SPEC | {"mask": Entry()})
    derived = {"grey": Entry((4, 4, 1), "float32", "spatial", derived=True)}  # is never dropped
    assert has_null(SPEC | derived) and not has_null(derived)
    assert set(null_condition(SPEC | derived, 2)) == set(SPEC)
    with pytest.raises(ValueError, match="condition 'mask' has no null"):
        null_condition({"mask": Entry()}, 2)
    with pytest.raises(ValueError, match="kind must be one of"):
        Entry(kind="image")


# One of a user's own

T = 10
PROCESS = Process(make_schedule("cosine", num_steps=T))
HINT = {"hint": Entry((4, 4, 1), "uint8", "spatial", null=0)}


class Concatenating(nn.Module):
    """A convolution over [x_t, hint]."""

    @nn.compact
    def __call__(self, x_t, t, condition, *, train=False):
        hint = to_model_scale(condition["hint"])
        return nn.Conv(1, (3, 3), name="conv")(jnp.concatenate([x_t, hint], axis=-1))


OBJECTIVE = DiffusionObjective(Concatenating(), make_loss_fn(PROCESS))


class Hinted(ArraySource):
    """Images whose hint is the image itself."""

    columns = {"hint": IMAGES}


def denoiser_of(params, condition):
    return make_denoiser(PROCESS, lambda x_t, t: Concatenating().apply({"params": params}, x_t, t, condition))


def condition_of(ids):
    return {"hint": IMAGES[ids % 8]}


@pytest.fixture(scope="module")
def params():
    example = {"hint": np.zeros((1, 4, 4, 1), np.uint8)}
    return init_params(Concatenating(), jax.random.key(0), (4, 4, 1), example)


@pytest.fixture(scope="module")
def trained(params):
    """(num_devices, num_parts, flip, drop_rate) -> the state after two steps on the batches of the loader."""

    def trained(num_devices=1, num_parts=1, **fields):
        mesh, optimizer = make_mesh(num_devices), optax.sgd(0.1)
        ema_decays = make_ema_decays([0.9])
        step_fn = jax.jit(
            make_train_step(
                OBJECTIVE, optimizer, ema_decays=ema_decays, spec=HINT, num_parts=num_parts, **fields
            )
        )
        state = init_state(params, optimizer, ema_decays)
        transform = lambda batch: put_batch(batch, mesh)  # noqa: E731
        with BatchLoader(
            Hinted(IMAGES), batch_size=8, seed=0, first_step=0, spec=HINT, transform=transform
        ) as batches:
            for _ in range(2):
                state, _ = step_fn(state, next(batches), jax.random.key(0))
        return jax.device_get(state.params)

    return trained


def kernel(params):
    return np.asarray(params["conv"]["kernel"])


def test_it_trains_alike_on_devices_and_in_parts(trained):
    one = trained()
    np.testing.assert_allclose(kernel(trained(num_devices=4, num_parts=2)), kernel(one), atol=1e-5)
    assert np.abs(kernel(one) - kernel(trained(drop_rate=0.5))).max() > 1e-4
    assert np.abs(kernel(one) - kernel(trained(flip=True))).max() > 1e-4


def test_what_is_dropped_is_not_seen():
    """Half of many images: those whose gradient by the hint is there are those that kept it."""
    seen = []

    class Seeing(Concatenating):
        @nn.compact
        def __call__(self, x_t, t, condition, *, train=False):
            jax.debug.callback(lambda hint: seen.append(hint), condition["hint"][:, 0, 0, 0])
            return nn.Conv(1, (1, 1))(x_t)

    step_fn = make_train_step(
        DiffusionObjective(Seeing(), make_loss_fn(PROCESS)),
        optax.sgd(1.0),
        ema_decays=make_ema_decays([0.9]),
        spec=HINT,
        drop_rate=0.25,
    )
    full = {"hint": np.full((4000, 1, 1, 1), 255, np.uint8)}
    batch = Batch(np.zeros((4000, 1, 1, 1), np.uint8), full)
    example = {"hint": np.zeros((1, 1, 1, 1), np.uint8)}
    state = init_state(init_params(Seeing(), jax.random.key(0), (1, 1, 1), example), optax.sgd(1.0), ["0.9"])
    seen.clear()
    jitted = jax.jit(step_fn)
    for step in (0, 0, 1):
        jax.block_until_ready(jitted(state.replace(step=jnp.int32(step)), batch, jax.random.key(0)))
    jax.effects_barrier()
    masks = [np.asarray(hint) == 0 for hint in seen if len(hint) == 4000]
    assert np.array_equal(masks[0], masks[1]) and not np.array_equal(masks[0], masks[2])
    assert abs(masks[0].mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)  # four deviations


def test_it_is_measured_and_drawn(params, tmp_path):
    hints = jax.device_put(condition_of(np.arange(8)))
    loss = jax.jit(OBJECTIVE.eval_losses)
    by_hand = loss(params, OBJECTIVE.frozen, Batch(IMAGES, hints), np.arange(8, dtype=np.int32), jax.random.key(1))
    held_out = EvalLoss(
        Hinted(IMAGES), OBJECTIVE.eval_losses, frozen=OBJECTIVE.frozen, key=jax.random.key(1),
        mesh=make_mesh(2), batch_size=4, spec=HINT,
    )  # fmt: skip
    np.testing.assert_allclose(held_out.mean_loss(params), np.mean(by_hand), rtol=1e-5)
    bits = [
        BitsPerDim(
            denoiser_of, PROCESS, Hinted(IMAGES), key=jax.random.key(0), mesh=make_mesh(n), batch_size=8, spec=HINT
        ).measure(params).total
        for n in (1, 8)
    ]  # fmt: skip
    np.testing.assert_allclose(bits[0], bits[1], rtol=1e-4)
    drawn = [
        Generator(
            denoiser_of, ddim_table(PROCESS.schedule), image_shape=(4, 4, 1), mesh=make_mesh(n), batch_size=8,
            condition_of=condition_of,
        ).generate(params, seed=0, num_samples=8)
        for n in (1, 4)
    ]  # fmt: skip
    assert np.abs(drawn[0].astype(int) - drawn[1]).max() <= 1
    save_npz(tmp_path / "x.npz", drawn[0], condition_of(np.arange(8)) | {"label": np.arange(8)})
    with np.load(tmp_path / "x.npz") as file:
        assert sorted(file) == ["arr_0", "arr_1", "hint"] and file["arr_1"].tolist() == list(range(8))


def test_what_is_refused():
    make = lambda **fields: make_train_step(  # noqa: E731
        OBJECTIVE, optax.sgd(0.1), ema_decays=make_ema_decays([0.9]), **fields
    )
    with pytest.raises(UserError, match=r"drop_rate must be in \[0, 1\); got 1"):
        make(spec=HINT, drop_rate=1.0)
    with pytest.raises(UserError, match=r"drop_rate=0.1 is for a condition with a null; got \[\]"):
        make(drop_rate=0.1)
    with pytest.raises(UserError, match="num_parts must be at least 1; got 0"):
        make(num_parts=0)
    with pytest.raises(UserError, match=r"the condition of a batch must have the entries of spec; it lacks \['hint'\]"):
        make(spec=HINT)(init_state({}, optax.sgd(0.1), ["0.9"], {}), Batch(IMAGES), jax.random.key(0))
    with pytest.raises(UserError, match="source must have the columns of spec; 'hint' is not in"):
        BatchLoader(ArraySource(IMAGES), batch_size=4, seed=0, first_step=0, spec=HINT)
