"""Averages of lengths that were not kept, of whole runs: reconstructed, resumed, measured, refused."""

import errno
import json
import shutil

import jax
import numpy as np
import pytest

from ddpm_jax import convert, evaluate
from ddpm_jax import train as train_command
from ddpm_jax.data.batch import Batch
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.open_run import open_run, weights_text
from ddpm_jax.experiment.post_hoc_average import _weights
from ddpm_jax.experiment.training import train
from ddpm_jax.runtime.disk_space import DiskFullError
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.training.post_hoc_ema import post_hoc_weights
from ddpm_jax.training.power_averages import gamma_of_std
from ddpm_jax.workdir import ema_snapshots
from ddpm_jax.workdir.checkpoint_manifest import write_manifest

NUM_STEPS, NUM_SNAPSHOTS, LEARNING_RATE = 24, 12, 1e-3
# The third length is kept as well, so that it can be compared; it is reconstructed from the first two.
RUN = ("optim.ema_stds=0.05,0.1,0.15", f"train.num_steps={NUM_STEPS}", f"train.num_ema_snapshots={NUM_SNAPSHOTS}",
       "train.checkpoint_every_steps=7", "data.eval_split=")  # fmt: skip


@pytest.fixture(scope="module")
def kept(tiny_config, made_once):
    """The workdir of a run: checkpoints 7, 14, 21 and 24, snapshots of every second step. Read it or copy it."""
    return made_once("post_hoc_kept", lambda workdir: train(tiny_config(*RUN), str(workdir)))


def without(kept, folder, std):
    """A copy of the run in which one of its lengths was not kept: its config alone says what is read."""
    shutil.copytree(kept, folder, ignore=shutil.ignore_patterns("eight"))
    for path in folder.glob("checkpoints/*/config/metadata"):
        item = json.loads(path.read_text())
        config = json.loads(item["config"])
        config["optim"]["ema_stds"].remove(std)
        path.write_text(json.dumps(item | {"config": json.dumps(config)}))
        write_manifest(path.parent.parent)
    return folder


@pytest.fixture(scope="module")
def two(kept, tmp_path_factory):
    return without(kept, tmp_path_factory.mktemp("two") / "run", 0.15)


def leaves(tree):
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("step", "num_steps"), [(24, 12), (21, 11)])
def test_a_length_is_reconstructed(two, kept, step, num_steps):
    """At step 21 there is no snapshot: the checkpoint has the averages of that step itself."""
    run = open_run(two, step=step, ema_std=0.15)
    assert (run.post_hoc.std, run.post_hoc.num_steps, run.step) == (0.15, num_steps, step)
    direct = open_run(kept, step=step, weights="ema/std_0.15")
    assert direct.post_hoc is None
    # What the two sets of weights of the updates differ by, times how far a parameter has moved: Adam's updates are at
    # most the learning rate over sqrt(1 - b2)/(1 - b1), here about 3.2 times the rate.
    steps = [*range(2, step, 2), step]
    pairs = [(at, std) for at in steps for std in (0.05, 0.1)]
    X, error = post_hoc_weights(*zip(*pairs, strict=True), step=step, std=0.15)
    assert run.post_hoc.profile_error == error < 0.02

    def of_updates(at, std):
        return np.diff(np.minimum(np.arange(step + 1) / at, 1) ** (gamma_of_std(std) + 1))

    difference = sum(x * of_updates(*pair) for x, pair in zip(X, pairs, strict=True)) - of_updates(step, 0.15)
    moved = 3.2 * LEARNING_RATE * np.abs(np.arange(step) - step).astype(float)
    bound = np.abs(difference) @ moved + 1e-6  # float32 of numbers below 1
    others = [leaves(open_run(two, step=step, weights=f"ema/std_{std}").params) for std in (0.05, 0.1)]
    made, wanted = leaves(run.params), leaves(direct.params)
    assert max(np.abs(a - b).max() for a, b in zip(made, wanted, strict=True)) <= bound < 1e-3
    for other in others:
        far = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(other, wanted, strict=True)))
        near = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(made, wanted, strict=True)))
        assert near < 0.03 * far


