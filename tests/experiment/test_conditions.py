"""A condition of a user's own from a config: one kind in the table, a column of the data, a network that reads it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ddpm_jax.data import make_source
from ddpm_jax.data.condition import Entry
from ddpm_jax.experiment import conditions
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.condition_kind import ConditionKind
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.experiment.training import train
from ddpm_jax.models.conv_net import ConvNet
from ddpm_jax.models.networks import NETWORKS, Network
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.workdir.checkpoints import Checkpoints


class Sketch(ConditionKind):
    """An image beside the image, where the network is "sketched": its null is grey."""

    def spec(self, config):
        return {"sketch": Entry((8, 8, 1), "uint8", "spatial", null=128)} if config.model.name == "sketched" else {}

    def of_samples(self, config):
        if not self.spec(config):
            return lambda ids: {}
        return lambda ids: {"sketch": np.full((len(ids), 8, 8, 1), ids[:, None, None, None] % 256, np.uint8)}


class Sketched(ConvNet):
    """The sketch is one channel more."""

    @nn.compact
    def __call__(self, x_t, t, condition=None, *, train=False):
        sketch = condition["sketch"].astype(jnp.float32) / 127.5 - 1
        told = {name: rows for name, rows in condition.items() if name != "sketch"}
        out = super().__call__(jnp.concatenate([x_t, sketch], -1), t, told, train=train)
        return out[..., : self.out_channels or x_t.shape[-1]]


@pytest.fixture
def sketched(monkeypatch, tiny_config, tmp_path):
    """Overrides -> the config of the small run on a .npz whose images have sketches."""
    monkeypatch.setattr(conditions, "CONDITIONS", [*conditions.CONDITIONS, Sketch()])
    monkeypatch.setitem(NETWORKS, "sketched", Network(Sketched, lambda network, size: None))
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(40) % 10, sketch=images // 2)

    def make(*overrides):
        config = tiny_config(
            "data.name=array", f"data.path={tmp_path / 'data.npz'}", "data.split=train[:32]",
            "data.eval_split=train[32:]", "data.flip=true", "model.num_classes=10", "condition.drop_rate=0.25",
            *overrides,
        )  # fmt: skip
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.model.name = "sketched"
            config.sketched = ConfigDict({"channels": 8, "num_layers": 2})
        return config.lock()

    return make


def test_it_is_trained_continued_sampled_and_guided(sketched, tmp_path, sample_main, capsys):
    config = sketched("train.num_steps=4", "train.checkpoint_every_steps=4")
    experiment = build_experiment(config)
    assert set(experiment.condition) == {"label", "sketch"}
    train(sketched("train.num_steps=2", "train.checkpoint_every_steps=2"), str(tmp_path / "run"))
    train(config, str(tmp_path / "run"))
    train(config, str(tmp_path / "straight"))
    states = []
    for name in ("run", "straight"):
        checkpoints = Checkpoints(str(tmp_path / name))
        states.append(jax.tree.leaves(checkpoints.restore_state(experiment.abstract_state)))
        checkpoints.close()
    assert all(np.array_equal(a, b) for a, b in zip(*states, strict=True))
    out = tmp_path / "new.npz"
    flags = [f"--workdir={tmp_path / 'run'}", f"--out={out}", "--num_samples=6", "--nocompilation_cache"]
    assert sample_main([*flags, "--guidance_scale=2"]) == 0
    guided = np.load(out)
    assert sorted(guided) == ["arr_0", "arr_1", "sketch"]
    assert guided["sketch"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5] and guided["arr_1"].tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
    ]
    assert sample_main(flags) == 0
    assert not np.array_equal(np.load(out)["arr_0"], guided["arr_0"])
    capsys.readouterr()
    assert sample_main([*flags, "--guidance_scale=2", "--negative_classes=3"]) == 2
    assert "guidance away from something needs a value for every condition; got none for ['sketch']" in (
        capsys.readouterr().err
    )
    assert open_run(str(tmp_path / "run")).condition["sketch"].kind == "spatial"


def test_the_data_must_have_it(sketched, tmp_path):
    images = np.zeros((40, 8, 8, 1), np.uint8)
    labels = np.arange(40) % 10
    for columns, message in (
        ({}, "the network needs the column 'sketch' of the data, and array .* has the columns label: docs/data.md"),
        ({"sketch": images[:, :4]}, r"must have rows of shape \[8, 8, 1\] in its column 'sketch'; got \[4, 8, 1\]"),
        (
            {"sketch": images[:39]},
            "must have 40 rows in 'sketch', one per image; got 39",
        ),
    ):
        np.savez(tmp_path / "data.npz", images=images, labels=labels, **columns)
        with pytest.raises(UserError, match=message):
            train(sketched(), str(tmp_path / "run"))


def test_columns_of_an_npz_are_read_when_asked_for(tmp_path, monkeypatch):
    images = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2, 1)
    path = tmp_path / "x.npz"
    np.savez(path, images=images, first=images[:, 0, 0, 0] * 1.5, other=np.ones((5, 3)))
    source = make_source(name="array", split="train[1:4]", path=str(path), image_size=(2, 2), num_channels=1)
    assert set(source.columns) == {"first", "other"} and "first" in source.columns and len(source.columns) == 2
    path_read, load = [], np.load
    monkeypatch.setattr(np, "load", lambda *args, **kwargs: path_read.append(args) or load(*args, **kwargs))
    for _ in range(2):  # of the images that the slice holds
        assert np.array_equal(source.columns["first"], source.load(np.arange(3))[:, 0, 0, 0] * 1.5)
    assert len(path_read) == 1
    with pytest.raises(KeyError):
        source.columns["images"]
