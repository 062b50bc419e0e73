"""A network with classes, all the way: labels into training, the bound and the flow, classes out of samples."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import evaluate
from ddpm_jax.data import BatchLoader, batch_indices, make_source
from ddpm_jax.data.batch import Batch
from ddpm_jax.data.condition import Entry
from ddpm_jax.data.image_source import ArraySource
from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.losses import LossFn, make_loss_fn
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers.ancestral import ancestral_table
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.evaluation.elbo_bits_per_dim import BitsPerDim
from ddpm_jax.evaluation.ode_bits_per_dim import OdeBits
from ddpm_jax.experiment import class_condition, data_factory
from ddpm_jax.experiment.generator import Generator
from ddpm_jax.experiment.training import train
from ddpm_jax.runtime.devices import make_mesh
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.training.diffusion_objective import DiffusionObjective
from ddpm_jax.training.optimizer import make_ema_decays
from ddpm_jax.training.train_state import init_state
from ddpm_jax.training.train_step import make_train_step

T = 20
SCHEDULE = make_schedule("cosine", num_steps=T)
PARAMS = {"w": np.linspace(-0.6, 0.6, 3, dtype=np.float32)}  # a "network" that knows its class and nothing else
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 2, 2, 1), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2, 2, 2])
SPEC = {"label": Entry()}


class Constant(nn.Module):
    """w[label] everywhere."""

    @nn.compact
    def __call__(self, x_t, t, condition, *, train=False):
        w = self.param("w", nn.initializers.zeros, 3)
        return jnp.zeros_like(x_t) + w[condition["label"]][:, None, None, None]


def denoiser_of(params, condition):
    return make_denoiser(Process(SCHEDULE), lambda x_t, t: Constant().apply({"params": params}, x_t, t, condition))


def constant_denoiser(label):
    return lambda params, condition: denoiser_of(params, {"label": jnp.full(1, label)})


@pytest.mark.parametrize("num_parts", [1, 4])
def test_each_picture_trains_its_own_class(num_parts):
    """The gradient of w[c] is the mean over all pictures of 2 (w[c] - eps) [label = c]."""
    seen = {}

    def loss_fn(model_fn, *, x_0, t, eps):
        return {"loss": jnp.mean((model_fn(x_0, t) - eps) ** 2, (1, 2, 3)), "eps": jnp.mean(eps, (1, 2, 3))}

    step_fn = make_train_step(
        DiffusionObjective(Constant(), LossFn(Process(SCHEDULE), loss_fn)),
        optax.sgd(1.0),
        ema_decays=make_ema_decays([0.9]),
        num_parts=num_parts,
    )
    state = init_state(jax.tree.map(jnp.asarray, PARAMS), optax.sgd(1.0), ["0.9"])
    new, _ = jax.jit(step_fn)(state, Batch(IMAGES, {"label": LABELS}), jax.random.key(0))
    _, _, key_eps, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 4)
    eps = np.asarray(jax.random.normal(key_eps, IMAGES.shape)).mean((1, 2, 3))
    for label in range(3):
        mine = np.flatnonzero(label == LABELS)
        seen[label] = PARAMS["w"][label] - sum(2 * (PARAMS["w"][label] - eps[mine])) / len(LABELS)
    np.testing.assert_allclose(new.params["w"], [seen[label] for label in range(3)], rtol=0, atol=1e-6)


def test_the_loader_gives_each_picture_its_label():
    source = ArraySource(IMAGES, LABELS)
    with BatchLoader(source, batch_size=4, seed=1, first_step=2, spec=SPEC) as loader:
        for step in range(2, 7):
            images, condition = next(loader)
            labels = condition["label"]
            wanted = batch_indices(seed=1, step=step, batch_size=4, num_examples=8)
            assert labels.dtype == np.int32
            assert np.array_equal(images, IMAGES[wanted]) and np.array_equal(labels, LABELS[wanted])
    with pytest.raises(UserError, match="^source must have the columns of spec; 'label' is not in"):
        BatchLoader(ArraySource(IMAGES), batch_size=4, seed=0, first_step=0, spec=SPEC)


def test_the_eval_loss_is_that_of_each_pictures_class():
    objective = DiffusionObjective(Constant(), make_loss_fn(Process(SCHEDULE)))
    losses = jax.jit(objective.eval_losses)
    ids, key = np.arange(8), jax.random.key(0)
    all_labels = {
        label: losses(PARAMS, objective.frozen, Batch(IMAGES, {"label": np.full(8, label)}), ids, key)
        for label in range(3)
    }
    wanted = [all_labels[label][i] for i, label in enumerate(LABELS)]
    assert np.array_equal(losses(PARAMS, objective.frozen, Batch(IMAGES, {"label": LABELS}), ids, key), wanted)


def test_samples_are_of_the_classes_in_turn():
    def images_of(denoiser_of, classes, batch_size=8, num_devices=8):
        made = Generator(
            denoiser_of, ancestral_table(Process(SCHEDULE)), image_shape=(2, 2, 1), mesh=make_mesh(num_devices),
            batch_size=batch_size,
            condition_of=lambda ids: {"label": np.asarray(classes)[ids % len(classes)]} if classes else {},
        )  # fmt: skip
        return made.generate(PARAMS, seed=0, num_samples=11)

    mixed = images_of(denoiser_of, (2, 0))
    of_class = {label: images_of(constant_denoiser(label), ()) for label in (0, 2)}
    assert np.any(of_class[0] != of_class[2])
    assert np.array_equal(mixed[::2], of_class[2][::2]) and np.array_equal(mixed[1::2], of_class[0][1::2])
    assert np.array_equal(images_of(denoiser_of, (2, 0), batch_size=3, num_devices=1), mixed)


@pytest.mark.parametrize("kind", ["bound", "flow"])
def test_the_likelihood_is_that_of_each_pictures_class(kind):
    def of_class(denoiser_of, labels):
        shared = dict(key=jax.random.key(0), mesh=make_mesh(2), batch_size=4, spec={} if labels is None else SPEC)
        source = ArraySource(IMAGES, labels)
        if kind == "bound":
            return BitsPerDim(denoiser_of, Process(SCHEDULE), source, **shared).measure(PARAMS).total
        return OdeBits(denoiser_of, SCHEDULE, source, num_ode_steps=3, num_probes=1, **shared).measure(PARAMS)

    mixed = of_class(denoiser_of, LABELS)
    for label in (0, 2):
        mine = label == LABELS
        assert np.array_equal(mixed[mine], of_class(constant_denoiser(label), None)[mine])


@pytest.fixture(scope="module")
def run_with_classes(tiny_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("classes")
    config = tiny_config(
        "model.num_classes=10", "train.num_steps=4", "train.checkpoint_every_steps=4", "sample.num_sampler_steps=5"
    )
    assert train(config, str(workdir)) is None
    return str(workdir)


def test_a_whole_run(run_with_classes, tmp_path, sample_main, capsys):
    """Trained, sampled and evaluated by the commands."""
    command = [f"--workdir={run_with_classes}", "--nocompilation_cache", "--num_samples=12"]
    assert sample_main([*command, f"--out={tmp_path / 'all'}"]) == 0
    assert "classes as arr_1" in capsys.readouterr().out
    with np.load(tmp_path / "all.npz") as file:
        assert np.array_equal(file["arr_1"], np.arange(12) % 10) and file["arr_1"].dtype == np.int64
        of_all = file["arr_0"]
    assert sample_main([*command, f"--out={tmp_path / 'some'}", "--classes=5,1"]) == 0
    with np.load(tmp_path / "some.npz") as file:
        assert np.array_equal(file["arr_1"], [5, 1] * 6)
        assert np.array_equal(file["arr_0"][1], of_all[1])  # sample 1 is of class 1 in both
    # What we write, we read back as data with labels.
    again = make_source(name="array", path=str(tmp_path / "all.npz"), split="all", image_size=(8, 8), num_channels=1)
    assert np.array_equal(again.labels, np.arange(12) % 10)
    assert evaluate.main([f"--workdir={run_with_classes}", "--max_images=8", "--nocompilation_cache"]) == 0
    with open(f"{run_with_classes}/evaluation/evaluation.json") as file:
        assert np.isfinite(json.load(file)["bits_per_dim"]["total"]["mean"])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("10", "--classes must be in 0..9, the known classes; got 10"),
        ("cat", "--classes must be in 0..9, the known classes; got 'cat': give a list such as 3,7"),
    ],
)
def test_a_class_that_is_none(run_with_classes, tmp_path, sample_main, capsys, classes, message):
    flags = [f"--workdir={run_with_classes}", "--nocompilation_cache", f"--out={tmp_path / 'x'}"]
    assert sample_main([*flags, f"--classes={classes}"]) == 2
    assert capsys.readouterr().err.strip() == f"error: {message}"


def test_errors(tiny_config, tmp_path):
    with pytest.raises(UserError, match=r"sample.classes=3 is for a network with classes; the run has "):
        class_condition.sampled_classes(tiny_config("sample.classes=3"))
    with pytest.raises(UserError, match="num_classes must be above every label; got 5 for the labels 0..9 of digits"):
        data_factory.build_source(tiny_config("model.num_classes=5"), "train")
    np.save(tmp_path / "images.npy", IMAGES.repeat(4, 1).repeat(4, 2))
    with pytest.raises(UserError, match="model.num_classes=10 needs a label for every image, and array 'train' has"):
        data_factory.build_source(
            tiny_config("model.num_classes=10", "data.name=array", f"data.path={tmp_path / 'images.npy'}"), "train"
        )
