"""Weights of diffusers in and out, beside the installed diffusers: its own files, forward pass and pipelines."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[parity]'")
pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e '.[parity]'")

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, PNDMScheduler, UNet2DModel
from hub_configs import CHURCH, CIFAR10, SCHEDULERS
from unet_weights import peer_unet, randomise, run_peer

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers.ddim import ddim_table
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.experiment.config_overrides import fields_by_group
from ddpm_jax.experiment.model_factory import build_model, build_process
from ddpm_jax.experiment.sampler_factory import build_table
from ddpm_jax.interchange.diffusers import read_diffusers, write_diffusers
from ddpm_jax.interchange.diffusers_scheduler import fields_of_scheduler, scheduler_of_fields
from ddpm_jax.runtime.compilation import quick_compile_options

T = np.array([0, 17, 999])
torch.set_num_threads(1)  # small convolutions wait for a second thread longer than they take


def normals(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check_outputs(peer, imported, batch, num_ddim_steps):
    """One forward pass to 1e-4, and a walk of DDIM to 1e-3."""
    config = imported.config
    unet, schedule, params = build_model(config), build_process(config).schedule, jax.device_put(imported.params)
    network = jax.jit(lambda p, *args: unet.apply({"params": p}, *args), compiler_options=quick_compile_options())
    labels = np.arange(batch) if unet.num_classes else None
    condition = {} if labels is None else {"label": labels}

    def apply(x_t, t):
        return network(params, x_t, t, condition)

    x_t = normals(batch, *config.data.image_size, config.data.num_channels)
    expected = run_peer(peer, x_t, T[:batch], labels)
    assert np.std(expected) > 0.1  # the weights are random: the output says something
    np.testing.assert_allclose(apply(x_t, jnp.asarray(T[:batch])), expected, atol=1e-4, rtol=0)
    if not num_ddim_steps:
        return
    table = ddim_table(schedule, steps=spaced_steps(1000, num_ddim_steps, "leading"))
    rows = zip(*(np.asarray(column) for column in (table.t, table.c_x_0, table.c_x_t)), strict=True)
    denoise_fn, ours = make_denoiser(Process(schedule), apply), jnp.asarray(x_t)
    for t, c_x_0, c_x_t in rows:  # not by `walk`, whose scan would compile the network once more
        ours = c_x_0 * denoise_fn(ours, jnp.full(batch, t)).x_0_hat + c_x_t * ours
    scheduler = DDIMScheduler(1000)
    scheduler.set_timesteps(num_ddim_steps)
    x = torch.from_numpy(x_t.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(peer(x, t).sample, t, x, use_clipped_model_output=True).prev_sample
    np.testing.assert_allclose(ours, x.numpy().transpose(0, 2, 3, 1), atol=1e-3, rtol=0)


@pytest.fixture(scope="module")
def small():
    """Two levels, attention at the inner one, random weights."""
    peer = peer_unet(16, (1, 2), 1, (1,), 8, 8)
    randomise(peer)
    return peer


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    """Its pipeline as diffusers saves it."""
    path = tmp_path_factory.mktemp("diffusers") / "pipeline"
    DDPMPipeline(small, DDPMScheduler(variance_type="fixed_large")).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def imported(folder):
    return read_diffusers(folder)


def assert_same(tree, other):
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.tobytes()), tree) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype, leaf.tobytes()), other
    )


def test_a_pipeline_gives_the_same_numbers(small, imported):
    check_outputs(small, imported, 3, 50)


@pytest.mark.parametrize(
    "others",
    [
        dict(attention_head_dim=8, norm_eps=1e-5, downsample_padding=1, flip_sin_to_cos=True, freq_shift=0),
        dict(downsample_type="resnet", upsample_type="resnet", resnet_time_scale_shift="scale_shift",
             attn_norm_num_groups=8, attention_head_dim=16, norm_eps=0.1, num_class_embeds=5),
    ],
)  # fmt: skip
def test_the_variants_give_the_same_numbers_and_come_back(others, tmp_path):
    peer = peer_unet(16, (1, 2), 1, (1,), 8, (8, 12), **others)
    randomise(peer)
    DDPMPipeline(peer, DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    imported = read_diffusers(tmp_path / "pipeline")
    check_outputs(peer, imported, 3, 0)
    write_diffusers(tmp_path / "back", imported.config, imported.params)
    back = UNet2DModel.from_pretrained(tmp_path / "back" / "unet")
    same = ("down_block_types", "up_block_types", "downsample_type", "attention_head_dim", "sample_size", "norm_eps")
    assert json.dumps([back.config[name] for name in same]) == json.dumps([peer.config[name] for name in same])
    assert all(torch.equal(tensor, peer.state_dict()[name]) for name, tensor in back.state_dict().items())


def test_a_learned_variance_has_twice_the_channels(tmp_path):
    peer = UNet2DModel(**dict(peer_unet(16, (1,), 1, (), 8, 8).config) | {"out_channels": 6})
    DDPMPipeline(peer, DDPMScheduler(variance_type="learned_range")).save_pretrained(tmp_path / "pipeline")
    imported = read_diffusers(tmp_path / "pipeline")
    assert imported.config.diffusion.variance == "learned_range"
    write_diffusers(tmp_path / "back", imported.config, imported.params)
    assert_same(read_diffusers(tmp_path / "back").params, imported.params)


def test_an_export_opens_as_a_pipeline_and_samples(small, imported, tmp_path):
    write_diffusers(tmp_path / "back", imported.config, imported.params)
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "back")
    tensors = pipeline.unet.state_dict()
    assert tensors.keys() == small.state_dict().keys()
    assert all(torch.equal(tensor, small.state_dict()[name]) for name, tensor in tensors.items())
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(batch_size=2, num_inference_steps=3, output_type="np").images
    assert pictures.shape == (2, 8, 8, 3) and np.std(pictures) > 0.01
    again = read_diffusers(tmp_path / "back")
    assert again.config == imported.config
    assert_same(again.params, imported.params)


def test_a_changed_export_is_read_by_what_it_says_now(imported, tmp_path):
    """The config of ours that stands beside the tensors counts only as long as the folder says the same."""
    config = imported.config.copy_and_resolve_references()
    config.optim.learning_rate = 0.125
    write_diffusers(tmp_path / "back", config, imported.params)
    assert read_diffusers(tmp_path / "back").config.optim.learning_rate == 0.125
    path = tmp_path / "back" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_end": 0.03}))
    changed = read_diffusers(tmp_path / "back").config
    assert changed.schedule.beta_end == 0.03 and changed.optim.learning_rate != 0.125


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def test_the_old_names_in_a_flat_folder(small, folder, imported, tmp_path):
    """As the google/ddpm-* folders of the Hub are: flat, a .bin, the attention's tensors by their first names."""
    state = {}
    for name, tensor in small.state_dict().items():
        for new, old in OLD.items():
            name = name.replace(f".{new}.", f".{old}.")
        state[name] = tensor
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        shutil.copy(folder / name, tmp_path)
    assert any("proj_attn" in name for name in state)
    DDPMPipeline.from_pretrained(tmp_path, use_safetensors=False)  # it is one for diffusers too
    read = read_diffusers(tmp_path)
    assert read.config == imported.config
    assert_same(read.params, imported.params)


