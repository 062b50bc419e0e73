"""A loss that is not finite: named, recorded, skipped or gone back from; never silently."""

import json
import os
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data import batch_indices
from ddpm_jax.data.image_source import load_rows
from ddpm_jax.experiment import data_factory, program_costs
from ddpm_jax.experiment.build import Experiment, build_experiment
from ddpm_jax.experiment.config_json import config_to_json
from ddpm_jax.experiment.trainer import Trainer
from ddpm_jax.experiment.training import train
from ddpm_jax.runtime.devices import put_batch
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.training.nonfinite import Rewind, Rewinds
from ddpm_jax.training.run_log import read_metrics
from ddpm_jax.workdir.checkpoints import Checkpoints
from ddpm_jax.workdir.ema_snapshots import EmaSnapshots


@pytest.fixture
def config_of(tiny_config):
    """The small run with checkpoints 4 and 8."""
    return lambda *overrides: tiny_config("train.checkpoint_every_steps=4", *overrides)


def batch_of(config, number):
    """(indices, pictures) of a batch of the run."""
    source = data_factory.build_source(config, config.data.split)
    train_config = config.train
    indices = batch_indices(
        seed=train_config.seed, step=number, batch_size=train_config.batch_size, num_examples=len(source)
    )
    return indices, load_rows(source, indices, {})


def poison(monkeypatch, config, *numbers):
    """Makes the loss of these batches NaN, whenever they are taken; returns the numbers of all batches taken."""
    bad = [batch_of(config, number)[1].image for number in numbers]
    all_batches = {batch_of(config, number)[1].image.tobytes(): number for number in range(20)}
    real, taken = Experiment.jitted_step, []

    def jitted_step(experiment):
        step_fn = real(experiment)

        def wrapped(state, batch, key):
            pictures = np.asarray(batch.image)
            taken.append(all_batches[pictures.tobytes()])
            state, metrics = step_fn(state, batch, key)
            if any(np.array_equal(pictures, one) for one in bad):
                metrics = metrics | {"loss": jnp.float32(np.nan)}
            return state, metrics

        wrapped.lower = step_fn.lower
        return wrapped

    monkeypatch.setattr(Experiment, "jitted_step", jitted_step)
    return taken


def test_the_pictures_of_the_step_are_listed(config_of, tmp_path, monkeypatch):
    config = config_of()
    poison(monkeypatch, config, 4)
    with pytest.raises(UserError, match="^loss became nan at step 5; the last good checkpoint is step 4 "):
        train(config, str(tmp_path))
    record = json.loads((tmp_path / "nonfinite" / "step_00000005.json").read_text())
    assert record == {
        "step": 5, "what": "loss became nan", "policy": "stop", "batch": 4,
        "indices": batch_of(config, 4)[0].tolist(),
    }  # fmt: skip


