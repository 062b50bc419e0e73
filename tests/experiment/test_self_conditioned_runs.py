"""Self-conditioning by its config field: a whole run, its samples and measurements, and what is refused."""

import json

import numpy as np
import pytest

from ddpm_jax import evaluate
from ddpm_jax.evaluation.elbo_bits_per_dim import build_bits_per_dim
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_changes import CHANGEABLE_AT_IMPORT, changed_import, check_same_run
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.experiment.training import train
from ddpm_jax.interchange.native_files import read_npz, write_npz
from ddpm_jax.runtime.devices import make_mesh
from ddpm_jax.runtime.errors import UserError

ON = ("diffusion.self_conditioning=true", "model.num_classes=10", "condition.drop_rate=0.1")


@pytest.fixture(scope="module")
def trained(tiny_config, made_once):
    """The workdir of the small run with self-conditioning and classes."""
    return made_once("self_conditioning", lambda workdir: train(tiny_config(*ON), str(workdir)))


def test_resumed_equals_straight(trained, tiny_config, tmp_path):
    train(tiny_config(*ON, "train.num_steps=4"), str(tmp_path))
    train(tiny_config(*ON), str(tmp_path))
    for name in ("final_raw.png", "final_ema.png"):
        assert (tmp_path / "samples" / name).read_bytes() == (trained / "samples" / name).read_bytes()
    one, other = (open_run(str(workdir), weights="raw").params for workdir in (tmp_path, trained))
    assert one["conv_in"]["kernel"].shape[-2] == 2  # x_t and the estimate
    assert one["conv_out"]["kernel"].shape[-1] == 1
    assert np.array_equal(one["conv_in"]["kernel"], other["conv_in"]["kernel"])
    assert np.array_equal(one["conv_out"]["bias"], other["conv_out"]["bias"])


def test_samples_of_every_kind(trained):
    run = open_run(str(trained))
    plain = run.sample(8, progress=False)
    assert np.array_equal(run.sample(3, batch_size=8, progress=False), plain[:3])
    drawn = [plain]
    for settings in (
        dict(sampler="ddim", num_sampler_steps=5),
        dict(sampler="plms", num_sampler_steps=5),
        dict(sampler="heun", num_sampler_steps=5),
        dict(guidance_scale=3.0),
        dict(sampler="ddim", num_sampler_steps=5, guidance_scale=3.0, guidance_interval=(-2.0, 4.0)),
    ):
        drawn.append(run.sample(8, progress=False, **settings))
    assert len({images.tobytes() for images in drawn}) == len(drawn)
    assert len(run._samples._generators) == 2  # without and with guidance, whatever the sampler


def without_estimate(run):
    """The parameters with 0 for the weights that read the estimate."""
    kernel = np.array(run.params["conv_in"]["kernel"])
    kernel[..., 1, :] = 0
    return run.params | {"conv_in": run.params["conv_in"] | {"kernel": kernel}}


def test_samples_see_the_estimate_and_bounds_do_not(trained):
    run = open_run(str(trained))
    deaf = without_estimate(run)
    mesh = make_mesh(1)
    generator = run.generator(mesh)
    drawn = [generator.generate(params, seed=0, num_samples=8) for params in (run.params, deaf)]
    assert np.any(drawn[0] != drawn[1])
    measure = build_bits_per_dim(run, "test", mesh, seed=0, batch_size=4, max_images=4)
    bits = [measure.measure(params).summary()["total"] for params in (run.params, deaf)]
    assert bits[0] == bits[1] and np.isfinite(bits[0][0])


def test_the_command_measures_the_flow_and_draws_the_estimates(trained, tmp_path):
    flags = ["--what=ode,pictures", "--max_images=4", "--ode_steps=1", "--nocompilation_cache", f"--out={tmp_path}"]
    assert evaluate.main([f"--workdir={trained}", *flags]) == 0
    assert np.isfinite(json.loads((tmp_path / "evaluation.json").read_text())["ode_bits_per_dim"]["total"]["mean"])


def test_weights_out_and_in(trained, tmp_path):
    run = open_run(str(trained))
    write_npz(tmp_path / "w.npz", run.config, run.params)
    imported = read_npz(tmp_path / "w.npz")
    assert imported.config.diffusion.self_conditioning
    assert np.array_equal(imported.params["conv_in"]["kernel"], run.params["conv_in"]["kernel"])


def test_what_is_refused(trained, tiny_config):
    with pytest.raises(UserError, match="diffusion.self_conditioning was True and is False"):
        train(tiny_config(*ON[1:]), str(trained))
    with pytest.raises(UserError, match=r"^diffusion.self_conditioning_rate must be in \[0, 1\]; got 2"):
        build_experiment(tiny_config(*ON, "diffusion.self_conditioning_rate=2.0"))
    with pytest.raises(UserError, match="^diffusion.self_conditioning must be False with objective.name='classifier'"):
        build_experiment(load_config("classifier_digits", ["diffusion.self_conditioning=true"]))
    with pytest.raises(UserError, match="^diffusion.self_conditioning_rate has no effect without self-conditioning"):
        build_experiment(tiny_config("diffusion.self_conditioning_rate=0.9"))


def test_the_rate_may_change_at_an_import(tiny_config):
    rate = ["diffusion.self_conditioning_rate=0.9"]
    assert changed_import(tiny_config(*ON), rate).diffusion.self_conditioning_rate == 0.9
    check_same_run(tiny_config(*ON), tiny_config(*ON, *rate), CHANGEABLE_AT_IMPORT)
    with pytest.raises(UserError, match="diffusion.self_conditioning_rate was 0.5 and is 0.9"):
        check_same_run(tiny_config(*ON), tiny_config(*ON, *rate))
