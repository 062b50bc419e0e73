"""Checkpoints: which stay, what is read where some are damaged, and one line where none can be."""

import logging
import shutil

import jax
import numpy as np
import pytest

from ddpm_jax import train as train_command
from ddpm_jax.experiment import training
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_json import config_from_json
from ddpm_jax.experiment.training import train
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.workdir.checkpoint_metrics import damaged_metrics
from ddpm_jax.workdir.checkpoints import Checkpoints
from ddpm_jax.workdir.orbax_side_effects import quiet_orbax


def same_bits(one, other):
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def truncate_arrays(step):
    for path in step.glob("params/**/d/*"):
        path.write_bytes(path.read_bytes()[:10])


def delete_manifest(step):
    (step / "params" / "manifest.ocdbt").unlink()


def delete_item(step):
    shutil.rmtree(step / "params")


def delete_config(step):
    shutil.rmtree(step / "config")


def truncate_config(step):
    (step / "config" / "metadata").write_text('{"config": ')


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


DAMAGES = [truncate_arrays, delete_manifest, delete_item, delete_config, truncate_config, empty]


@pytest.mark.parametrize("damage", DAMAGES)
def test_training_goes_on_from_the_one_before(damage, own_run, straight_run, tiny_config, state_of, capfd):
    folder = own_run / "checkpoints"
    damage(folder / "8")
    train(tiny_config(), str(own_run))
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("drawing ")]
    assert len(lines) == 2, err
    assert lines[0].startswith(f"warning: the checkpoint of step 8 in {folder} cannot be read (")
    assert lines[0].endswith("; trying an earlier one")
    assert lines[1] == f"warning: moved the unreadable [8] to {own_run / 'damaged_checkpoints'}"
    assert "resuming from step 6" in out and (own_run / "damaged_checkpoints" / "8").is_dir()
    # Step 8 was taken and saved again.
    assert same_bits(state_of(own_run, 8), state_of(straight_run, 8))


