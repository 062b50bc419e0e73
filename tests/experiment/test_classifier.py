"""A classifier of noised images from config to samples: trained, continued, read, and refused where it does not fit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax import benchmark
from ddpm_jax.diffusion.gradient_guidance import class_log_prob, gradient_guidance, gradient_shift
from ddpm_jax.diffusion.rng import sample_keys, seed_keys
from ddpm_jax.diffusion.samplers import initial_noise, sample_loop
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.classifier import open_classifier
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.experiment.training import train
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.training.run_log import read_metrics

CLASSIFIER = (
    "objective.name=classifier", "model.num_classes=10", "optim.learning_rate=0.003", "optim.weight_decay=0.01",
    "model.name=unet", "unet.channels=8", "unet.channel_mults=1,2", "unet.num_groups=4", "unet.attention_resolutions=4",
    "unet.dropout=0.1",
)  # fmt: skip
DRAW = {"num_sampler_steps": 4, "progress": False}


@pytest.fixture(scope="module")
def classifier_run(tiny_config, made_once):
    """A classifier after 8 steps: it knows little, which is enough to see its gradient."""
    return made_once("classifier", lambda workdir: train(tiny_config(*CLASSIFIER), str(workdir)))


@pytest.fixture(scope="module")
def run(straight_run):
    return open_run(straight_run)


def test_its_log_has_the_accuracy_by_quarters_of_t(classifier_run):
    lines = read_metrics(classifier_run)
    for name in ("loss", "accuracy"):
        quarters = {f"{name}_t{i}of4" for i in range(1, 5)}
        for line in lines:
            of_t = [line[quarter] for quarter in quarters & line.keys()]  # a quarter that was not drawn is left out
            assert of_t and 0 <= min(of_t) <= line[name] <= max(of_t) <= (5 if name == "loss" else 1)
        assert quarters <= set().union(*lines)
    assert {"eval_loss", "loss"} <= lines[-1].keys()
    assert not (classifier_run / "samples").exists()


def test_it_is_continued_to_the_same_bits(classifier_run, tiny_config, tmp_path):
    for num_steps in (4, 8):
        assert train(tiny_config(*CLASSIFIER, f"train.num_steps={num_steps}"), str(tmp_path)) is None
    straight, resumed = (open_classifier(folder, weights="raw") for folder in (classifier_run, tmp_path))
    assert (straight.step, straight.num_classes) == (8, 10) and "10 classes" in repr(straight)
    jax.tree.map(np.testing.assert_array_equal, straight.params, resumed.params)
    assert straight.facts == resumed.facts != open_classifier(classifier_run).facts  # other weights


def test_the_loss_is_the_cross_entropy_of_the_right_class(classifier_run, tiny_config):
    """By hand from the logits, for what a step draws; the accuracy from the likeliest class."""
    experiment, classifier = (
        build_experiment(tiny_config(*CLASSIFIER, "unet.dropout=0")),
        open_classifier(classifier_run),
    )
    objective = experiment.objective
    with experiment.batches(experiment.source()) as batches:
        batch = jax.device_get(next(batches))
    drawn, weights = objective.draw(objective.codec, batch, jax.random.key(1), {})
    assert len(set(np.asarray(drawn.t).tolist())) > 3 and np.all(np.asarray(weights) == 1)
    losses, _ = objective.losses(classifier.params, objective.codec, drawn, jax.random.key(2), {})
    x_t = dj.q_sample(objective.process.schedule, x_0=drawn.x_0, t=drawn.t, eps=drawn.eps)
    logits = np.asarray(classifier.network.apply({"params": classifier.params}, x_t, drawn.t), np.float64)
    label = np.asarray(batch.condition["label"])
    wanted = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(label)), label]
    np.testing.assert_allclose(losses["loss"], wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(losses["accuracy"], logits.argmax(1) == label)


def test_the_classes_are_those_of_the_classifier(run, classifier_run):
    def guided(**given):
        return run.with_sampler({"classifier": classifier_run, **given}, batch_size=None, num_devices=8)

    assert (run.num_classes, run.drawn_classes) == (0, ())
    assert (guided().num_classes, guided().drawn_classes) == (10, tuple(range(10)))
    assert (guided(classes=(3, 7)).num_classes, guided(classes=(3, 7)).drawn_classes) == (10, (3, 7))
    assert (guided(classifier_scale=0.0).num_classes, guided(classifier_scale=0.0).drawn_classes) == (0, ())


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_samples_are_those_of_the_library(run, classifier_run, sampler):
    """The command's samples against the loop with both rules: a shifted mean, and a shifted eps."""
    classifier, scale = open_classifier(classifier_run), 30.0
    images = run.sample(
        6, seed=3, sampler=sampler, classifier=classifier_run, classifier_scale=scale, classes=(3, 7), **DRAW
    )
    process, params = run.process, jax.tree.map(jnp.asarray, run.params)
    log_prob_fn = class_log_prob(
        lambda x_t, t: classifier.network.apply({"params": classifier.params}, x_t, t), jnp.array([3, 7] * 3)
    )
    if sampler == "ancestral":
        rule = {"mean_shift_fn": gradient_shift(process, log_prob_fn, scale=scale)}
    else:
        rule = {"guide": gradient_guidance(process, log_prob_fn, scale=scale)}
    denoise_fn = dj.make_denoiser(process, lambda x_t, t: run.model.apply({"params": params}, x_t, t, {}), **rule)
    table = run.with_sampler({"sampler": sampler, "num_sampler_steps": 4}, batch_size=None, num_devices=8).sampler_table
    keys = sample_keys(seed_keys(3).sample, jnp.arange(6))
    x_0 = jax.jit(lambda x: sample_loop(denoise_fn, table, x, keys))(initial_noise(keys, (8, 8, 1)))
    assert np.abs(images.astype(int) - np.asarray(dj.to_uint8(x_0))).max() <= 1
    plain = run.sample(6, seed=3, sampler=sampler, **DRAW)
    assert np.mean(images != plain) > 0.05
    # At scale 0 the classifier is left out: the same bits.
    none = run.sample(6, seed=3, sampler=sampler, classifier=classifier_run, classifier_scale=0, **DRAW)
    np.testing.assert_array_equal(none, plain)


