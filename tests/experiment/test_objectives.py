"""Objectives of a user's own by the trainer of all: a classifier on noised images, and two players.

Each stands in the table of objectives for the length of a test, and is trained by `train` from a config.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shared_codecs import linear_codec

from ddpm_jax.diffusion.forward_process import q_sample
from ddpm_jax.diffusion.rng import sample_keys
from ddpm_jax.experiment import model_factory
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.codec_factory import CODECS, build_codec
from ddpm_jax.experiment.objective_factory import OBJECTIVES
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.experiment.training import last_lines, train
from ddpm_jax.models.parameters import num_params
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.training.objective import Objective
from ddpm_jax.training.run_log import read_metrics
from ddpm_jax.workdir.checkpoints import Checkpoints

NUM_CLASSES = 10
SHORT = ("train.num_steps=8", "train.checkpoint_every_steps=8", "eval.max_images=64", "eval.batch_size=64")


class Logits(nn.Module):
    """A layer over the pixels and t."""

    @nn.compact
    def __call__(self, x_t, t):
        x = jnp.concatenate([x_t.reshape(len(x_t), -1), t[:, None] / 20.0], axis=1)
        return nn.Dense(NUM_CLASSES, name="out")(x)


class NoisedClassifier(Objective):
    """-log p(label | x_t) (Dhariwal and Nichol 2021, section 4), with a running mean of the labels beside."""

    def __init__(self, config):
        self.process, self.codec = model_factory.build_process(config), build_codec(config)
        self.frozen = {"codec": self.codec, "weight": np.full((3,), 2.0, np.float32)}

    def init_params(self, key, image_shape, condition):
        return Logits().init(key, jnp.zeros((1, *self.codec.x_0_shape(image_shape))), jnp.zeros((1,)))["params"]

    def init_extra(self):
        return {"labels": jnp.zeros(NUM_CLASSES)}

    def _x_t(self, frozen, batch, keys, t):
        x_0 = frozen["codec"].encode(batch.image, keys)
        eps = jax.vmap(lambda key: jax.random.normal(key, x_0.shape[1:]))(keys)
        return q_sample(self.process.schedule, x_0=x_0, t=t, eps=eps)

    def _losses(self, params, frozen, x_t, t, label):
        logits = Logits().apply({"params": params}, x_t, t)
        right = jnp.argmax(logits, -1) == label
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label) * frozen["weight"][0] / 2
        return {"loss": losses, "accuracy": right.astype(jnp.float32)}

    def draw(self, frozen, batch, key, extra):
        size = len(batch.image)
        t = jax.random.randint(jax.random.fold_in(key, 1), (size,), 0, self.process.num_steps)
        x_t = self._x_t(frozen, batch, sample_keys(jax.random.fold_in(key, 2), jnp.arange(size)), t)
        return (x_t, t, batch.condition["label"]), jnp.ones(size)

    def losses(self, params, frozen, drawn, key, extra):
        label = drawn[2]
        return self._losses(params, frozen, *drawn), jnp.mean(jax.nn.one_hot(label, NUM_CLASSES), 0)

    def update(self, extra, drawn, weights, losses, of_parts):
        assert of_parts.ndim == 2
        seen = jnp.mean(of_parts, 0)
        return {"labels": 0.5 * extra["labels"] + 0.5 * seen}, {"of_label_0": seen[0]}

    def eval_losses(self, params, frozen, batch, ids, key):
        t = jnp.zeros(len(ids), jnp.int32)
        x_t = self._x_t(frozen, batch, sample_keys(key, ids), t)
        return self._losses(params, frozen, x_t, t, batch.condition["label"])["loss"]


class TwoPlayers(Objective):
    """min over g of d g - g^2 / 2's distance, a linear game with a known path: each player has its own learning rate.

    The generator g minimises d * g, the discriminator d minimises (d - g - mean of the pixels)^2.
    """

    def __init__(self, config):
        del config

    def init_params(self, key, image_shape, condition):
        return {"generator": {"g": jnp.float32(1)}, "discriminator": {"d": jnp.float32(3)}}

    def optimizer(self, optimizer):
        del optimizer
        players = {"generator": optax.sgd(0.1), "discriminator": optax.sgd(0.25)}
        return optax.multi_transform(players, {"generator": "generator", "discriminator": "discriminator"})

    def draw(self, frozen, batch, key, extra):
        return jnp.mean(batch.image.astype(jnp.float32) / 255, (1, 2, 3)), jnp.ones(len(batch.image))

    def losses(self, params, frozen, drawn, key, extra):
        g, d = params["generator"]["g"], params["discriminator"]["d"]
        of_g = jax.lax.stop_gradient(d) * g + 0 * drawn
        of_d = (d - jax.lax.stop_gradient(g) - drawn) ** 2
        return {"loss": of_g + of_d, "generator": of_g, "discriminator": of_d}, None

    def eval_losses(self, params, frozen, batch, ids, key):
        return self.losses(params, frozen, self.draw(frozen, batch, key, None)[0], key, None)[0]["generator"]


@pytest.fixture
def own_objectives(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "noised_classifier", NoisedClassifier)
    monkeypatch.setitem(OBJECTIVES, "two_players", TwoPlayers)


def leaves_of(config, workdir):
    checkpoints = Checkpoints(str(workdir))
    state = checkpoints.restore_state(build_experiment(config).abstract_state)
    checkpoints.close()
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def equal(one, other):
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


CLASSIFIER = (
    "objective.name=noised_classifier", "model.num_classes=10", "optim.learning_rate=0.05", "train.batch_size=64",
    "optim.ema_decays=0.5", "train.grad_accum_steps=2", "train.num_devices=2",
)  # fmt: skip


def test_a_classifier_is_trained_stopped_and_continued(own_objectives, tiny_config, tmp_path, capsys):
    config = tiny_config(*SHORT, *CLASSIFIER, "train.num_steps=24")
    assert train(config, str(tmp_path / "straight")) is None
    printed = capsys.readouterr().out
    lines = read_metrics(tmp_path / "straight")
    assert [line["step"] for line in lines] == list(range(2, 25, 2))
    assert lines[-1]["accuracy"] > 0.4 > lines[0]["accuracy"]  # 0.1 by chance
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["eval_loss"] < lines[3]["eval_loss"]
    assert 0 < np.mean([line["of_label_0"] for line in lines]) < 0.3 and "loss_t1of4" not in lines[0]
    assert "accuracy" in printed and not (tmp_path / "straight" / "samples").exists()
    train(tiny_config(*SHORT, *CLASSIFIER, "train.num_steps=8"), str(tmp_path / "resumed"))
    train(config, str(tmp_path / "resumed"))
    straight = leaves_of(config, tmp_path / "straight")
    assert equal(leaves_of(config, tmp_path / "resumed"), straight)
    assert last_lines(config, "W") == ["done: checkpoints in W/checkpoints"]
    message = "must be a run of objective.name='diffusion'; got .* which trained 'noised_classifier'"
    with pytest.raises(UserError, match=message):
        open_run(str(tmp_path / "straight"))


def test_parts_and_devices_make_no_difference_to_a_classifier(own_objectives, tiny_config):
    states = []
    for fields in (("train.grad_accum_steps=1", "train.num_devices=1"), ("train.grad_accum_steps=4", "mesh.fsdp=2")):
        experiment = build_experiment(tiny_config(*CLASSIFIER, *fields))
        state, key = experiment.fresh_state(), experiment.keys.train
        with experiment.batches(experiment.source()) as batches:
            for _ in range(2):
                state, metrics = experiment.jitted_step()(state, next(batches), key)
        states.append(jax.device_get((state, metrics)))
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_classifier_skips_what_is_not_finite(own_objectives, tiny_config, monkeypatch, tmp_path, capsys):
    """Of its own state, `extra` stays too."""
    losses = NoisedClassifier._losses

    def broken(self, params, frozen, x_t, t, label):
        found = losses(self, params, frozen, x_t, t, label)
        return found | {"loss": jnp.where(jnp.sum(label) % 3 == 0, jnp.nan, found["loss"])}

    monkeypatch.setattr(NoisedClassifier, "_losses", broken)
    config = tiny_config(
        *SHORT, *CLASSIFIER, "train.nonfinite=skip", "train.nonfinite_limit=20", "data.eval_split=", "optim.b1=0.5"
    )
    train(config, str(tmp_path))
    lines = read_metrics(tmp_path)
    assert any(line.get("skipped_steps") for line in lines) and "skipped" in capsys.readouterr().out
    assert all(np.isfinite(leaf).all() for leaf in leaves_of(config, tmp_path))


def test_two_players_take_their_own_steps(own_objectives, tiny_config, tmp_path):
    config = tiny_config(*SHORT, "objective.name=two_players", "optim.ema_decays=0.9", "optim.ema_start=constant")
    train(config, str(tmp_path / "a"))
    experiment = build_experiment(config)
    source, means = experiment.source(), []
    with experiment.batches(source) as batches:
        for _ in range(8):
            means.append(float(np.mean(np.asarray(next(batches).image, np.float64)) / 255))
    g, d, ema = 1.0, 3.0, 1.0
    for mean in means:
        g, d = g - 0.1 * d, d - 0.25 * 2 * (d - g - mean)
        ema = 0.9 * ema + 0.1 * g
    checkpoints = Checkpoints(str(tmp_path / "a"))
    state = checkpoints.restore_state(experiment.abstract_state)
    checkpoints.close()
    # Eight steps in float32 of numbers up to 3.
    np.testing.assert_allclose(state.params["generator"]["g"], g, atol=1e-5)
    np.testing.assert_allclose(state.params["discriminator"]["d"], d, atol=1e-5)
    np.testing.assert_allclose(state.ema_params["generator"]["g"], ema, atol=1e-5)
    assert read_metrics(tmp_path / "a")[-1].keys() >= {"generator", "discriminator", "eval_loss"}


def test_an_unknown_objective_is_refused(tiny_config):
    with pytest.raises(UserError, match=r"must be one of \['classifier', 'diffusion'\]; got 'diffusoin'"):
        build_experiment(tiny_config("objective.name=diffusoin"))


# A codec of a user's own, from a config


@pytest.fixture
def linear(monkeypatch):
    monkeypatch.setitem(CODECS, "linear", lambda config: linear_codec(size=3))


LATENT = ("codec.name=linear", "sample.clip_x_0=false", "diffusion.loss=hybrid", "diffusion.variance=learned_range")


def test_a_run_in_the_space_of_a_codec(linear, tiny_config, tmp_path, sample_main):
    """Trained, resumed, sampled and measured: the network sees 4 x 4 x 3 where the images are 8 x 8 x 1."""
    config = tiny_config(*LATENT, *SHORT)
    experiment = build_experiment(config)
    assert experiment.x_0_shape == (4, 4, 3)
    assert experiment.abstract_state.params["conv_out"]["kernel"].shape[-1] == 6
    train(config, str(tmp_path / "run"))
    train(tiny_config(*LATENT, *SHORT, "train.num_steps=4"), str(tmp_path / "resumed"))
    train(config, str(tmp_path / "resumed"))
    assert equal(leaves_of(config, tmp_path / "resumed"), leaves_of(config, tmp_path / "run"))
    assert (tmp_path / "run" / "samples" / "final_ema.png").exists()
    out = tmp_path / "new.npz"
    assert (
        sample_main([f"--workdir={tmp_path / 'run'}", f"--out={out}", "--num_samples=4", "--nocompilation_cache"]) == 0
    )
    assert np.load(out)["arr_0"].shape == (4, 8, 8, 1)
    run = open_run(str(tmp_path / "run"))
    run.check_params()
    assert num_params(run.params) == num_params(experiment.abstract_state.params)


def test_a_codec_without_limits_is_sampled_without_a_clip(linear, tiny_config):
    message = "codec.name='linear' has an unbounded x_0: sample.clip_x_0 must be False and"
    with pytest.raises(UserError, match=message):
        build_experiment(tiny_config("codec.name=linear"))
    with pytest.raises(UserError, match=r"codec.name must be one of \['floats', 'linear', 'pixels'\]; got 'latent'"):
        build_experiment(tiny_config("codec.name=latent"))
