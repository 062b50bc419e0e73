"""Cascades: what a stage is shown of the one before, what sample n depends on, classes, and stages that do not fit."""

import dataclasses

import jax
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.cascades.cascade import Cascade
from ddpm_jax.cascades.stage import Classes, next_stage
from ddpm_jax.codecs.pixels import to_model_scale
from ddpm_jax.data.condition import example_condition
from ddpm_jax.diffusion.image_conditions import enlarged
from ddpm_jax.diffusion.rng import stage_key
from ddpm_jax.experiment import shown_images
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.runtime.errors import UserError

SHORT = {"sampler": "ddim", "num_sampler_steps": 4}
NOISY = [SHORT, {**SHORT, "augmentation_level": 6}]


def draw(runs, num_samples=11, settings=(SHORT, SHORT), **given):
    return dj.sample_cascade(runs, num_samples, settings=settings, progress=False, **given)


def shown_to_last(cascade, before, seed=0):
    return cascade.stages[-1].shown(before, seed, np.arange(len(before), dtype=np.int32))


def enlarged_twice(x):
    return np.asarray(jax.jit(jax.vmap(lambda one: enlarged(one, 2, "bilinear")))(x))


def test_the_first_stage_draws_the_samples_of_its_run(runs):
    small, large = draw(runs, seed=3)
    np.testing.assert_array_equal(small, runs[0].sample(11, seed=3, progress=False, **SHORT))
    assert small.shape == (11, 4, 4, 1) and large.shape == (11, 8, 8, 1) and large.dtype == np.uint8
    assert len(np.unique(large.reshape(11, -1), axis=0)) == 11


@pytest.mark.parametrize("given", ({}, {"truncate": True}, {"rounding": False}), ids=str)
def test_sample_n_depends_on_the_seed_and_n(runs, given):
    images = draw(runs, settings=NOISY, **given)
    for other in (draw(runs, 11, NOISY, batch_size=16, **given), draw(runs, 3, NOISY, **given)):
        for one, two in zip(images, other, strict=True):  # another batch size is another program
            np.testing.assert_allclose(
                one[: len(two)].astype(float), two.astype(float), atol=1 if one.dtype == np.uint8 else 1e-4
            )
    assert all(np.array_equal(*pair) for pair in zip(images, draw(runs, settings=NOISY, **given), strict=True))
    assert np.mean(draw(runs, settings=NOISY, seed=1, **given)[-1] != images[-1]) > 0.2


def test_level_0_shows_the_small_image_itself(runs):
    cascade = Cascade(runs, settings=[SHORT, SHORT])
    small = draw(runs)[0]
    shown = shown_to_last(cascade, small)
    np.testing.assert_array_equal(shown["shown"], enlarged_twice(to_model_scale(small)))
    assert not shown["level"].any() and shown["level"].dtype == np.int32


def test_noise_of_a_level_is_added_to_x_0(runs):
    cascade = Cascade(runs, settings=NOISY)
    alpha_bar = runs[1].process.schedule.host_alphas_bar[5]
    grey = np.full((2000, 4, 4, 1), 200, np.uint8)
    shown = shown_to_last(cascade, grey)
    assert set(shown["level"].tolist()) == {6}
    corners = shown["shown"][:, 0, 0, 0]  # of one pixel each
    mean, x_0 = corners.mean(), float(to_model_scale(np.uint8(200)))
    assert abs(mean - np.sqrt(alpha_bar) * x_0) < 4 * np.sqrt((1 - alpha_bar) / 2000)
    assert abs(corners.var() / (1 - alpha_bar) - 1) < 4 * np.sqrt(2 / 2000)
    other = shown_to_last(cascade, grey, seed=1)["shown"]
    assert np.all(other != shown["shown"])