def test_the_command_says_it_and_keeps_the_labels(straight_run, classifier_run, sample_main, tmp_path, capsys):
    flags = [f"--workdir={straight_run}", "--num_samples=6", "--num_sampler_steps=4", "--nocompilation_cache"]
    out = tmp_path / "new"
    given = [f"--classifier={classifier_run}", "--classifier_scale=2.5", "--classes=8,1"]
    assert sample_main([*flags, *given, f"--out={out}"]) == 0
    assert f"classifier {classifier_run} with scale 2.5, seed 0" in capsys.readouterr().out
    np.testing.assert_array_equal(np.load(f"{out}.npz")["arr_1"], [8, 1] * 3)


def test_it_guides_together_with_classifier_free_guidance(classifier_run, tiny_config, tmp_path):
    fields = ("model.num_classes=10", "condition.drop_rate=0.5", "train.num_steps=2")
    train(tiny_config(*fields), str(tmp_path))
    run = open_run(tmp_path)
    draw = lambda **given: run.sample(4, sampler="ddim", classes=(5,), **DRAW, **given)  # noqa: E731
    both = draw(guidance_scale=4.0, classifier=classifier_run, classifier_scale=30.0)
    for alone in ({"guidance_scale": 4.0}, {"classifier": classifier_run, "classifier_scale": 30.0}):
        assert np.any(draw(**alone) != both)
    # Labels that are given are those of both.
    of_fives = run.sample(
        4, sampler="ddim", condition={"label": 5}, classifier=classifier_run, classifier_scale=30.0, **DRAW
    )
    np.testing.assert_array_equal(of_fives, draw(classifier=classifier_run, classifier_scale=30.0))
    with pytest.raises(UserError, match="the condition 'label' must be in 0..9 with a classifier"):
        run.sample(4, condition={"label": 10}, classifier=classifier_run, **DRAW)
    # Other values and steps, the same programs.
    generators = run._samples._generators
    before = len(generators)
    draw(guidance_scale=2.0, classifier=classifier_run, classifier_scale=3.0)
    assert len(generators) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("schedule.name=linear",), r"of another process: its schedule.name is 'linear', the run's 'cosine'"),
        (("schedule.num_steps=30",), r"of another process: its schedule.num_steps is 30, the run's 20"),
        (("data.image_size=4,4", "unet.attention_resolutions=2"), r"x_0 of shape \[4, 4, 1\]; the run has \[8, 8, 1\]"),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused(run, classifier_run, tiny_config, monkeypatch, changed, message):
    """Its config is what is compared: a run's config.json with other fields is enough."""
    from ddpm_jax.experiment import classifier as module

    found = open_classifier(classifier_run)
    other = module.TrainedClassifier(found.step, tiny_config(*CLASSIFIER, *changed), found.params)
    monkeypatch.setattr(module, "open_classifier", lambda workdir: other)
    with pytest.raises(UserError, match=message):
        run.sample(2, classifier=classifier_run, **DRAW)