@pytest.mark.parametrize("safe", [True, False])
def test_shards(small, folder, imported, tmp_path, safe):
    shutil.copytree(folder / "scheduler", tmp_path / "scheduler")
    small.save_pretrained(tmp_path / "unet", max_shard_size="60KB", safe_serialization=safe)
    assert len(list((tmp_path / "unet").glob("*-of-*"))) > 2
    for path in (tmp_path, tmp_path / "unet"):  # the folder of the unet finds its scheduler beside itself
        assert_same(read_diffusers(path).params, imported.params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("safe", [True, False])
def test_half_precision(folder, tmp_path, dtype, safe):
    shutil.copytree(folder / "scheduler", tmp_path / "scheduler")
    half = UNet2DModel.from_pretrained(folder / "unet").to(dtype)
    half.save_pretrained(tmp_path / "unet", safe_serialization=safe)
    read = read_diffusers(tmp_path).params
    kernel = half.state_dict()["conv_in.weight"].float().numpy().transpose(2, 3, 1, 0)
    assert read["conv_in"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(read["conv_in"]["kernel"], kernel)


# --- schedulers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1000, 50])
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2", "trained", "trained_cosine"])
@pytest.mark.parametrize("zero", [False, True])
def test_the_betas_are_theirs(kind, num_steps, zero):
    settings = dict(num_train_timesteps=num_steps, beta_start=8.5e-4, beta_end=0.012, rescale_betas_zero_snr=zero)
    if kind == "trained":
        settings["trained_betas"] = np.linspace(1e-3, 0.03, num_steps).astype(np.float32).tolist()
    elif kind == "trained_cosine":
        settings["trained_betas"] = list(make_schedule("cosine", num_steps=num_steps).betas_float64)
    else:
        settings["beta_schedule"] = kind
    peer = DDPMScheduler(**settings)
    fields, _ = fields_of_scheduler(dict(peer.config), "it", "DDPMPipeline")
    ours = make_schedule(**fields["schedule"])
    # Theirs is formed in float32: each 1 - beta is off by half an ulp of 1, with a zero terminal SNR by more.
    np.testing.assert_allclose(ours.betas, peer.betas, rtol=1e-5, atol=2e-6 if zero else 1e-8)
    np.testing.assert_allclose(ours.alphas_bar, peer.alphas_cumprod, rtol=3e-4, atol=2e-6 if zero else 1e-12)


@pytest.mark.parametrize(
    "name", ["linear", "quadratic", "constant", "warmup10", "jsd", "cosine", "sigmoid", "geometric"]
)
@pytest.mark.parametrize("zero", [False, True])
def test_our_schedules_go_out_and_come_back(name, zero, imported):
    config = imported.config.copy_and_resolve_references()
    config.schedule.name, config.schedule.num_steps, config.schedule.zero_terminal_snr = name, 200, zero
    config.diffusion.prediction = "v"
    ours = build_process(config).schedule
    written = json.loads(json.dumps(scheduler_of_fields(fields_by_group(config))))
    peer = DDPMScheduler.from_config(written)
    assert peer.config.prediction_type == "v_prediction"
    np.testing.assert_allclose(peer.alphas_cumprod, ours.alphas_bar, rtol=3e-4, atol=3e-6)
    fields, _ = fields_of_scheduler(written, "it", None)
    again = make_schedule(**fields["schedule"])
    np.testing.assert_allclose(again.betas_float64, ours.betas_float64, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("num_steps", [1000, 300])
@pytest.mark.parametrize(
    "scheduler,pipeline",
    [
        (DDPMScheduler, "DDPMPipeline"), (DDIMScheduler, "DDIMPipeline"), (DDIMScheduler, "DDPMPipeline"),
        (PNDMScheduler, "PNDMPipeline"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("settings", [{}, dict(timestep_spacing="trailing"), dict(steps_offset=1)])
def test_the_default_sampler_visits_the_steps_of_their_pipeline(scheduler, pipeline, num_steps, settings, imported):
    if scheduler is PNDMScheduler:
        settings = settings | dict(skip_prk_steps=True)
    peer = scheduler(num_train_timesteps=num_steps, **settings)
    peer.set_timesteps(min(num_steps, {"DDPMPipeline": 1000}.get(pipeline, 50)))
    fields, notes = fields_of_scheduler(dict(peer.config) | {"_class_name": scheduler.__name__}, "it", pipeline)
    config = imported.config.copy_and_resolve_references()
    for group, values in fields.items():
        config[group].update(values)
    steps = peer.timesteps.numpy()
    if steps[0] >= num_steps:  # theirs then fails: there is no such step
        assert any("past the last step" in note for note in notes)
        steps = steps - 1
    np.testing.assert_array_equal(build_table(config, build_process(config)).t, steps)


# --- the shapes of the Hub ----------------------------------------------------------------------------------


def write_hub_folder(path, unet_config, name):
    """A flat folder like that of google/NAME, with random weights; the peer."""
    peer = UNet2DModel.from_config(unet_config).eval()
    randomise(peer)
    path.mkdir()
    torch.save(peer.state_dict(), path / "diffusion_pytorch_model.bin")
    (path / "config.json").write_text(json.dumps(unet_config))
    (path / "scheduler_config.json").write_text(json.dumps(SCHEDULERS[name]))
    return peer


def test_the_whole_ddpm_cifar10_32(tmp_path):
    peer = write_hub_folder(tmp_path / "hub", CIFAR10, "ddpm-cifar10-32")
    check_outputs(peer, read_diffusers(tmp_path / "hub"), 1, 0)


@pytest.mark.slow
def test_ddim_of_the_whole_ddpm_cifar10_32(tmp_path):
    """A minute: pytest -m slow tests/parity/test_parity_weights.py"""
    peer = write_hub_folder(tmp_path / "hub", CIFAR10, "ddpm-cifar10-32")
    check_outputs(peer, read_diffusers(tmp_path / "hub"), 2, 50)


@pytest.mark.slow
def test_the_whole_ddpm_ema_church_256(tmp_path):
    """Nine minutes and 4 GB: pytest -m slow tests/parity/test_parity_weights.py"""
    peer = write_hub_folder(tmp_path / "hub", CHURCH, "ddpm-ema-church-256")
    check_outputs(peer, read_diffusers(tmp_path / "hub"), 1, 50)
