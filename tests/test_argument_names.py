"""A library function complains by the names of its own arguments; who reads a config puts the fields in their place."""

import ast
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax.data import image_source, make_source
from ddpm_jax.data.pack_folder import pack_folder
from ddpm_jax.diffusion.losses import make_loss_fn
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers.ancestral import ancestral_table
from ddpm_jax.diffusion.samplers.ddim import ddim_table
from ddpm_jax.diffusion.samplers.heun import heun_table
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import named_steps, spaced_steps
from ddpm_jax.evaluation.elbo_bits_per_dim import build_bits_per_dim
from ddpm_jax.evaluation.image_sets import open_images
from ddpm_jax.experiment import data_factory
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_overrides import flatten
from ddpm_jax.experiment.packaged_configs import base_config
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.models.unet import UNet
from ddpm_jax.models.unet_checks import check_unet
from ddpm_jax.runtime.devices import make_mesh
from ddpm_jax.runtime.disk_space import DiskFullError
from ddpm_jax.runtime.errors import UserError, arg, arguments_named
from ddpm_jax.training.log_sinks import check_wandb
from ddpm_jax.training.nonfinite import NonFiniteError
from ddpm_jax.training.optimizer import make_ema_decay

PACKAGE = Path(ddpm_jax.__file__).parent
# What knows no config; `data/__main__.py` is a command.
LIBRARY = sorted(
    path
    for folder in ("diffusion", "models", "data", "training")
    for path in (PACKAGE / folder).rglob("*.py")
    if path.name != "__main__.py"
) + [PACKAGE / "runtime" / "devices.py"]
LINEAR = make_schedule("linear", num_steps=20)
COSINE = make_schedule("cosine", num_steps=20)