def test_a_kept_length_is_taken_as_it_is(kept):
    run = open_run(kept, ema_std=0.1)
    assert (run.post_hoc.num_steps, run.post_hoc.profile_error) == (1, 0.0)
    pairs = zip(leaves(run.params), leaves(open_run(kept, weights="ema/std_0.1").params), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert jax.tree.leaves(run.params)[0].dtype == np.float32


def test_nothing_else_changes(tiny_config):
    """Parameters, the first average and the optimiser are those of a run without these averages, bit for bit."""
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    trained = []
    for stds in ("", "0.05,0.1"):
        experiment = build_experiment(tiny_config(f"optim.ema_stds={stds}"))
        state, step_fn = experiment.fresh_state(), experiment.jitted_step()
        for _ in range(3):
            state, _ = step_fn(state, Batch(images), experiment.keys.train)
        trained.append(jax.device_get((state.params, state.opt_state, state.ema_params)))
        assert len(state.ema) == (3 if stds else 1)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*map(jax.tree.leaves, trained), strict=True))


def test_a_resumed_run_writes_the_same_snapshots(kept, tiny_config, tmp_path, monkeypatch):
    """Killed after step 20, with checkpoint 14: what comes after it is moved aside, whatever it holds, and written
    anew, but not by a start that fails. Retention deletes checkpoints and no snapshot."""
    workdir = shutil.copytree(kept, tmp_path / "run")
    for later in (21, 24):
        shutil.rmtree(workdir / "checkpoints" / str(later))
    snapshots = workdir / "ema_snapshots"
    for later in (22, 24):
        shutil.rmtree(snapshots / str(later))
    (snapshots / "20" / "std_0.1" / "arrays.safetensors").write_bytes(b"of other updates")
    shutil.copytree(snapshots / "16", snapshots / "17")  # of another number of snapshots
    (snapshots / ".22.part").mkdir()  # killed while it wrote
    before = files_in(snapshots)
    with monkeypatch.context() as patch:
        free = type("Usage", (), {"free": 1_000_000})
        patch.setattr("ddpm_jax.runtime.disk_space.shutil.disk_usage", lambda folder: free)
        with pytest.raises(DiskFullError, match="with the EMA snapshots to come"):
            train(tiny_config(*RUN), str(workdir))
    assert files_in(snapshots) == before
    train(tiny_config(*RUN, "train.keep_checkpoints=1"), str(workdir))
    aside = files_in(workdir / "superseded_ema_snapshots")
    assert aside == {
        name: content for name, content in before.items() if name.split("/")[0] in ("16", "17", "18", "20")
    }
    assert files_in(snapshots) == files_in(kept / "ema_snapshots")
    assert sorted(path.name for path in snapshots.iterdir()) == sorted(map(str, range(2, 25, 2)))
    assert [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()] == ["24"]


