"""A run of commit 3f928b6 (checkpoint format 2, other names in its config): opened, sampled and continued.

`old_runs/3f928b6.tar.xz` is its workdir after 4 steps; `old_runs/3f928b6.npz` what that commit restored from it, drew
from it (8 samples of seed 1), and had after 4 steps more. Other processors and other versions of JAX round otherwise,
so samples may differ by one grey level and parameters by 1e-5; in the environment where it was made they are the same.
"""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.experiment.training import train
from ddpm_jax.workdir.checkpoints import Checkpoints

FILES = Path(__file__).parent / "old_runs"
OVERRIDES = (
    "data.eval_split=test", "data.flip=false", "schedule.name=cosine", "schedule.num_steps=20",
    "diffusion.variance=learned_range", "diffusion.loss=hybrid", "diffusion.prediction=eps", "diffusion.weighting=none",
    "model.num_classes=10", "unet.dropout=0.1",
    "unet.channels=4", "unet.num_groups=2", "unet.channel_mults=1", "unet.attention_resolutions=",
    "unet.num_res_blocks=1", "optim.learning_rate=1e-3", "optim.decay_steps=0", "optim.grad_clip=1",
    "optim.ema_decays=0.995", "optim.ema_start=warmup", "optim.warmup_steps=2", "train.seed=0",
    "optim.warmup_share=0", "optim.decay_share=0", "sample.eta=0", "sample.preview_sampler=euler",
    "train.time_sampler=loss_second_moment", "train.batch_size=8", "train.num_devices=1", "train.num_steps=4",
    "train.log_every_steps=2", "train.checkpoint_every_steps=4", "train.sample_every_steps=0",
    "train.keep_checkpoints=10", "sample.sampler=ancestral", "sample.num_grid=4", "sample.batch_size=8",
    "sample.num_preview_steps=5", "sample.num_sampler_steps=0", "eval.max_images=16", "eval.batch_size=16",
)  # fmt: skip
# Of its network; the others came with commits after the first.
FIRST_FIELDS = {"channels", "channel_mults", "num_res_blocks", "attention_resolutions", "dropout", "num_groups",
                "dtype", "num_classes"}  # fmt: skip


@pytest.fixture
def old_run(tmp_path):
    with tarfile.open(FILES / "3f928b6.tar.xz") as archive:
        # Python 3.11.2 has no filter yet.
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return tmp_path / "run"


@pytest.fixture(scope="module")
def expected():
    with np.load(FILES / "3f928b6.npz") as file:
        return dict(file)


def config_of(*overrides):
    return load_config("digits", [*OVERRIDES, *overrides])


def by_path(tree, prefix):
    return {f"{prefix}{jax.tree_util.keystr(path)}": np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}  # fmt: skip


def test_its_config_has_todays_names(old_run):
    assert open_run(str(old_run)).config == config_of()
    assert load_config(str(old_run / "config.json")) == config_of()


def test_fields_that_it_lacks_have_their_defaults(old_run):
    path = old_run / "checkpoints" / "4" / "config" / "metadata"
    config = json.loads(json.loads(path.read_text())["config"])
    assert FIRST_FIELDS < config["model"].keys()
    config["model"] = {name: value for name, value in config["model"].items() if name in FIRST_FIELDS}
    path.write_text(json.dumps({"config": json.dumps(config)}))
    (old_run / "checkpoints" / "4" / "manifest.json").unlink()  # nor were there any digests then
    assert open_run(str(old_run)).config == config_of()


def test_every_array_is_restored(old_run, expected):
    experiment = build_experiment(config_of())
    checkpoints = Checkpoints(str(old_run))
    state = checkpoints.restore_state(experiment.abstract_state)
    checkpoints.close()
    assert int(state.step) == 4
    kept = {name: value for name, value in expected.items() if name.startswith("4/")}
    restored = by_path(state.params, "4/params") | by_path(state.ema_params, "4/ema_params")
    for name, value in restored.items():
        np.testing.assert_array_equal(value, kept.pop(name))
    for item, tree in (("4/opt_state", state.opt_state), ("4/t_history", state.extra["t_history"])):
        values = [value for name, value in kept.items() if name.startswith(item)]
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        assert sorted(leaf.tobytes() for leaf in leaves) == sorted(value.tobytes() for value in values)
        kept = {name: value for name, value in kept.items() if not name.startswith(item)}
    assert not kept


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_its_samples(old_run, expected, sample_main, weights):
    out = old_run / "new.npz"
    flags = ["--num_samples=8", "--seed=1", f"--weights={weights}", "--nocompilation_cache"]
    assert sample_main([f"--workdir={old_run}", f"--out={out}", *flags]) == 0
    images = np.load(out)["arr_0"].astype(int)
    assert np.abs(images - expected[f"images_{weights}"]).max() <= 1


def test_it_is_continued(old_run, expected):
    assert train(config_of("train.num_steps=8"), str(old_run)) is None
    run = open_run(str(old_run))
    assert run.step == 8
    checkpoints = Checkpoints(str(old_run))
    state = checkpoints.restore_state(build_experiment(config_of()).abstract_state)
    checkpoints.close()
    for name, value in (by_path(state.params, "8/params") | by_path(state.ema_params, "8/ema_params")).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-5, err_msg=name)
