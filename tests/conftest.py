"""Eight virtual CPU devices, strict broadcasting, a compilation cache on disk, and what tests share: a tiny U-Net, and
a run that is trained once for all workers.

`ddpm_jax` is imported inside the fixtures alone: the hook of `--jaxtyping-packages`, which checks types and shapes, is
installed after this file is read, and what was imported before it would run unchecked.
"""

import gc
import importlib
import mmap
import os
import shutil
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from filelock import FileLock
from shared_programs import share_programs


def xla_knows(flag):
    """Whether this jaxlib has the flag: one that it does not know would end the process."""
    library = Path(jaxlib.__file__).parent / "libjax_common.so"
    if not library.exists():
        return False
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(flag.encode()) >= 0


# Tests compile far more than they compute. A test that asks for more sets its own options.
XLA_FLAGS = ["--xla_backend_optimization_level=0"]
if xla_knows("xla_cpu_use_fusion_emitters"):
    XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # half the time of a compilation
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *XLA_FLAGS])
# And they trace as much: without the names of Flax's modules in the programs, and without a search for garbage among
# all that was imported, that takes an eighth less.
flax.config.update("flax_profile", False)
gc.set_threshold(50_000, 20, 100)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    cache = getattr(config, "cache", None)  # absent under `-p no:cacheprovider`
    # All workers and the processes that tests start share one cache: that of the caller, where there is one.
    if cache is not None and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache.mkdir("jax_compilation")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(scope="module")
def benchmark_module():
    """name -> the module of benchmarks/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
        yield importlib.import_module


@pytest.fixture(scope="session", autouse=True)
def shared_programs():
    """Runs of this process share their compiled programs; see `shared_programs.py`."""
    with pytest.MonkeyPatch.context() as patch:
        share_programs(patch)
        yield


@pytest.fixture(scope="session")
def tiny_unet():
    """A U-Net with every kind of layer: two levels, attention at height 4, a shortcut, down and up."""
    from ddpm_jax.models.unet import UNet

    return UNet(
        channels=8,
        channel_mults=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        dropout=0.5,
        num_groups=4,
    )


@pytest.fixture(scope="session")
def tiny_params(tiny_unet):
    """Random everywhere, for images 8x8x3: with fresh zero layers most of the network would be invisible."""
    from ddpm_jax.models.parameters import init_params

    shapes = jax.eval_shape(lambda key: init_params(tiny_unet, key, (8, 8, 3)), jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


@pytest.fixture(scope="session")
def tiny_apply(tiny_unet):
    """(params, x_t, t) -> the prediction of `tiny_unet` without dropout, jitted once for the session."""
    return jax.jit(lambda params, x_t, t: tiny_unet.apply({"params": params}, x_t, t))


# One small run for all tests of whole runs: every other program would be compiled anew. It names all that it
# leans on, so that the digits experiment may change.
TINY_RUN = (
    "data.eval_split=test", "data.flip=false", "schedule.name=cosine", "diffusion.variance=fixed_large",
    "diffusion.prediction=eps", "diffusion.weighting=none",
    "model.name=conv_net", "conv_net.channels=8", "conv_net.num_layers=2",
    # With "model.name=unet" beside: the smallest U-Net, which takes eight times as long to trace and to compile.
    "unet.channels=4", "unet.num_groups=2", "unet.channel_mults=1", "unet.attention_resolutions=",
    "unet.num_res_blocks=1", "unet.dropout=0",
    "optim.learning_rate=1e-3", "optim.warmup_steps=2", "optim.warmup_share=0", "optim.decay_steps=0",
    "optim.decay_share=0", "optim.grad_clip=1", "optim.ema_decays=0.995", "optim.ema_start=warmup",
    "train.seed=0", "sample.sampler=ancestral", "sample.num_sampler_steps=0",
    "schedule.num_steps=20", "train.batch_size=8", "train.num_steps=8",
    "train.num_devices=1", "train.log_every_steps=2", "train.checkpoint_every_steps=2",
    "train.sample_every_steps=0", "train.keep_checkpoints=10", "sample.num_grid=4", "sample.batch_size=8",
    "sample.preview_sampler=ddim", "sample.num_preview_steps=5", "sample.eta=0", "eval.max_images=16",
    "eval.batch_size=16",
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny_flags():
    """The command line of the small run, but for the workdir."""
    return ["--config=digits", "--nocompilation_cache", *(f"--config.{override}" for override in TINY_RUN)]


@pytest.fixture(scope="session")
def tiny_overrides():
    """What the small run changes in the digits experiment."""
    return list(TINY_RUN)


@pytest.fixture(scope="session")
def tiny_config():
    """Overrides -> the config of the small run with them."""
    from ddpm_jax.experiment.config_files import load_config

    return lambda *overrides: load_config("digits", [*TINY_RUN, *overrides])


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """(name, make) -> a folder that `make(folder)` fills, once for all workers of this session. Read it or copy it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers

    def made_once(name, make):
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker whose `make` failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made_once