def test_on_eight_devices(kept, tiny_config, tmp_path):
    train(tiny_config(*RUN, "train.num_devices=8", "train.num_steps=14", "train.num_ema_snapshots=7"), str(tmp_path))
    runs = [open_run(without(workdir, tmp_path / name, 0.15), step=14, ema_std=0.15)
            for workdir, name in ((tmp_path, "eight"), (kept, "one"))]  # fmt: skip
    assert runs[0].post_hoc == runs[1].post_hoc
    # The parameters agree to the rounding of sums over devices, which Adam magnifies; X multiplies it by 2 at most.
    for a, b in zip(*(leaves(run.params) for run in runs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


# Commands and errors


def test_commands(two, sample_main, tmp_path, capfd):
    argv = [f"--workdir={two}", "--ema_std=0.15"]
    drawing = ["--num_samples=4", "--sampler=ddim", "--num_sampler_steps=3", "--nocompilation_cache"]
    assert sample_main([*argv, *drawing, f"--out={tmp_path}/x"]) == 0
    shown = capfd.readouterr().out
    rounding = open_run(two, ema_std=0.15).post_hoc.rounding_error
    assert shown.startswith(
        "average of length 0.15 from those of 12 steps, with an error of 1.6% in its profile and of at most "
        f"{100 * rounding:.2g}% by rounding\n"
    )
    assert 2**-24 < rounding < 2 * 2**-24
    assert "4 samples of step 24 (ema_std=0.15 weights), ddim" in shown
    assert convert.main([*argv, f"--to={tmp_path}/x.npz"]) == 0
    assert "(ema_std=0.15 weights of step 24) for npz" in capfd.readouterr().out
    with np.load(tmp_path / "x.npz") as file:
        written = sorted(file[name].tobytes() for name in file if file[name].dtype == np.float32)
    assert written == sorted(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(open_run(two, ema_std=0.15).params))


def test_several_lengths_are_compared(two, tmp_path, capfd):
    argv = [f"--workdir={two}", "--what=bits", "--split=test", "--bits_respacing=3", "--max_images=16"]
    argv.append("--nocompilation_cache")
    (tmp_path / "e" / "ema_std_0.15").mkdir(parents=True)
    (tmp_path / "e" / "ema_std_0.15" / "evaluation.json").write_text("{}")
    (tmp_path / "e" / "evaluation.md").write_text("")  # not that of the lengths
    assert evaluate.main([*argv, "--ema_std=0.15,0.05", f"--out={tmp_path}/e"]) == 0
    shown = capfd.readouterr().out
    replaced = [line for line in shown.splitlines() if "in place of what was there" in line]
    assert replaced == [f"wrote {tmp_path}/e/ema_std_0.15/evaluation.json, in place of what was there"]
    found = json.loads((tmp_path / "e" / "ema_std.json").read_text())
    rows = {row["ema_std"]: row["bits/dim (bound)"] for row in found["lengths"]}
    assert list(rows) == [0.15, 0.05] and found["chosen_by"] == "bits/dim (bound)"
    assert found["best"] == min(rows, key=rows.get) and len(set(rows.values())) == 2
    assert f"lowest bits/dim (bound): --ema_std={found['best']!r}\n" in shown
    assert f"| 0.15 | 1.6% | {rows[0.15]:.5g} |\n" in shown and f"| 0.05 | 0% | {rows[0.05]:.5g} |\n" in shown
    for std, value in rows.items():
        report = json.loads((tmp_path / "e" / f"ema_std_{std!r}" / "evaluation.json").read_text())
        assert report["facts"]["weights"] == f"ema_std={std!r}"
        assert report["bits_per_dim"]["total"]["mean"] == value


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ema_std=0.3"], "--ema_std must be in [0.001, 0.2887), the standard deviation of an average's profile"),
        (["--ema_std=0.01"], "--ema_std=0.01 cannot be reconstructed: the averages of 12 steps leave an error of "),
        (["--ema_std=0.15", "--step=7"], "--ema_std=0.15 cannot be reconstructed: the averages of 4 steps leave an "),
        (["--ema_std=0.15", "--step=8"], "--step must be one of [7, 14, 21, 24]; got 8"),
        (["--ema_std=0.15", "--weights=raw"], "--weights=raw and --ema_std=0.15 both choose weights: give one"),
    ],
)
def test_what_is_refused(two, sample_main, capsys, flags, message):
    assert sample_main([f"--workdir={two}", *flags]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {message}") and shown.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ema_std=a"], "--ema_std must be a length such as 0.1, or several: 0.05,0.1; got 'a'"),
        (["--ema_std=0.1,0.1"], "--ema_std must be different lengths; got 0.1,0.1"),
        (["--ema_std=0.1,0.05", "--what=pictures"], "--ema_std=0.1,0.05 compares numbers, and --what=pictures has "),
        (["--ema_std=0.1,0.4"], "--ema_std must be in [0.001, 0.2887)"),
    ],
)
def test_what_evaluate_refuses(two, capsys, flags, message):
    assert evaluate.main([f"--workdir={two}", *flags]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {message}") and shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("num_steps", "stds", "std", "message"),
    [
        # The profile alone would be accepted. A config may come from elsewhere, with lengths as near as these.
        (300, (0.05, 0.1), 0.003, "^ema_std=0.003 cannot be reconstructed: rounding of the stored averages would "),
        (50, (0.1, 0.10001), 0.15, "^ema_std=0.15 cannot be reconstructed: rounding of the stored averages would "),
        (50, (0.1, np.nextafter(0.1, 1)), 0.15, "^optim.ema_stds must be lengths whose .* apart|cannot be recon"),
    ],
)
def test_what_is_mostly_rounding_is_refused(num_steps, stds, std, message):
    with pytest.raises(UserError, match=message) as caught:
        _weights(range(8, 8 * num_steps + 1, 8), stds, std)
    assert "\n" not in str(caught.value)


def test_near_lengths_have_names_of_their_own():
    assert weights_text("ema", 0.1) == "ema_std=0.1"
    assert weights_text("ema", 0.1000001) == "ema_std=0.1000001"


def test_a_run_without_these_averages(straight_run):
    with pytest.raises(UserError, match="^ema_std needs the averages of optim.ema_stds, and the run in .* keeps no "):
        open_run(straight_run, ema_std=0.1)
    with pytest.raises(UserError, match="^the packaged run 'digits' .* leave out step, best, weights and ema_std"):
        open_run("digits", ema_std=0.1)


