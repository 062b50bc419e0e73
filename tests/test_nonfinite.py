"""A loss that is not finite: named, recorded, skipped or gone back from; never silently."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import factories
from ddpm_jax.data import batch_indices
from ddpm_jax.data.source import load_rows
from ddpm_jax.devices import put_batch
from ddpm_jax.errors import UserError
from ddpm_jax.experiment import train
from ddpm_jax.parts import Parts, build_parts
from ddpm_jax.training.report import read_metrics
from ddpm_jax.training.rewinds import Rewind, Rewinds


def batch_of(config, number):
    """(indices, pictures) of a batch of the run."""
    source = factories.build_source(config, config.data.split)
    train_config = config.train
    indices = batch_indices(
        seed=train_config.seed, step=number, batch_size=train_config.batch_size, num_examples=len(source)
    )
    return indices, load_rows(source, indices, False)


def poison(monkeypatch, config, *numbers):
    """Makes the loss of these batches NaN, whenever they are taken; returns the numbers of all batches taken."""
    bad = [batch_of(config, number)[1] for number in numbers]
    all_batches = {batch_of(config, number)[1].tobytes(): number for number in range(20)}
    real, taken = Parts.jitted_step, []

    def jitted_step(parts):
        step_fn = real(parts)

        def wrapped(state, images, key):
            pictures = np.asarray(images)
            taken.append(all_batches[pictures.tobytes()])
            state, metrics = step_fn(state, images, key)
            if any(np.array_equal(pictures, one) for one in bad):
                metrics = metrics | {"loss": jnp.float32(np.nan)}
            return state, metrics

        wrapped.lower = step_fn.lower
        return wrapped

    monkeypatch.setattr(Parts, "jitted_step", jitted_step)
    return taken


def test_the_pictures_of_the_step_are_listed(tiny_config, tmp_path, monkeypatch):
    config = tiny_config()
    poison(monkeypatch, config, 4)
    with pytest.raises(UserError, match="^loss became nan at step 5; the last good checkpoint is step 4 "):
        train(config, str(tmp_path))
    record = json.loads((tmp_path / "nonfinite" / "step_00000005.json").read_text())
    assert record == {
        "step": 5, "what": "loss became nan", "policy": "stop", "batch": 4,
        "indices": batch_of(config, 4)[0].tolist(),
    }  # fmt: skip


def test_rewind_leaves_the_batches_out(tiny_config, state_of, tmp_path, monkeypatch, capsys):
    """From step 4 on, batches 5, 6, 7, 8 with another key: by hand, by the run, and by a run that was stopped."""
    config = tiny_config("train.nonfinite=rewind")
    by_hand = build_parts(config)
    with monkeypatch.context() as patch:
        taken = poison(patch, config, 4)
        assert train(config, str(tmp_path / "one")) is None
    assert taken == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8]  # 4 and 5 before it was seen at step 6
    assert "loss became nan at step 5: back to step 4, and on without the 1 batch since (rewind 1 of at most 3)" in (
        capsys.readouterr().out
    )
    assert json.loads((tmp_path / "one" / "rewinds.json").read_text()) == [{"at": 5, "to": 4}]
    assert [line["step"] for line in read_metrics(tmp_path / "one")] == [2, 4, 6, 8]

    state, step_fn = by_hand.fresh_state(), by_hand.jitted_step()
    other_key = jax.random.fold_in(by_hand.keys.train, np.uint32(2**32 - 1))
    for number in (0, 1, 2, 3, 5, 6, 7, 8):
        images = put_batch(batch_of(config, number)[1], by_hand.mesh)
        state, _ = step_fn(state, images, by_hand.keys.train if number < 4 else other_key)
    trained = state_of(tmp_path / "one", 8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        assert trained[jax.tree_util.keystr(path)].tobytes() == np.asarray(leaf).tobytes()

    with monkeypatch.context() as patch:
        poison(patch, config, 4)
        train(tiny_config("train.nonfinite=rewind", "train.num_steps=6"), str(tmp_path / "two"))
        train(config, str(tmp_path / "two"))
    again = state_of(tmp_path / "two", 8)
    assert all(again[name].tobytes() == leaf.tobytes() for name, leaf in trained.items())


def test_rewind_before_the_first_checkpoint_starts_anew(tiny_config, tmp_path, monkeypatch):
    config = tiny_config("train.nonfinite=rewind", "train.num_steps=4")
    taken = poison(monkeypatch, config, 1)
    assert train(config, str(tmp_path)) is None
    assert taken == [0, 1, 2, 3, 4, 5]
    assert json.loads((tmp_path / "rewinds.json").read_text()) == [{"at": 2, "to": 0}]


def test_rewinds_have_a_limit(tiny_config, tmp_path, monkeypatch):
    config = tiny_config("train.nonfinite=rewind", "train.nonfinite_limit=2")
    poison(monkeypatch, config, *range(4, 12))
    message = "^loss became nan at step 5; the last good checkpoint is step 4 .*train.nonfinite_limit=2: train in a new"
    with pytest.raises(UserError, match=message):
        train(config, str(tmp_path))
    assert json.loads((tmp_path / "rewinds.json").read_text()) == [{"at": 5, "to": 4}] * 2


def test_skip_goes_on(tiny_config, straight_run, state_of, tmp_path, monkeypatch, capsys):
    config = tiny_config("train.nonfinite=skip")
    with monkeypatch.context() as patch:
        poison(patch, config, 4)
        assert train(config, str(tmp_path / "run")) is None
    out = capsys.readouterr().out
    assert "loss became nan at step 5: the update is skipped; its pictures are listed in " in out
    assert (tmp_path / "run" / "nonfinite" / "step_00000005.json").exists()
    lines = {line["step"]: line for line in read_metrics(tmp_path / "run")}
    assert lines[6]["skipped_steps"] == 1 and "skipped_steps" not in lines[8]
    # Without a NaN the policy changes no bit.
    train(config, str(tmp_path / "clean"))
    wanted, got = state_of(straight_run, 8), state_of(tmp_path / "clean", 8)
    for name, leaf in wanted.items():
        np.testing.assert_allclose(got[name], leaf, rtol=0, atol=1e-6)


class TestRewinds:
    def test_batches_and_keys(self, tmp_path):
        rewinds, key = Rewinds(str(tmp_path)), jax.random.key(0)
        assert [rewinds.batch_of_step(step) for step in range(3)] == [0, 1, 2]
        assert rewinds.key_of_step(key, 2) is key
        rewinds.add(at=10, to=6, write=True)
        rewinds.add(at=9, to=8, write=True)
        for again in (rewinds, Rewinds(str(tmp_path))):
            assert [again.batch_of_step(step) for step in range(5, 10)] == [5, 10, 11, 13, 14]
            keys = [jax.random.key_data(again.key_of_step(key, step)).tolist() for step in (5, 6, 7, 8)]
            assert keys[0] == jax.random.key_data(key).tolist()
            assert keys[1] == keys[2] and len({tuple(k) for k in keys}) == 3

    def test_no_batch_twice(self, tmp_path):
        """Whatever the rewinds of one branch, the batches that its state saw rise."""
        rng = np.random.default_rng(0)
        for trial in range(50):
            rewinds, step = Rewinds(str(tmp_path / str(trial))), 0
            for _ in range(4):
                at = step + int(rng.integers(1, 9))
                to = int(rng.integers(step, at))
                rewinds.add(at=at, to=to, write=False)
                step = to
            batches = [rewinds.batch_of_step(n) for n in range(step + 20)]
            assert np.all(np.diff(batches) > 0)

    def test_a_damaged_file(self, tmp_path):
        (tmp_path / "rewinds.json").write_text('[{"at": 3}]')
        with pytest.raises(UserError, match="rewinds.json is damaged .KeyError: 'to'.*restore it from a copy"):
            Rewinds(str(tmp_path))

    def test_equal(self):
        assert Rewind(at=3, to=2) == Rewind(3, 2)
