"""Every experiment that ships: it builds, has the size it promises, and says how to run it."""

import fnmatch
import functools
import importlib
import re

import jax
import numpy as np
import pytest

from ddpm_jax.data.condition import example_condition
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_checks import image_shape_of
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.config_overrides import flatten
from ddpm_jax.experiment.model_factory import build_process, is_classifier
from ddpm_jax.experiment.packaged_configs import packaged_experiments
from ddpm_jax.experiment.state_sizes import abstract_batch
from ddpm_jax.models.parameters import init_params, num_params

COUNTS = {
    "digits": 701_345,
    "digits_classes": 702_753,  # and 11 vectors of 128
    "classifier_digits": 331_658,
    "fashion_mnist": 1_540_681,
    "image_folder": 49_641_699,
    "image_folder_small": 1_541_547,
    "palette_fashion": 1_541_113,  # two more channels of the input than fashion_mnist, times 9 * 24
    "fashion_7": 240_481,
    "fashion_7to28": 1_552_609,  # one more channel of the input, 9 * 24, and the layers of the level, 25 * 96 + 97 * 96
    "palette_clothing": 1_541_763,
    "palette_image_folder": 57_895_299,
    "cifar10": 35_746_307,  # of the original code, as for 256x256
    "cifar10_paper": 35_746_307,
    "celeba_hq_256": 113_673_219,
    "lsun": 113_673_219,
    "cifar10_vlb": 35_746_307,
    # tests/parity/test_parity_openai.py counts these over again, from the flags of OpenAI's READMEs.
    "improved_cifar10": 52_546_438,
    "improved_cifar10_vlb": 52_546_438,
    "improved_imagenet64": 121_063_942,
    "improved_imagenet64_vlb": 121_063_942,
    "improved_imagenet64_cond": 273_049_350,
    "improved_lsun": 113_676_678,
    "guided_imagenet64": 295_904_454,
    "guided_imagenet128": 421_529_606,
    "guided_imagenet256": 553_838_086,
    "guided_imagenet512": 558_997_638,
    "guided_lsun": 552_814_086,
    "improved_64to256": 279_792_390,
    "guided_64to256": 311_795_910,
    "guided_128to512": 308_835_270,
    "cifar10_8to32": 36_078_467,
    "image_folder_64to256": 74_862_438,
    "sr3_16to128": 560_719_107,
    "sr3_64to256": 617_118_467,
    "cascade_imagenet_32": 129_147_654,
    "cascade_imagenet_32to64": 296_648_454,
    "cascade_imagenet_64to128": 237_361_734,
    "cascade_imagenet_64to256": 311_795_910,
}
# As the authors round them: in comments of Ho et al.'s scripts, in improved-diffusion's README and the names of the
# files that it links to, for guided-diffusion in what https://aiportalx.com/openai/adm takes from the paper and, of
# upsamplers, in the paper's table 13.
PUBLISHED = {
    "cifar10": "35.7M",
    "lsun": "114M",
    "improved_cifar10": "50M",
    "improved_imagenet64": "100M",
    "improved_imagenet64_cond": "270M",
    "improved_lsun": "100M",
    "guided_imagenet512": "559M",
    "improved_64to256": "280M",
    "guided_64to256": "312M",
    "guided_128to512": "309M",
}


def test_every_experiment_is_counted():
    assert sorted(COUNTS) == packaged_experiments()


@functools.cache
def count_of(model, image_shape, entries):
    condition = example_condition(dict(entries))
    return num_params(jax.eval_shape(lambda key: init_params(model, key, image_shape, condition), jax.random.key(0)))


@pytest.mark.parametrize("name", packaged_experiments())
def test_builds(name):
    """All that a run of it needs; its network is traced once for all experiments that have the same."""
    experiment = build_experiment(load_config(name))
    told = () if is_classifier(experiment.config) else tuple(experiment.condition.items())
    assert count_of(experiment.model.clone(dropout=0.0), image_shape_of(experiment.config), told) == COUNTS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    digits = PUBLISHED[name][:-1].replace(".", "").rstrip("0")
    assert float(PUBLISHED[name][:-1]) * 1e6 == float(f"{COUNTS[name]:.{len(digits) - 1}e}")


def shapes_and_dtypes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def small(name):
    """The experiment with one block in its first level: more would take seconds to trace; `test_builds` traces it."""
    config = load_config(name)
    with config.unlocked():
        config.unet.num_res_blocks = 1
        config.unet.channel_mults = config.unet.channel_mults[:1]
        config.unet.attention_resolutions = (config.data.image_size[0],)
    return config