def message_of(function, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


# The marks


def test_what_is_marked_is_shown_plain():
    error = UserError(f"{arg('eta')} must be at least 0: take {arg('steps=None')}")
    assert str(error) == error.args[0] == "eta must be at least 0: take steps=None"


@pytest.mark.parametrize("error", [DiskFullError(f"{arg('a')} is full"), NonFiniteError(3, f"loss {arg('a')}")])
def test_a_renamed_error_is_the_same_one(error):
    attributes = {name: value for name, value in vars(error).items() if not name.startswith("_")}
    with pytest.raises(type(error)) as caught, arguments_named({"a": "--flag"}.get):
        raise error
    assert caught.value is error and "--flag" in str(error) and error.exit_code == type(error).exit_code
    assert attributes == {name: value for name, value in vars(error).items() if not name.startswith("_")}


def test_the_inner_block_names_first_and_leaves_the_rest_to_the_outer_one():
    with pytest.raises(UserError, match="^--a and --b$"), arguments_named({"a": "no", "b": "--b"}.get):
        with arguments_named({"a": "--a"}.get):
            raise UserError(f"{arg('a')} and {arg('b')}")


# The library


def strings_of(path):
    """(line, text) of every string in a file that is no docstring; {} for what an f-string fills in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docstrings | parts):
            yield node.lineno, node.value


def test_no_string_of_the_library_speaks_of_a_config():
    config = base_config()
    fields = "|".join(sorted((re.escape(field) for field in flatten(config)), key=len, reverse=True))
    spoken = re.compile(rf"(?<![\w.])({fields}|({'|'.join(config)})\.\{{\}})(?!\w)|--config")
    assert spoken.search("take sample.eta=0") and spoken.search("optim.{} must be") and not spoken.search("model.apply")
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {text}"
        for path in LIBRARY
        for line, text in strings_of(path)
        if spoken.search(text)
    ]
    assert len(LIBRARY) > 40 and not found, "\n".join(found)


# (a library function with a mistake, the same mistake in a config, how both complain; {} is the difference).
CASES = [
    (lambda: make_schedule("cosin"), ["schedule.name=cosin"], "{schedule.}name must be one of ["),
    (lambda: make_schedule(beta_start=0.5), ["schedule.beta_start=0.5"], "{schedule.}beta_start and beta_end must"),
    (lambda: make_schedule("constant", beta_end=1.5), ["schedule.name=constant", "schedule.beta_end=1.5"],
     "each beta must be in (0, 1), the last one at most 1; got 1.5 to 1.5: take more steps or a smaller {schedule.}"),
    (lambda: make_schedule(num_steps=1, zero_terminal_snr=True),
     ["schedule.num_steps=1", "schedule.zero_terminal_snr=True"],
     "{schedule.}zero_terminal_snr=True needs {schedule.}num_steps of at least 2; got 1"),
    (lambda: spaced_steps(20, 21), ["sample.num_sampler_steps=21"],
     "{sample.}num_sampler_steps must be in 1..20 (T); got 21"),
    (lambda: spaced_steps(20, 19, "quadratic"), ["sample.num_sampler_steps=19", "sample.spacing=quadratic"],
     "{sample.}spacing='quadratic' with 19 of 20 steps would visit a step twice: take fewer "
     "{sample.}num_sampler_steps or 'uniform'"),
    (lambda: ddim_table(LINEAR, eta=50.0), ["sample.sampler=ddim", "sample.eta=50.0"], "{sample.}eta must be at least"),
    (lambda: make_loss_fn(Process(COSINE), loss="l2"), ["diffusion.loss=l2"], "{diffusion.}loss must be one of ["),
    (lambda: make_loss_fn(Process(COSINE, variance="learned")), ["diffusion.variance=learned"],
     "{diffusion.}variance='learned' is not trained by {diffusion.}loss='simple': take 'hybrid'"),
    (lambda: make_mesh(99), ["train.num_devices=99"], "{train.}num_devices must be in 0..8"),
    (lambda: make_mesh(8, 3), ["train.num_devices=8", "mesh.fsdp=3"], "{mesh.}fsdp must divide the number of devices"),
    (lambda: check_unet(UNet(num_heads=3), (32, 32)), ["model.name=unet", "unet.num_heads=3"],
     "{unet.}num_heads must divide the width"),
    (lambda: check_unet(UNet(), (33, 32)), ["model.name=unet", "unet.channel_mults=1,1", "data.image_size=33,32"],
     "{data.}image_size must be divisible by "),
    (lambda: make_ema_decay(1.0), ["optim.ema_decays=1.0"], "{optim.ema_}decay{s} must be in [0, 1); got 1.0"),
    (lambda: make_ema_decay(0.5, start="x"), ["optim.ema_start=x"], "{optim.ema_}start must be one of ["),
]  # fmt: skip


@pytest.mark.parametrize(("library", "overrides", "message"), CASES, ids=[" ".join(o) for _, o, _ in CASES])
def test_the_library_names_arguments_and_the_experiment_fields(tiny_config, library, overrides, message):
    assert message_of(library).startswith(re.sub(r"\{.*?\}", "", message))
    config = tiny_config(*overrides)
    assert message_of(build_experiment, config).startswith(re.sub(r"[{}]", "", message))


def test_what_a_caller_writes_in_another_way_is_renamed_whole(tiny_config):
    advice = "take steps=None for all, ddim_table, or train with 'learned_range'"
    assert advice in message_of(ancestral_table, Process(COSINE, variance="learned"), steps=spaced_steps(20, 5))
    config = tiny_config("diffusion.variance=learned", "diffusion.loss=hybrid", "sample.num_sampler_steps=5")
    advice = "take sample.num_sampler_steps=0 for all, sample.sampler='ddim', or train with 'learned_range'"
    assert advice in message_of(build_experiment, config)


def test_a_weighting_of_a_bound(tiny_config):
    message = message_of(make_loss_fn, Process(COSINE), loss="vlb", weights=jnp.ones(20))
    assert message == "weights must be None with loss='vlb', whose weights are given"
    message = message_of(build_experiment, tiny_config("diffusion.loss=vlb", "diffusion.weighting=p2"))
    assert message == "diffusion.weighting must be 'none' with diffusion.loss='vlb', whose weights are given"


def test_a_sampler_that_cannot_start_without_signal(tiny_config):
    message = "sampler='heun' cannot start where alpha-bar is 0: take"
    noisy = make_schedule("linear", num_steps=20, zero_terminal_snr=True)
    assert message_of(heun_table, noisy).startswith(message)
    fields = ["schedule.zero_terminal_snr=True", "diffusion.prediction=v", "sample.sampler=heun"]
    assert message_of(build_experiment, tiny_config(*fields)).startswith(f"sample.{message}")


def test_wandb_that_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert message_of(check_wandb, "x").startswith("project='x' needs wandb")


# Data


@pytest.fixture
def one_picture(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "a.png")
    return folder


def test_sources(tiny_config):
    sizes = {"image_size": (8, 8), "num_channels": 1}
    message = "split must be one of ['all', 'test', 'train']; got 'tset'; did you mean 'test'?"
    assert message_of(make_source, name="digits", split="tset", **sizes) == message
    config = tiny_config()
    assert message_of(data_factory.build_source, config, "tset") == f"data.{message}"
    assert message_of(data_factory.build_source, config, "tset", "--split") == f"--{message}"
    assert message_of(open_images, "--reference", "digits:tset") == f"the split of --reference{message[5:]}"

    message = "path must name a folder of images or a packed file; got ''; add "
    assert message_of(make_source, name="image_folder", **sizes) == f"{message}path=DIR"
    config = tiny_config("data.name=image_folder")
    assert message_of(data_factory.build_source, config, "train") == f"data.{message}--config.data.path=DIR"
    given = {"image_size": (8, 8)}
    assert message_of(open_images, "--reference", "image_folder:all", **given) == f"--data_{message}--data_path=DIR"


def test_packing_names_its_folder(tmp_path, capsys):
    from ddpm_jax.data.__main__ import main

    message = "must name a folder of images or a packed file; got"
    nowhere, out = str(tmp_path / "nowhere"), str(tmp_path / "out")
    assert message_of(pack_folder, nowhere, out, image_size=(8, 8), num_channels=3).startswith(f"folder {message}")
    assert main(["pack", nowhere, out, "--image_size=8,8"]) == 2
    assert capsys.readouterr().err.startswith(f"error: DIR {message}")


def test_a_folder_that_goes_while_it_is_read(tiny_config, one_picture, monkeypatch):
    monkeypatch.setattr(image_source, "MEMORY_BUDGET_BYTES", 0)  # read when asked for
    config = tiny_config("data.name=image_folder", f"data.path={one_picture}", "data.num_channels=3")
    sizes = {"image_size": (8, 8), "num_channels": 3}
    own = make_source(name="image_folder", path=str(one_picture), **sizes)
    source = data_factory.build_source(config, "train")
    reference = open_images("--reference", str(one_picture), image_size=(8, 8))
    assert (len(source), source.image_shape, source.labels, source.notes) == (1, (8, 8, 3), None, ())
    shutil.rmtree(one_picture)
    for images, name in ((own, "path"), (source, "data.path"), (reference.source, "--reference")):
        assert message_of(images.load, np.arange(1)).startswith(f"{name} '{one_picture}' is missing; put it back")


# Flags


def test_respacing_by_config_and_by_flag(tiny_config):
    message = "='ddim15': no whole stride visits exactly 15 of 20 steps; the nearest are ddim10 and ddim20; "
    assert message_of(named_steps, 20, "ddim15") == f"name{message}num_sampler_steps takes any number"
    config = tiny_config("sample.respacing=ddim15")
    assert message_of(build_experiment, config) == f"sample.respacing{message}sample.num_sampler_steps takes any number"
    settings = {"seed": 0, "batch_size": 8, "max_images": 0, "respacing": "ddim15"}
    run = TrainedRun(0, tiny_config(), {})
    assert message_of(build_bits_per_dim, run, "test", make_mesh(), **settings) == (
        f"--bits_respacing{message}--bits_respacing=N takes any number"
    )