def test_rewind_leaves_the_batches_out(config_of, state_of, tmp_path, monkeypatch, capsys):
    """From step 4 on, batches 5, 6, 7, 8 with another key: by hand, by the run, and by a run that was stopped."""
    config = config_of("train.nonfinite=rewind")
    by_hand, real = build_experiment(config), EmaSnapshots.move_aside_after

    def moved_aside(snapshots, step):
        superseded.append(step)
        real(snapshots, step)
        if step == 0:  # as if one had been written at step 5
            os.makedirs(os.path.join(snapshots.directory, "5"))

    with monkeypatch.context() as patch:
        taken, superseded = poison(patch, config, 4), []
        patch.setattr(EmaSnapshots, "move_aside_after", moved_aside)
        assert train(config, str(tmp_path / "one")) is None
    assert superseded == [0, 4]  # at the start, and those of the updates that are left out
    assert os.listdir(tmp_path / "one" / "ema_snapshots") == []
    assert os.listdir(tmp_path / "one" / "superseded_ema_snapshots") == ["5"]
    assert taken == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8]  # 4 and 5 before it was seen at step 6
    assert "loss became nan at step 5: rewinding to step 4, leaving out the 1 batch since (rewind 1 of at most 3)" in (
        capsys.readouterr().out
    )
    assert json.loads((tmp_path / "one" / "rewinds.json").read_text()) == [{"at": 5, "to": 4, "batch": 5}]
    assert [line["step"] for line in read_metrics(tmp_path / "one")] == [2, 4, 6, 8]

    state, step_fn = by_hand.fresh_state(), by_hand.jitted_step()
    other_key = jax.random.fold_in(by_hand.keys.train, np.uint32(2**32 - 1))
    for number in (0, 1, 2, 3, 5, 6, 7, 8):
        batch = put_batch(batch_of(config, number)[1], by_hand.mesh)
        state, _ = step_fn(state, batch, by_hand.keys.train if number < 4 else other_key)
    trained = state_of(tmp_path / "one", 8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        assert trained[jax.tree_util.keystr(path)].tobytes() == np.asarray(leaf).tobytes()

    with monkeypatch.context() as patch:
        poison(patch, config, 4)
        train(config_of("train.nonfinite=rewind", "train.num_steps=6"), str(tmp_path / "two"))
        train(config, str(tmp_path / "two"))
    again = state_of(tmp_path / "two", 8)
    assert all(again[name].tobytes() == leaf.tobytes() for name, leaf in trained.items())


def test_rewind_before_the_first_checkpoint_starts_anew(config_of, tmp_path, monkeypatch):
    config = config_of("train.nonfinite=rewind", "train.num_steps=4")
    taken = poison(monkeypatch, config, 1)
    assert train(config, str(tmp_path)) is None
    assert taken == [0, 1, 2, 3, 4, 5]
    assert json.loads((tmp_path / "rewinds.json").read_text()) == [{"at": 2, "to": 0, "batch": 2}]


def test_rewinds_have_a_limit(config_of, tmp_path, monkeypatch):
    config = config_of("train.nonfinite=rewind", "train.nonfinite_limit=2")
    poison(monkeypatch, config, *range(4, 12))
    message = "^loss became nan at step 5; the last good checkpoint is step 4 .*train.nonfinite_limit=2: train in a new"
    with pytest.raises(UserError, match=message):
        train(config, str(tmp_path))
    noted = json.loads((tmp_path / "rewinds.json").read_text())
    assert noted == [{"at": 5, "to": 4, "batch": 5}, {"at": 5, "to": 4, "batch": 6}]


def test_skip_goes_on(config_of, straight_run, state_of, tmp_path, monkeypatch, capsys):
    config = config_of("train.nonfinite=skip")
    with monkeypatch.context() as patch:
        poison(patch, config, 4)
        assert train(config, str(tmp_path / "run")) is None
    out = capsys.readouterr().out
    assert "loss became nan at step 5: the update is skipped; its images are listed in " in out
    assert (tmp_path / "run" / "nonfinite" / "step_00000005.json").exists()
    lines = {line["step"]: line for line in read_metrics(tmp_path / "run")}
    assert lines[6]["skipped_steps"] == 1 and "skipped_steps" not in lines[8]
    # Without a NaN the policy changes no bit.
    train(config, str(tmp_path / "clean"))
    wanted, got = state_of(straight_run, 8), state_of(tmp_path / "clean", 8)
    for name, leaf in wanted.items():
        np.testing.assert_allclose(got[name], leaf, rtol=0, atol=1e-6)


def test_rewind_lets_go_of_the_broken_state(config_of, tmp_path, monkeypatch):
    """Two states at once may be more than a device holds."""
    config = config_of("train.nonfinite=rewind")
    poison(monkeypatch, config, 4)
    real, states = Trainer._run_until_nonfinite, []

    def watched(self, state, stop):
        if states:  # the second round: those of the first are gone, but for what was not donated to any step
            assert not [ref() for ref in states if ref() is not None and not ref().is_deleted()]
        step_fn = self._step_fn

        def remember(*args):
            new, metrics = step_fn(*args)
            states.extend(weakref.ref(leaf) for leaf in jax.tree.leaves(new.params))
            return new, metrics

        remember.lower = step_fn.lower
        self._step_fn = remember
        return real(self, state, stop)

    monkeypatch.setattr(Trainer, "_run_until_nonfinite", watched)
    assert train(config, str(tmp_path)) is None


def test_rewind_to_imported_weights(config_of, own_run, tmp_path, monkeypatch):
    """Their checkpoint, of step 0, may be of another optimiser."""
    imported = tmp_path / "imported"
    experiment = build_experiment(config_of())
    checkpoints = Checkpoints(str(imported), create=True)
    checkpoints.save(experiment.fresh_state(), config_to_json(experiment.config))
    checkpoints.wait()
    checkpoints.close()
    config = config_of("train.nonfinite=rewind", "optim.grad_clip=0", "train.num_steps=4")
    taken = poison(monkeypatch, config, 1)
    assert train(config, str(imported)) is None
    assert taken == [0, 1, 2, 3, 4, 5]


def test_what_is_found_between_updates_cannot_be_skipped(config_of, tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm_jax.training.eval_loss.EvalLoss.mean_loss", lambda self, params: float("nan"))
    with pytest.raises(UserError, match="^eval_loss became nan at step 4; .*leaves out updates, and this was found"):
        train(config_of("train.nonfinite=skip"), str(tmp_path))


def test_a_backend_that_counts_no_operations(config_of, tmp_path, monkeypatch):
    """XLA counts them before compilation on CPU alone: elsewhere the same program is lowered for a CPU device."""
    monkeypatch.setattr("ddpm_jax.experiment.trainer.train_step_flops", program_costs.train_step_flops)
    monkeypatch.setattr("jax.stages.Lowered.cost_analysis", lambda self: None)
    train(config_of("train.num_steps=4"), str(tmp_path))
    assert all("share_of_peak" not in line for line in read_metrics(tmp_path))


def test_a_device_without_room_for_the_peak(config_of, tmp_path, monkeypatch):
    def no_room(mesh, dtype):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr("ddpm_jax.experiment.trainer.product_peak", no_room)
    train(config_of("train.num_steps=4"), str(tmp_path))
    lines = read_metrics(tmp_path)
    assert "seconds_per_step" in lines[-1] and "share_of_peak" not in lines[-1]


def test_operations_are_those_of_any_mesh(config_of, monkeypatch):
    experiment = build_experiment(config_of("train.num_devices=8", "mesh.fsdp=2"))
    assert program_costs.countable(experiment) is experiment
    counted = program_costs.train_step_flops(experiment)
    moved = program_costs.on_one_device(experiment, jax.devices("cpu")[3])
    assert moved.mesh.shape == {"data": 1, "fsdp": 1}
    assert program_costs.train_step_flops(moved) == pytest.approx(counted, rel=1e-3) and counted > 1e5


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
            rewinds, step, rewinds_taken = Rewinds(str(tmp_path / str(trial))), 0, set()
            for _ in range(4):
                at = step + int(rng.integers(1, 9))
                to = int(rng.integers(0, at))  # also before an earlier rewind, where a checkpoint was damaged
                rewinds_taken |= {rewinds.batch_of_step(n) for n in range(step, at)}
                rewinds.add(at=at, to=to, write=False)
                step = to
            batches = [rewinds.batch_of_step(n) for n in range(step + 20)]
            assert np.all(np.diff(batches) > 0)
            # None after the last rewind was taken before it.
            assert not rewinds_taken & set(batches[step:])

    def test_a_damaged_file(self, tmp_path):
        (tmp_path / "rewinds.json").write_text('[{"at": 3}]')
        with pytest.raises(UserError, match="rewinds.json is damaged .an entry must have .*restore it from a copy"):
            Rewinds(str(tmp_path))

    @pytest.mark.parametrize(
        "text",
        [
            "{}",
            "[" * 5000,
            "[1]",
            '[{"at": 1e400, "to": 1, "batch": 2}]',
            "\x80",
            "[[]]",
            '[{"at": -1, "to": 1, "batch": 2}]',
            '[{"at": 1, "to": 1, "batch": 2, "x": 3}]',
        ],
    )
    def test_damage_of_any_kind_is_one_line(self, text, tmp_path):
        (tmp_path / "rewinds.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match="rewinds.json is damaged .*restore it from a copy") as error:
            Rewinds(str(tmp_path))
        assert "\n" not in str(error.value)

    def test_equal(self):
        assert Rewind(at=3, to=2, batch=3) == Rewind(3, 2, 3)
