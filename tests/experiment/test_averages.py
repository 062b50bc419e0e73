"""Several averages of the parameters: trained, saved, resumed, chosen by --weights, refused where they changed."""

import jax
import numpy as np
import pytest

from ddpm_jax import convert
from ddpm_jax import train as train_command
from ddpm_jax.data.batch import Batch
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.resume import resumed_state
from ddpm_jax.experiment.training import train
from ddpm_jax.interchange.imported_model import Imported
from ddpm_jax.interchange.imported_workdir import write_workdir
from ddpm_jax.workdir.checkpoints import Checkpoints

# Without the warm-up, which is below both decays in a run this short. The first is not the first by name.
TWO = ("optim.ema_decays=0.9,0.5", "optim.ema_start=constant", "data.eval_split=", "train.checkpoint_every_steps=4")


def leaves(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def two_averages(tiny_config, made_once):
    """The workdir of a run with two averages: checkpoints 4 and 8. Read it."""
    return made_once("two_averages", lambda workdir: train(tiny_config(*TWO), str(workdir)))


def items_of(workdir, step, *names):
    checkpoints = Checkpoints(str(workdir))
    items = [leaves(checkpoints.restore_params(name, step)[1]) for name in names]
    checkpoints.close()
    return items


def test_each_is_what_it_is_alone(tiny_config):
    """Bit for bit, and so are the parameters and the optimiser's state."""
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)

    def trained(decays):
        experiment = build_experiment(tiny_config(*TWO, f"optim.ema_decays={decays}"))
        state, step_fn = experiment.fresh_state(), experiment.jitted_step()
        for _ in range(3):
            state, _ = step_fn(state, Batch(images), experiment.keys.train)
        return jax.device_get(state)

    alone = {name: trained(name) for name in ("0.9", "0.5")}
    assert leaves(alone["0.9"].ema) != leaves(alone["0.5"].ema)
    both = trained("0.9,0.5")
    for name, one in alone.items():
        assert leaves(both.ema[name]) == leaves(one.ema_params)
        assert leaves((both.params, both.opt_state)) == leaves((one.params, one.opt_state))


def test_a_resumed_run_equals_the_straight_one(two_averages, tiny_config, tmp_path):
    for num_steps in (4, 8):
        train(tiny_config(*TWO, f"train.num_steps={num_steps}"), str(tmp_path))
    folder = two_averages / "checkpoints" / "8"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        "params", "ema_params", "ema_0.5", "opt_state", "config"
    }  # fmt: skip
    names = ("params", "ema_params", "ema_0.5", "opt_state")
    straight = items_of(two_averages, 8, *names)
    assert items_of(tmp_path, 8, *names) == straight and len({str(item) for item in straight[:3]}) == 3


def test_sampling_takes_the_weights_of_a_name(two_averages, sample_main, tmp_path, capfd):
    def draw(weights, workdir=two_averages):
        argv = [f"--workdir={workdir}", "--num_samples=8", f"--out={tmp_path}/x", f"--weights={weights}"]
        assert sample_main([*argv, "--sampler=ddim", "--num_sampler_steps=3", "--nocompilation_cache"]) == 0
        assert f"8 samples of step 8 ({weights} weights)" in capfd.readouterr().out
        return np.load(tmp_path / "x.npz")["arr_0"]

    images = {weights: draw(weights) for weights in ("ema", "ema/0.9", "ema/0.5", "raw")}
    assert np.array_equal(images["ema"], images["ema/0.9"])
    assert len({array.tobytes() for array in images.values()}) == 3


@pytest.mark.parametrize(
    ("weights", "item"), [("ema", "ema_params"), ("ema/0.9", "ema_params"), ("ema/0.5", "ema_0.5"), ("raw", "params")]
)
def test_the_weights_of_a_name_are_written(two_averages, tmp_path, capsys, weights, item):
    out = tmp_path / "out.npz"
    assert convert.main([f"--workdir={two_averages}", f"--to={out}", f"--weights={weights}", "--step=4"]) == 0
    assert f"wrote {out} ({weights} weights of step 4)" in capsys.readouterr().out
    with np.load(out) as file:
        written = sorted(file[name].tobytes() for name in file if file[name].dtype == np.float32)
    assert written == sorted(items_of(two_averages, 4, item)[0])


def test_another_name_is_refused(two_averages, tmp_path, capsys):
    argv = [f"--workdir={two_averages}", f"--to={tmp_path}/x.npz", "--weights=ema/0.99"]
    assert convert.main(argv) == 2
    assert capsys.readouterr().err == (
        "error: --weights must be one of ['ema', 'ema/0.5', 'ema/0.9', 'raw']; got 'ema/0.99'; did you mean "
        "'ema/0.9'?\n"
    )


@pytest.mark.parametrize("decays", ["0.9", "0.9,0.5,0.1", "0.5,0.9", "0.9,0.6"])
def test_other_averages_on_resume_are_refused(two_averages, tiny_flags, capsys, decays):
    flags = [*tiny_flags, *(f"--config.{override}" for override in TWO), f"--config.optim.ema_decays={decays}"]
    assert train_command.main([*flags, f"--workdir={two_averages}", "--config.train.num_steps=12"]) == 2
    values = tuple(map(float, decays.split(",")))
    assert capsys.readouterr().err == (
        f"error: the workdir holds a run with another config: optim.ema_decays was (0.9, 0.5) and is {values}; "
        "give the values of that run to continue it, or another workdir to start anew\n"
    )


@pytest.mark.parametrize("decays", ["0.5", "0.5,0.9"])
def test_every_average_starts_at_the_imported_one(tiny_config, tmp_path, decays):
    """Whatever averages the run of the import had."""
    config = tiny_config("train.time_sampler=loss_second_moment")
    raw = jax.device_get(build_experiment(config).fresh_state().params)
    average = jax.tree.map(lambda leaf: leaf + 1, raw)
    write_workdir(Imported(config, raw, average), tmp_path / "run")
    experiment = build_experiment(tiny_config(*TWO, f"optim.ema_decays={decays}"))
    checkpoints = Checkpoints(str(tmp_path / "run"))
    state = resumed_state(experiment, checkpoints)
    checkpoints.close()
    assert leaves(state.params) == leaves(raw) and state.primary == "0.5"
    assert [leaves(tree) for tree in state.ema.values()] == [leaves(average)] * len(decays.split(","))