# Fields that the train step does not have, and those of which it has the number alone: 0 may leave something out.
NOT_OF_THE_STEP = (
    "data.name", "data.path", "data.data_dir", "data.split", "data.eval_split", "train.seed", "train.num_steps",
    "train.*_every_steps", "train.keep_checkpoints", "train.num_ema_snapshots", "train.nonfinite_limit",
    "train.wandb_project", "sample.*", "eval.*",
)  # fmt: skip
NUMBERS = (
    "data.image_size", "unet.channels", "unet.attention_resolutions", "schedule.num_steps", "train.batch_size",
    "optim.warmup_steps", "optim.decay_steps", "optim.warmup_share", "optim.decay_share", "condition.factor",
    "condition.max_level", "unet.num_heads", "unet.head_channels",
)  # fmt: skip


def step_of(name):
    """What of the small experiment decides the program of its train step, but for sizes."""
    fields = flatten(small(name))
    return tuple(
        (field, bool(value) if field in NUMBERS or isinstance(value, float) else value)
        for field, value in fields.items()
        if not any(fnmatch.fnmatchcase(field, pattern) for pattern in NOT_OF_THE_STEP)
    )


@pytest.mark.parametrize("name", sorted({step_of(name): name for name in packaged_experiments()[::-1]}.values()))
def test_trains(name):
    """A step of each kind that there is among the experiments, of the first one that has it."""
    experiment = build_experiment(small(name))
    state = experiment.abstract_state
    batch = abstract_batch(experiment)
    after, metrics = jax.eval_shape(experiment.train_step, state, batch, experiment.keys.train)
    assert shapes_and_dtypes(after) == shapes_and_dtypes(state)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("name", packaged_experiments())
def test_docstring_is_a_promise(name):
    text = importlib.import_module(f"ddpm_jax.configs.{name}").__doc__
    assert f"python -m ddpm_jax.train --config=configs/{name}.py" in text
    assert "Hardware and time:" in text
    numbers = re.findall(r"(\d+(?:\.\d+)?) M parameters", text.partition("Command:")[0])
    assert len(numbers) == 1, "say once, above the command, how many M parameters it has"
    digits = len(numbers[0].partition(".")[2])
    assert numbers[0] == f"{COUNTS[name] / 1e6:.{digits}f}"


def test_tfds_knows_the_data():
    """By name alone; nothing is downloaded."""
    tfds = pytest.importorskip("tensorflow_datasets")
    ours = {"digits", "mnist", "fashion_mnist", "cifar10", "image_folder"}
    names = {load_config(name).data.name for name in packaged_experiments()} - ours
    assert "lsun/church_outdoor" in names
    for name in names:
        data, _, settings = name.partition("/")
        known = {config.name for config in tfds.builder_cls(data).BUILDER_CONFIGS}
        assert settings in known or not (settings or known), name


def test_the_papers_quirks():
    paper, ours = load_config("cifar10_paper"), load_config("cifar10")
    assert (paper.optim.clip_replicas, paper.optim.grad_clip) == (8, 0.0)
    assert paper.optim.first_step_zero and paper.optim.ema_start == "copy_first"
    assert (ours.optim.clip_replicas, ours.optim.grad_clip, ours.optim.first_step_zero) == (0, 1.0, False)
    for config in (paper, ours):  # Ho et al. 2020, appendix B
        assert config.schedule.to_dict() == dict(
            name="linear", num_steps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=False
        )
        assert (config.optim.learning_rate, config.optim.warmup_steps) == (2e-4, 5000)
        assert config.optim.ema_decays == (0.9999,)
        assert (config.train.batch_size, config.train.num_steps, config.unet.dropout) == (128, 800_000, 0.1)
        assert config.data.flip and config.diffusion.variance == "fixed_large"


def test_large_pictures():
    for name, steps, rate in (("celeba_hq_256", 500_000, 2e-5), ("lsun", 1_200_000, 2e-5)):
        config = load_config(name)
        assert (config.train.num_steps, config.optim.learning_rate, config.train.batch_size) == (steps, rate, 64)
        assert config.diffusion.variance == "fixed_small" and config.unet.dropout == 0.0


def test_the_bound_alone():
    paper, bound = (load_config(name).to_dict() for name in ("cifar10_paper", "cifar10_vlb"))
    assert bound.pop("diffusion") == paper.pop("diffusion") | {"loss": "vlb"} and bound == paper