def test_a_truncated_stage_stops_at_the_level_and_gets_the_missing_noise(runs):
    cascade = Cascade(runs, settings=[{"sampler": "ddim"}, NOISY[1]], truncate=True)
    first, last = cascade.stages
    alpha_bar = runs[1].process.schedule.host_alphas_bar[5]
    walked = first.table.num_calls
    reached = runs[0].process.schedule.host_alphas_bar[29 - walked]
    assert walked < 30 and reached >= alpha_bar > runs[0].process.schedule.host_alphas_bar[30 - walked]
    keep, add = last.missing
    assert keep**2 * reached == pytest.approx(alpha_bar) and add > 0  # the schedules differ
    x = np.full((2000, 4, 4, 1), 0.7, np.float32)
    corners = shown_to_last(cascade, x)["shown"][:, 0, 0, 0]
    assert abs(corners.mean() - 0.7 * keep) < 4 * add / np.sqrt(2000)
    assert abs(corners.var() / add**2 - 1) < 4 * np.sqrt(2 / 2000)
    small, large = draw(runs, 3, [{"sampler": "ddim"}, NOISY[1]], truncate=True)
    assert small.dtype == np.float32 and large.dtype == np.uint8

    # The first stage by hand.
    run = runs[0].with_sampler({"sampler": "ddim"}, batch_size=None, num_devices=8)
    keys = dj.sample_keys(dj.seed_keys(0).sample, np.arange(8))
    denoise_fn = run.denoiser_of()(run.params, run.condition_of(np.arange(8)))
    x_s = dj.sample_loop(denoise_fn, run.sampler_table.rows(0, walked), dj.initial_noise(keys, (4, 4, 1)), keys)
    np.testing.assert_allclose(small, x_s[:3], atol=1e-4)


def test_a_stage_of_the_same_schedule_is_shown_x_s_itself(runs):
    """Where a step of the sampler has the level, no noise is added."""
    same = dataclasses.replace(
        runs[0], config=runs[0].with_fields(["schedule.name=cosine", "schedule.num_steps=20"], ["schedule.*"]).config
    )
    cascade = Cascade([same, runs[1]], settings=[{"sampler": "ddim"}, NOISY[1]], truncate=True)
    assert cascade.stages[0].table.num_calls == 14 and cascade.stages[1].missing == (1.0, 0.0)
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype(np.float32)
    np.testing.assert_array_equal(shown_to_last(cascade, x)["shown"], enlarged_twice(x))


def test_without_rounding_stages_exchange_x_0(runs):
    (rounded, _), (exact, _) = draw(runs), draw(runs, rounding=False)
    assert exact.dtype == np.float32 and -1 <= exact.min() <= exact.max() <= 1
    np.testing.assert_array_equal(np.floor((exact + 1) * 127.5 + 0.5).astype(np.uint8), rounded)
    assert np.any(exact != np.asarray(to_model_scale(rounded)))


def test_the_stages_have_noise_of_their_own():
    keys = {tuple(jax.random.key_data(stage_key(5, stage)).tolist()) for stage in range(4)}
    assert len(keys) == 4
    assert tuple(jax.random.key_data(dj.seed_keys(5).sample).tolist()) in keys


def test_all_stages_have_the_classes_of_the_first(runs):
    cascade = Cascade(runs, settings=[{"classes": (3, 7)}, {"guidance_scale": 2.0}])
    assert cascade.labels(5).tolist() == [3, 7, 3, 7, 3] and cascade.stages[1].classes == Classes((3, 7), 10)
    numbers = np.arange(4)
    assert cascade.stages[1]._generator.condition_of(numbers)["label"].tolist() == [3, 7, 3, 7]
    assert Cascade(runs).labels(12).tolist() == [*range(10), 0, 1]


def test_other_settings_compile_nothing(runs):
    def num_programs():
        kept = [generator for run in runs for generator, _ in run.programs.generators.values()]
        of_shown = (shown_images._at_level, shown_images._noised)
        return [made._advance._cache_size() for made in kept], [function._cache_size() for function in of_shown]

    draw(runs, 8, NOISY)
    draw(runs, 8, NOISY, truncate=True)
    before = num_programs()
    draw(runs, 8, [{**SHORT, "num_sampler_steps": 7}, {"sampler": "ddim", "augmentation_level": 9}], seed=4)
    draw(runs, 8, [{**SHORT, "num_sampler_steps": 7}, {"sampler": "ddim", "augmentation_level": 9}], truncate=True)
    assert num_programs() == before


@pytest.mark.parametrize(
    ("before", "said"),
    (
        (Classes(), "told the class of an image, and the stages before draw images without"),
        (Classes((0, 1), 2), "it has 10 classes, and the stages before have 2"),
    ),
)
def test_a_network_with_classes_needs_the_same(runs, before, said):
    stage = dataclasses.replace(Cascade(runs).stages[0], classes=before)
    with pytest.raises(UserError, match=said):
        next_stage(stage, runs[1], {}, None)


def untrained(config):
    """A run with the parameters that a training would begin with."""
    experiment = build_experiment(config)
    condition = example_condition(experiment.condition)
    params = dj.init_params(experiment.model, jax.random.key(0), experiment.image_shape, condition)
    return TrainedRun(0, config, jax.device_get(params))