def test_a_damaged_snapshot_is_refused_in_a_line(two, sample_main, tmp_path, capsys):
    workdir = shutil.copytree(two, tmp_path / "run")
    path = workdir / "ema_snapshots" / "12" / "std_0.05" / "arrays.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert sample_main([f"--workdir={workdir}", "--ema_std=0.15"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: the EMA snapshot of step 12 in {workdir}/ema_snapshots cannot be read (")
    assert shown.count("\n") == 1
    shutil.move(workdir / "ema_snapshots" / "12", tmp_path)  # the remedy that the line names
    assert open_run(workdir, ema_std=0.15).post_hoc.num_steps == 11


def test_a_damaged_average_of_the_newest_checkpoint(two, tmp_path, capsys):
    """The checkpoint before it is used, as for other weights; one that is asked for is refused."""
    workdir = shutil.copytree(two, tmp_path / "run")
    file = max(
        (path for path in (workdir / "checkpoints" / "24" / "ema_std_0.1").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    run = open_run(workdir, ema_std=0.15)
    shown = capsys.readouterr().err
    assert shown.startswith(f"warning: the checkpoint of step 24 in {workdir}/checkpoints cannot be read (")
    assert shown.count("\n") == 1 and "trying an earlier one" in shown
    same = open_run(two, step=21, ema_std=0.15)
    assert (run.step, run.post_hoc) == (21, same.post_hoc)
    assert all(np.array_equal(a, b) for a, b in zip(leaves(run.params), leaves(same.params), strict=True))
    assert open_run(workdir, ema_std=0.05).step == 24  # which is kept, and whole
    with pytest.raises(UserError, match="^the checkpoint of step 24 in .* cannot be read .*; use another "):
        open_run(workdir, step=24, ema_std=0.15)


def test_other_lengths_on_resume_are_refused(kept, tiny_flags, capsys):
    flags = [*tiny_flags, *(f"--config.{override}" for override in RUN), "--config.optim.ema_stds=0.05,0.1"]
    assert train_command.main([*flags, f"--workdir={kept}"]) == 2
    assert "optim.ema_stds was (0.05, 0.1, 0.15) and is (0.05, 0.1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.ema_stds=0.3", r"^optim.ema_stds must be in \[0.001, 0.2887\)"),
        ("optim.ema_stds=0.1,0.1", "^optim.ema_stds must be different lengths"),
        ("optim.ema_stds=0.1,0.104", "^optim.ema_stds must differ by a factor of at least 1.05, .*; got 0.1 and 0.104"),
        ("optim.ema_stds=x", r"^optim.ema_stds must be in \[0.001, 0.2887\)"),
        ("train.num_ema_snapshots=-1", "^train.num_ema_snapshots must be at least 0; got -1"),
        ("train.num_ema_snapshots=1001", r"^train.num_ema_snapshots must be in 0..1000; got 1001"),
    ],
)
def test_settings_that_no_run_can_use(tiny_config, tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        train(tiny_config(override), str(tmp_path))


# Full disks


def test_the_room_for_all_snapshots_is_checked_before_the_first_step(tiny_flags, tmp_path, monkeypatch, capsys):
    flags = [*tiny_flags, *(f"--config.{override}" for override in RUN)]
    free = type("Usage", (), {"free": 1_100_000})  # enough for a checkpoint
    monkeypatch.setattr("ddpm_jax.runtime.disk_space.shutil.disk_usage", lambda folder: free)
    assert train_command.main([*flags, f"--workdir={tmp_path}"]) == 74
    size = 12 * 3 * 4 * 1393  # float32 parameters
    assert capsys.readouterr().err.startswith(
        f"error: no room on the disk: the first checkpoint, with the EMA snapshots to come ({size / 1000:.1f} kB), "
        "needs about 1.2 MB, and"
    )


def test_a_disk_that_is_full_in_between(kept, tiny_flags, tmp_path, monkeypatch, capsys):
    """Code 74 and one line; with room the same command resumes and ends with the same snapshots."""
    real, calls = ema_snapshots.save, []

    def save(tensors):
        calls.append(tensors)
        if len(calls) == 26:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(tensors)

    monkeypatch.setattr(ema_snapshots, "save", save)
    flags = [*tiny_flags, *(f"--config.{override}" for override in RUN), f"--workdir={tmp_path}"]
    assert train_command.main(flags) == 74
    shown = capsys.readouterr().err
    assert shown.startswith("error: no room on the disk: the EMA snapshot of step 18 could not be written, and ")
    assert shown.count("\n") == 1
    names = {path.name for path in (tmp_path / "ema_snapshots").iterdir()}
    assert names == {str(step) for step in range(2, 17, 2)}
    assert train_command.main(flags) == 0
    assert files_in(tmp_path / "ema_snapshots") == files_in(kept / "ema_snapshots")