def test_nichol_and_dhariwal():
    """The flags in the README of improved-diffusion over its defaults."""
    for name in (n for n in COUNTS if n.startswith("improved_")):
        config = load_config(name)
        lsun, cond, vlb, larger = (name.endswith(end) for end in ("_lsun", "_cond", "_vlb", "_64to256"))
        assert config.schedule.name == ("linear" if lsun or larger else "cosine")
        assert config.schedule.num_steps == (1000 if lsun else 4000)
        assert config.diffusion.variance == "learned_range" and config.diffusion.prediction == "eps"
        assert config.diffusion.loss == ("rescaled_vlb" if vlb else "hybrid")
        assert config.train.time_sampler == ("loss_second_moment" if vlb else "uniform")
        # T L_t / 1000 where sigmas are rescaled, L_t alone where not; t up to 1000 or as it is.
        assert config.diffusion.vlb_lambda == (1 / 4000 if cond or larger else 0.001)
        assert config.unet.time_scale == (1.0 if lsun or cond or larger else 0.25)
        assert config.unet.dropout == (0.3 if "cifar10" in name else 0.0)
        assert config.optim.learning_rate == (3e-4 if cond or larger else 1e-4)
        assert config.train.batch_size == (2048 if cond else 256 if larger else 128)
        assert not config.data.flip


def test_dhariwal_and_nichol():
    """The flags in the README of guided-diffusion over its defaults."""
    for name in (n for n in COUNTS if n.startswith("guided_")):
        config = load_config(name)
        small, dropout = name == "guided_imagenet64", name in ("guided_imagenet64", "guided_lsun")
        assert (config.schedule.name, config.schedule.num_steps) == ("cosine" if small else "linear", 1000)
        assert (config.diffusion.loss, config.diffusion.variance) == ("hybrid", "learned_range")
        assert (config.diffusion.vlb_lambda, config.unet.time_scale) == (0.001, 1.0)
        assert config.unet.dropout == (0.1 if dropout else 0.0)
        assert config.model.num_classes == (0 if name == "guided_lsun" else 1000)
        assert config.data.flip


def test_openais_optimiser():
    """AdamW without decay at a constant rate, no clip, an EMA that starts at the initial parameters."""
    for name in (n for n in COUNTS if n.startswith(("improved_", "guided_"))):
        optim = load_config(name).optim
        assert (optim.warmup_steps, optim.decay_steps, optim.grad_clip, optim.clip_replicas) == (0, 0, 0.0, 0)
        assert (optim.b1, optim.b2, optim.eps) == (0.9, 0.999, 1e-8)
        assert (optim.ema_decays, optim.ema_start) == ((0.9999,), "constant")
        assert load_config(name).sample.respacing == "250"


def test_adms_upsamplers():
    """Table 13 of Dhariwal and Nichol 2021."""
    for name, side, steps in (("guided_64to256", 256, 500_000), ("guided_128to512", 512, 1_050_000)):
        config = load_config(name)
        assert config.data.image_size == (side, side) and config.condition.factor == 4
        assert (config.unet.channels, config.unet.num_res_blocks) == (192, 2)
        assert config.unet.channel_mults == (1, 1, 2, 2, 4, 4)
        assert (config.train.num_steps, config.train.batch_size, config.optim.learning_rate) == (steps, 256, 1e-4)


def test_sr3():
    """Saharia et al. 2021, section 4 and table A.1; the betas are those of the reimplementation by Janspiry."""
    for name, side, factor, mults in (
        ("sr3_16to128", 128, 8, (1, 2, 4, 8, 8)),
        ("sr3_64to256", 256, 4, (1, 2, 4, 4, 8, 8)),
    ):
        config = load_config(name)
        betas = build_process(config).schedule.betas_float64
        np.testing.assert_allclose(betas, np.linspace(1e-6, 1e-2, 2000), rtol=1e-12)
        assert (config.data.image_size, config.condition.factor) == ((side, side), factor)
        assert (config.unet.channels, config.unet.channel_mults, config.unet.num_res_blocks) == (128, mults, 3)
        assert (config.condition.upsampling, config.diffusion.network_input) == ("bicubic", "alpha_bar")
        assert config.unet.dropout == (0.2 if side == 128 else 0.0)
        assert (config.train.num_steps, config.train.batch_size) == (1_000_000, 256)
        assert (config.optim.learning_rate, config.optim.warmup_steps) == (1e-4, 10_000)


def test_stages_of_a_cascade_fit():
    """Each takes what the one before gives, and all have the same classes."""
    stages = [load_config(f"cascade_imagenet_{name}") for name in ("32", "32to64", "64to128", "64to256")]
    base, middle, *last = stages
    assert middle.data.image_size[0] == middle.condition.factor * base.data.image_size[0]
    assert all(stage.data.image_size[0] == stage.condition.factor * middle.data.image_size[0] for stage in last)
    assert [stage.condition.augmentation for stage in stages] == ["none", "noise", "blur", "blur"]
    assert {stage.model.num_classes for stage in stages} == {1000}