def test_two_damaged_ones_and_an_earlier_end(own_run, tiny_config, state_of, capfd):
    """A step before a damaged one can be saved, and the second damage of a step does not lose the first."""
    for _ in range(2):
        for step in (6, 8):
            if (own_run / "checkpoints" / str(step)).exists():
                delete_item(own_run / "checkpoints" / str(step))
        train(tiny_config("train.num_steps=6"), str(own_run))
        state_of(own_run, 6)
    names = {path.name for path in (own_run / "damaged_checkpoints").iterdir()}
    assert names == {"6", "8", "6_1"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_sampling_takes_the_one_before(damage, own_run, sample_main, tmp_path, capfd):
    damage(own_run / "checkpoints" / "8")
    argv = [f"--workdir={own_run}", "--num_samples=2", f"--out={tmp_path}/x", "--weights=raw", "--nocompilation_cache"]
    assert sample_main(argv) == 0
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("sampling")]
    assert len(lines) == 1 and lines[0].startswith("warning: the checkpoint of step 8 in "), err
    assert "2 samples of step 6 (raw weights)" in out
    assert (own_run / "checkpoints" / "8").exists()  # reading changes nothing
    assert sample_main([*argv, "--step=8"]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: the checkpoint of step 8 in ") and len(err.splitlines()) == 1
    assert err.endswith("; use another --step of [2, 4, 6, 8]\n")


def test_all_damaged(own_run, sample_main, tiny_flags, tmp_path, capfd):
    for step in (2, 4, 6, 8):
        delete_config(own_run / "checkpoints" / str(step))
    message = (
        f"error: no readable checkpoint in {own_run}/checkpoints: none of [2, 4, 6, 8] can be read; restore the "
        "folder from a copy, or train in another --workdir"
    )
    assert train_command.main([*tiny_flags, f"--workdir={own_run}"]) == 2
    assert capfd.readouterr().err.splitlines()[-1] == message
    assert not (own_run / "damaged_checkpoints").exists()
    argv = [f"--workdir={own_run}", f"--out={tmp_path}/x", "--nocompilation_cache"]
    assert sample_main(argv) == 2
    assert capfd.readouterr().err.splitlines()[-1] == message


def flip(text, number):
    """The text with one bit of its `number`-th byte changed."""
    data = bytearray(text)
    data[number] ^= 1
    return bytes(data)


@pytest.mark.parametrize("damage", [lambda text: b'{"eval', lambda text: text.replace(b"eval_loss", b"eval_lost"),
                                    lambda text: b"[]", lambda text: flip(text, -3)])  # fmt: skip
def test_damaged_metrics(damage, own_run, tiny_flags, sample_main, tmp_path, capfd):
    """Training moves them aside, and the arrays of the step stay; sampling the best one is refused before that."""
    path = own_run / "checkpoints" / "8" / "metrics" / "metrics"
    path.write_bytes(damage(path.read_bytes()))
    sample = [f"--workdir={own_run}", f"--out={tmp_path}/x", "--nocompilation_cache", "--num_samples=1"]
    assert sample_main([*sample, "--best"]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: the eval loss of the checkpoint of step 8 is damaged (")
    assert len(err.splitlines()) == 1
    assert train_command.main([*tiny_flags, f"--workdir={own_run}"]) == 0
    aside = own_run / "damaged_checkpoints" / "8_metrics"
    err = capfd.readouterr().err
    assert "warning: the eval loss of the checkpoint of step 8 is damaged (" in err
    assert (aside / "metrics").exists() and (own_run / "checkpoints" / "8" / "params").is_dir()
    reading = Checkpoints(str(own_run))
    assert reading.steps()[-1] == 8 and reading.best_step() in (2, 4, 6)


def test_every_bit_of_the_metrics_is_under_the_digest(own_run):
    path = own_run / "checkpoints" / "8" / "metrics" / "metrics"
    text, directory = path.read_bytes(), str(own_run / "checkpoints")
    assert damaged_metrics(directory) == {}
    for number in range(len(text)):
        path.write_bytes(flip(text, number))
        assert list(damaged_metrics(directory)) == [8], number


def test_a_step_that_no_run_can_have(own_run, tiny_config, capfd):
    shutil.copytree(own_run / "checkpoints" / "8", own_run / "checkpoints" / "99999999999")
    assert train(tiny_config(), str(own_run)) is None
    assert "its step is beyond 2147483647" in capfd.readouterr().err
    assert (own_run / "damaged_checkpoints" / "99999999999").is_dir()


def test_newest_and_best_stay(tiny_config, sample_main, tmp_path, monkeypatch, capsys):
    results = iter([5.0, 1.0, 7.0, 6.0, 8.0])
    monkeypatch.setattr(training.EvalLoss, "mean_loss", lambda self, params: next(results))
    train(tiny_config("train.num_steps=10", "train.keep_checkpoints=2"), str(tmp_path))
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.steps() == [4, 8, 10] and checkpoints.best_step() == 4
    argv = [f"--workdir={tmp_path}", "--num_samples=1", f"--out={tmp_path}/x", "--nocompilation_cache"]
    for flags, step in (([], 10), (["--best"], 4), (["--step=8"], 8)):
        assert sample_main([*argv, *flags]) == 0
        assert f"1 samples of step {step} (ema weights)" in capsys.readouterr().out


def test_without_an_eval_loss_there_is_no_best(own_run, tiny_config, tmp_path):
    for step in (2, 4, 6, 8):
        shutil.rmtree(own_run / "checkpoints" / str(step) / "metrics")
    checkpoints = Checkpoints(str(own_run))
    with pytest.raises(UserError, match="has an eval loss, so none is the best"):
        checkpoints.best_step()
    assert Checkpoints(str(tmp_path)).best_step() is None


def test_a_save_is_never_skipped_in_silence(own_run, tiny_config):
    state = Checkpoints(str(own_run)).restore_state(build_experiment(tiny_config()).abstract_state)
    checkpoints = Checkpoints(str(own_run), keep=10, create=True)
    for step in (8, 7):
        with pytest.raises(UserError, match=f"^step {step} was not saved: .* holds step 8 already; use a new"):
            checkpoints.save(state.replace(step=state.step - 8 + step), "{}")
    checkpoints.close()


def test_nothing_saved(tmp_path, tiny_config):
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.steps() == []
    assert checkpoints.restore_state(build_experiment(tiny_config()).abstract_state) is None
    with pytest.raises(UserError, match=f"^no checkpoint in {tmp_path}/checkpoints: train first, or give another"):
        checkpoints.restore_params("params")


def test_round_trip(straight_run, state_of, tiny_config):
    """What sampling reads is what training saved, in NumPy, with the config of the run."""
    checkpoints = Checkpoints(str(straight_run))
    saved = state_of(straight_run, 8)
    for item, field in (("params", "params"), ("ema_params", "ema['0.995']")):
        step, tree = checkpoints.restore_params(item)
        leaves = {f".{field}{jax.tree_util.keystr(path)}": leaf
                  for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}  # fmt: skip
        assert step == 8 and all(isinstance(leaf, np.ndarray) for leaf in leaves.values())
        assert same_bits(leaves, {name: saved[name] for name in leaves})
    step, text = checkpoints.restore_config(4)
    assert step == 4 and config_from_json(text) == tiny_config()
    with pytest.raises(UserError, match=r"^step must be one of \[2, 4, 6, 8\]; got 5"):
        checkpoints.restore_config(5)


def test_what_orbax_says_in_vain_is_not_shown():
    """A run on a slow disk, or without an eval loss, would warn at every checkpoint."""
    logger, seen = logging.getLogger("absl"), []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logger.addHandler(handler)
    try:
        quiet_orbax()
        logger.warning("Waiting for previous save to complete took %f seconds. If this number is high, ...", 1.2)
        logger.warning("Step 2 did not provide metrics.")
        logger.warning("something else")
    finally:
        logger.removeHandler(handler)
    assert seen == ["something else"]