@pytest.fixture(scope="module")
def three(tiny_config):
    """2x2, to 4x4, to 8x8; the last is shown no noise."""
    enlarge = ["condition.task=super_resolve", "condition.factor=2"]
    noise = ["condition.augmentation=noise", "condition.max_level=12"]
    return [
        untrained(tiny_config("data.image_size=2,2", "data.area_factor=4")),
        untrained(tiny_config("data.image_size=4,4", "data.area_factor=2", *enlarge, *noise)),
        untrained(tiny_config(*enlarge)),
    ]


@pytest.mark.parametrize("given", ({}, {"truncate": True}, {"rounding": False}), ids=str)
def test_three_stages(three, given):
    settings = [{"sampler": "ddim"}, {"sampler": "ddim", "augmentation_level": 5}, SHORT]
    results = draw(three, 3, settings, **given)
    assert [one.shape[1:] for one in results] == [(2, 2, 1), (4, 4, 1), (8, 8, 1)]
    stages = Cascade(three, settings=settings, **given).stages
    assert [stage.result_dtype for stage in stages] == [one.dtype for one in results]
    # Only the stage that is shown noise lets the one before stop.
    assert [stage.stop is not None for stage in stages] == [bool(given.get("truncate")), False, False]
    np.testing.assert_array_equal(
        shown_to_last(Cascade(three, settings=settings, **given), results[1])["shown"],
        enlarged_twice(results[1] if results[1].dtype == np.float32 else to_model_scale(results[1])),
    )
    if not given:
        np.testing.assert_array_equal(draw(three[:2], 3, settings[:2])[1], results[1])


def renamed(run, name):
    return dataclasses.replace(run, class_names=(name,) * 10)


REFUSED = {
    "one stage": (lambda a, b: [a], {}, "runs must be a list of 2 to 8 runs"),
    "no small images": (
        lambda a, b: [b, b], {}, "stage 1: the first stage of a cascade must draw images from nothing; this run has",
    ),
    "no super-resolution": (
        lambda a, b: [a, a], {}, "stage 2: each stage after the first must be a run of condition.task='super_resolve';",
    ),
    "other sizes": (
        lambda a, b: [a, b, b], {},
        "stage 3: it enlarges images of shape [4, 4, 1], by condition.factor=2; the stage before draws [8, 8, 1]",
    ),
    "other classes": (lambda a, b: [renamed(a, "x"), renamed(b, "y")], {}, "stage 2: it has the classes"),
    "few settings": (lambda a, b: [a, b], {"settings": [{}]}, "settings must be a list of 2 mappings"),
    "classes of stage 2": (
        lambda a, b: [a, b], {"settings": [{}, {"classes": (1,)}]}, "stage 2: classes are those of the first stage",
    ),
    "a high level": (
        lambda a, b: [a, b], {"settings": [{}, {"augmentation_level": 13}]}, "stage 2: augmentation_level must be in",
    ),
    "a level of stage 1": (
        lambda a, b: [a, b], {"settings": [{"augmentation_level": 1}, {}]}, "stage 1: augmentation_level=1 is for a",
    ),
    "level 0": (lambda a, b: [a, b], {"truncate": True}, "truncate needs an augmentation_level above 0"),
    "two ways": (lambda a, b: [a, b], {"truncate": True, "rounding": False}, "rounding has no effect with truncate"),
    "few steps": (
        lambda a, b: [a, b], {"settings": [{"respacing": "t=29,20"}, NOISY[1]], "truncate": True},
        "stage 1: truncate needs a step of the sampler before x_0",
    ),
    "no list": (lambda a, b: a, {}, "runs must be a list"),
    "settings of one": (lambda a, b: [a, b], {"settings": {"eta": 0.5}}, "settings must be a list of 2 mappings"),
    "no mapping": (lambda a, b: [a, b], {"settings": [{}, None]}, "settings must be a list of 2 mappings"),
    "no flag": (lambda a, b: [a, b], {"truncate": "no"}, "truncate must be True or False; got 'no'"),
    "batch": (lambda a, b: [a, b], {"batch_size": 3}, "stage 1: batch_size must be a multiple of 8"),
    "no effect": (lambda a, b: [a, b], {"settings": [{}, {"eta": 0.5}]}, "stage 2: eta is of sampler=ddim"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(runs, case):
    change, given, said = REFUSED[case]
    with pytest.raises(UserError) as refused:
        Cascade(change(*runs), **given)
    assert said in str(refused.value) and "\n" not in str(refused.value)