@pytest.fixture(scope="session")
def straight_run(tiny_config, made_once):
    """The workdir of the small run, trained without a stop: checkpoints 2, 4, 6 and 8. Read it or copy it."""
    from ddpm_jax.experiment.training import train

    def make(workdir):
        assert train(tiny_config(), str(workdir)) is None

    return made_once("straight", make)


@pytest.fixture(scope="session")
def inpainting_overrides():
    """Those that make the small run fill holes, with classes."""
    return (
        "condition.task=inpaint", "diffusion.loss_region=hole", "diffusion.network_input=alpha_bar",
        "model.num_classes=10", "condition.drop_rate=0.25",
    )  # fmt: skip


@pytest.fixture(scope="session")
def inpainting_run(tiny_config, inpainting_overrides, made_once):
    """The workdir of a small run that fills holes, trained without a stop."""
    from ddpm_jax.experiment.training import train

    return made_once("inpainting", lambda folder: train(tiny_config(*inpainting_overrides), str(folder)))


@pytest.fixture(scope="session")
def super_resolution_overrides():
    """Those that make the small run enlarge images with noise of 12 levels, with classes."""
    return (
        "condition.task=super_resolve", "condition.factor=2", "condition.augmentation=noise", "condition.max_level=12",
        "model.num_classes=10", "condition.drop_rate=0.25",
    )  # fmt: skip


@pytest.fixture(scope="session")
def super_resolution_run(tiny_config, super_resolution_overrides, made_once):
    """The workdir of a small run that enlarges images, trained without a stop."""
    from ddpm_jax.experiment.training import train

    return made_once("super_resolution", lambda folder: train(tiny_config(*super_resolution_overrides), str(folder)))


@pytest.fixture(scope="session")
def sample_main():
    """`main` of the sample command."""
    from ddpm_jax.sample import main

    return main


@pytest.fixture
def own_run(straight_run, tmp_path):
    """A copy of `straight_run` to damage or to continue."""
    return shutil.copytree(straight_run, tmp_path / "run")


@pytest.fixture(scope="session")
def state_of(tiny_config):
    """(workdir, step) -> the NumPy leaves of params, EMA and optimiser state by path."""
    from ddpm_jax.experiment.build import build_experiment
    from ddpm_jax.workdir.checkpoints import Checkpoints

    abstract = build_experiment(tiny_config()).abstract_state

    def state_of(workdir, step):
        checkpoints = Checkpoints(str(workdir))
        assert checkpoints.steps()[-1] == step
        state = checkpoints.restore_state(abstract)
        checkpoints.close()
        assert int(state.step) == step
        return {jax.tree_util.keystr(path): np.asarray(leaf)
                for path, leaf in jax.tree_util.tree_leaves_with_path(state)}  # fmt: skip

    return state_of
