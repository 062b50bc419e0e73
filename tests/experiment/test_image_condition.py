"""Image-conditional runs: what the network is shown, in training, of held-out images, and of samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.codecs.pixels import to_uint8
from ddpm_jax.data.batch import Batch
from ddpm_jax.data.image_source import load_rows
from ddpm_jax.diffusion.image_conditions import TASKS, make_image_task
from ddpm_jax.experiment import image_condition
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.conditions import condition_of
from ddpm_jax.experiment.data_factory import build_source
from ddpm_jax.experiment.sample_picture import sample_picture
from ddpm_jax.experiment.training import train
from ddpm_jax.experiment.weak_network import WeakNetwork
from ddpm_jax.runtime.devices import batch_sharded, make_mesh
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.runtime.image_files import grid_of_groups
from ddpm_jax.workdir.checkpoints import Checkpoints

INPAINT = ("condition.task=inpaint", "diffusion.loss_region=hole", "diffusion.network_input=alpha_bar")


def test_held_out_images_and_samples_are_shown_the_same(tiny_config):
    config = tiny_config(*INPAINT)
    source = build_source(config, config.data.eval_split)
    numbers = np.array([3, 0, 5])
    rows = {name: source.columns[name][numbers] for name in ("shown", "known")}
    x_0 = source.load(numbers) / 127.5 - 1
    np.testing.assert_allclose(rows["shown"], np.where(rows["known"] == 1, x_0, 0), atol=1e-6)
    assert set(np.unique(rows["known"])) == {0, 1} and rows["shown"].dtype == np.float32
    of_samples = condition_of(config)(numbers + len(source))  # samples begin again with the first image
    for name in rows:
        np.testing.assert_array_equal(of_samples[name], rows[name])
    one = source.columns["known"][np.array([5])]
    np.testing.assert_array_equal(one[0], rows["known"][2])  # the hole of an image depends on its number alone


def test_a_batch_is_derived_once(tiny_config, monkeypatch):
    calls = []
    derive = image_condition._columns_of
    monkeypatch.setattr(image_condition, "_columns_of", lambda *args: calls.append(len(args[3])) or derive(*args))
    config = tiny_config(*INPAINT)
    source = build_source(config, config.data.eval_split)
    load_rows(source, np.arange(4), build_experiment(config).condition)
    assert calls == [4]


def test_a_step_derives_the_condition_from_its_images(tiny_config):
    objective = build_experiment(tiny_config(*INPAINT)).objective
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    draw = jax.jit(lambda key: objective.draw(objective.frozen, Batch(images, {}), key, {})[0])
    first, again, other = (draw(jax.random.key(seed)) for seed in (0, 0, 1))
    known = np.asarray(first.condition["known"])
    np.testing.assert_array_equal(first.condition["shown"], np.where(known == 1, first.x_0, 0))
    np.testing.assert_array_equal(known, again.condition["known"])
    assert np.any(known != other.condition["known"]) and len({row.tobytes() for row in known}) == 6


def test_the_loss_is_that_of_the_hole(tiny_config):
    experiment = build_experiment(tiny_config(*INPAINT))
    objective, params = experiment.objective, experiment.fresh_state().params
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    drawn, _ = objective.draw(objective.frozen, Batch(images, {}), jax.random.key(0), {})
    loss = lambda drawn: objective.losses(params, objective.frozen, drawn, jax.random.key(1), {})[0]["loss"]  # noqa: E731
    known = drawn.condition["known"]
    # The fresh network predicts 0, so that the loss is the mean square of the target.
    signal, noise = experiment.process.levels(drawn.t, ndim=4)
    target = {"v": signal * drawn.eps - noise * drawn.x_0, "eps": drawn.eps}[experiment.process.prediction]
    wanted = jnp.sum((1 - known) * target**2, axis=(1, 2, 3)) / jnp.sum(1 - known, axis=(1, 2, 3))
    np.testing.assert_allclose(loss(drawn), wanted, rtol=1e-5)


def test_a_run_is_continued_and_sampled_with_guidance(tiny_config, inpainting_overrides, inpainting_run, tmp_path):
    more, workdir = inpainting_overrides, inpainting_run
    for num_steps in (4, 8):
        train(tiny_config(*more, f"train.num_steps={num_steps}"), str(tmp_path / "run"))
    abstract = build_experiment(tiny_config(*more)).abstract_state
    states = []
    for folder in (tmp_path / "run", workdir):
        checkpoints = Checkpoints(str(folder))
        states.append(jax.tree.leaves(checkpoints.restore_state(abstract)))
        checkpoints.close()
    assert all(np.array_equal(a, b) for a, b in zip(*states, strict=True))
    run = dj.open_run(str(workdir))
    quick = {"progress": False, "sampler": "ddim", "num_sampler_steps": 3}
    samples = run.sample(3, batch_size=8, **quick)
    np.testing.assert_array_equal(run.sample(5, batch_size=16, **quick)[:3], samples)
    guided = run.sample(3, batch_size=8, guidance_scale=3, **quick)
    assert np.any(guided != samples)
    shown = condition_of(run.config)(np.arange(3))
    source = run.source(run.held_out_split)
    assert shown["label"].tolist() == source.labels[:3].tolist()  # the class of the image that is shown
    kept = source.load(np.arange(3))
    given = run.sample(3, batch_size=8, condition=shown, **quick)
    np.testing.assert_array_equal(given, samples)
    np.testing.assert_array_equal(np.where(shown["known"] == 1, samples, 0), np.where(shown["known"] == 1, kept, 0))
    with pytest.raises(UserError, match=r"'shown' must be 0 in the hole, where 'known' is 0"):
        run.sample(3, condition=shown | {"shown": np.ones_like(shown["shown"])}, **quick)
    with pytest.raises(UserError, match=r"'known' must be 1 where the image is known, and 0 in the hole"):
        run.sample(3, condition=shown | {"known": shown["known"] / 2}, **quick)


def test_the_step_is_the_same_in_parts_and_on_more_devices(tiny_config):
    """What an example is shown depends on its number in the batch, not on the device or the part that it is in."""
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    losses = []
    for devices, parts in ((1, 1), (8, 1), (1, 4)):
        experiment = build_experiment(
            tiny_config(*INPAINT, f"train.num_devices={devices}", f"train.grad_accum_steps={parts}")
        )
        state, step_fn, values = experiment.fresh_state(), experiment.jitted_step(), []
        batch = jax.device_put(Batch(images), batch_sharded(experiment.mesh))
        for _ in range(2):
            state, metrics = step_fn(state, batch, experiment.keys.train)
            values += [float(metrics["loss"]), float(metrics["grad_norm"])]
        losses.append(values)
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-5)


def test_samples_are_beside_what_they_are_shown(inpainting_run):
    run = dj.open_run(str(inpainting_run)).with_sampler(
        {"sampler": "ddim", "num_sampler_steps": 2}, batch_size=8, num_devices=8
    )
    samples = np.full((4, 8, 8, 1), 255, np.uint8)
    picture = sample_picture(run.generator(make_mesh()), samples)
    shown = condition_of(run.config)(np.arange(4))["shown"]
    wanted = grid_of_groups({"shown": to_uint8(shown), "sample": samples})
    np.testing.assert_array_equal(picture, wanted)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_of_the_config_is_built(tiny_config, task):
    channels = 3 if task == "colourise" else 1
    config = tiny_config(f"condition.task={task}", f"data.num_channels={channels}")
    spec, wanted = build_experiment(config).condition, make_image_task(task)
    assert spec["shown"].shape == (8, 8, wanted.num_channels(channels))
    assert ("known" in spec) == wanted.has_hole


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["condition.task=inpant"], r"condition.task must be one of .*; got 'inpant'"),
        (["condition.task=colourise"], r"condition.task='colourise' needs images with 3 \(RGB\) channels; got 1"),
        (["condition.task=jpeg", "condition.jpeg_quality=40,30"], r"condition.jpeg_quality must be LOW,HIGH"),
        (["condition.task=jpeg", "diffusion.loss_region=hole"], r"needs a condition.task with a hole"),
        (["diffusion.loss_region=holes"], r"diffusion.loss_region must be one of"),
        (
            [*INPAINT, "diffusion.loss=vlb", "diffusion.variance=learned"],
            r"is for the losses simple, l1 and huber; got diffusion.loss='vlb'",
        ),
        (["condition.task=inpaint", "condition.drop_rate=0.1"], r"is for a network with a condition from the data"),
        (["diffusion.network_input=sigma"], r"diffusion.network_input must be one of"),
        (
            ["condition.task=jpeg", "objective.name=classifier", "model.num_classes=10"],
            r"condition.task must be empty with objective.name='classifier'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(tiny_config, overrides, message):
    with pytest.raises(UserError, match=message):
        build_experiment(tiny_config(*overrides))


def test_the_likelihood_of_a_hole_is_refused(inpainting_run):
    with pytest.raises(UserError, match="condition.task='inpaint' is not defined, because it is shown a part"):
        dj.open_run(str(inpainting_run)).check_likelihood()


def test_another_network_is_told_what_it_was_trained_with(tiny_config):
    """A classifier gets t beside a network that gets alpha-bar; so does a weaker network that was trained with t."""
    config = tiny_config(*INPAINT[2:], "model.num_classes=10")
    process = build_experiment(config).process
    told = []

    class Weak(WeakNetwork):
        network = property(lambda self: self)

        def apply(self, params, x_t, t, condition):
            told.append(t)
            return x_t

    t = jnp.array([0, 5])
    for network_input in ("t", "alpha_bar"):
        weak = Weak(1, tiny_config(f"diffusion.network_input={network_input}"), {})
        weak.predict_of(process, {})(jnp.zeros((2, 8, 8, 1)), t, {})
    assert told[0].tolist() == [0, 5] and np.all(told[1] < 1)


def test_samples_are_drawn_from_images_that_have_moved(tiny_config, tmp_path, sample_main, capsys):
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "here.npz", images=images)
    data = (
        "data.name=array", f"data.path={tmp_path / 'here.npz'}", "data.split=train[:16]", "data.eval_split=train[16:]",
    )  # fmt: skip
    train(tiny_config("condition.task=deblur", *data, "train.num_steps=1"), str(tmp_path / "run"))
    (tmp_path / "here.npz").rename(tmp_path / "there.npz")
    for kept in (image_condition._shown_to_samples, image_condition._source_of_samples):
        kept.cache_clear()  # as in another process
    flags = [
        f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'new'}", "--num_samples=4", "--sampler=ddim",
        "--num_sampler_steps=2", "--nocompilation_cache",
    ]  # fmt: skip
    assert sample_main(flags) == 2
    assert "give --config.data.path where they have moved" in capsys.readouterr().err
    assert sample_main([*flags, f"--config.data.path={tmp_path / 'there.npz'}"]) == 0, capsys.readouterr()
    assert sorted(np.load(tmp_path / "new.npz")) == ["arr_0"]
    run, quick = dj.open_run(str(tmp_path / "run")), {"sampler": "ddim", "num_sampler_steps": 2, "progress": False}
    restored = dj.edit_images(run, images[:3], "restore", batch_size=8, **quick)
    shown = images[:3].astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(restored[:, 0], run.sample(3, batch_size=8, condition={"shown": shown}, **quick))