def test_wrong_settings_are_one_line(run, classifier_run, straight_run, tiny_config, tmp_path):
    for given, message in (
        (
            {"classifier": str(straight_run)},
            "^classifier must be a run of objective.name='classifier'; got .*'diffusion'",
        ),
        ({"classifier": str(tmp_path / "none")}, "^classifier must be the folder of a training run; there is no"),
        (
            {"classifier": classifier_run, "classifier_scale": -1.0},
            r"^classifier_scale must be in 0..1000000; got -1.0",
        ),
        ({"classifier": classifier_run, "classifier_scale": float("nan")}, "classifier_scale"),
        ({"classifier_scale": 2.0}, "^classifier_scale needs a classifier"),
        ({"classifier_scale": 2.0, "classifier": None}, "^classifier_scale needs a classifier"),
        (
            {"classifier": classifier_run, "classifier_scale": 0, "classes": (3,)},
            "^classes has no effect at classifier_s",
        ),
        ({"classifier": classifier_run, "classes": (10,)}, "^classes must be in 0..9, the known classes; got 10"),
    ):
        with pytest.raises(UserError, match=message):
            run.sample(2, **given, **DRAW)
    for fields, message in (
        (
            ("model.num_classes=1", "model.name=unet"),
            r"model.num_classes must be in 2..1000000 with objective.name='classifier'",
        ),
        (("model.num_classes=10", "condition.drop_rate=0.1"), "condition.drop_rate must be 0 with"),
        (("model.num_classes=10", "optim.ema_stds=0.05,0.1"), "optim.ema_stds must be empty with objective.name="),
        (("model.num_classes=10", "model.name=conv_net"), "model.name must be 'unet' with objective.name='classifier'"),
        (
            ("model.num_classes=10", "model.name=unet", "unet.scale_skips=true"),
            "^unet.scale_skips must be False with objective.name='classifier', whose network has no way up; got True$",
        ),
        (
            ("model.num_classes=10", "model.name=unet", "unet.head_channels=3"),
            "unet.head_channels must divide the width of",
        ),
        (
            ("model.num_classes=10", "model.name=unet", "optim.weight_decay=-1"),
            "optim.weight_decay must be at least 0; got -1",
        ),
    ):
        with pytest.raises(UserError, match=message):
            build_experiment(tiny_config("objective.name=classifier", *fields))
    with pytest.raises(UserError, match="best and step=8 both choose a checkpoint"):
        open_classifier(classifier_run, best=True, step=8)
    with pytest.raises(UserError, match="must be a run of objective.name='diffusion'; got"):
        open_run(classifier_run)


def test_benchmark_refuses_it(capsys):
    assert benchmark.main(["--config=classifier_digits", "--dry_run", "--nocompile"]) == 2
    assert "measures diffusion models; got objective.name='classifier'" in capsys.readouterr().err


def test_a_training_run_may_have_one(classifier_run, tiny_config, tmp_path):
    """Its grids are of the classifier's classes; the config names the folder."""
    config = tiny_config(f"sample.classifier={classifier_run}", "sample.classifier_scale=5.0", "train.num_steps=2")
    assert train(config, str(tmp_path)) is None
    assert json.loads((tmp_path / "config.json").read_text())["sample"]["classifier"] == str(classifier_run)
    assert (tmp_path / "samples" / "final_ema.png").exists()
