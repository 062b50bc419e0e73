"""RePaint and image to image beside diffusers, on the same network and noise."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.edits import inpainting, known_region, noised_start, partial_table, repaint_table
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys
from ddpm_jax.diffusion.samplers import ancestral_table, ddim_table, initial_noise, sample_loop, sampling_loop
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import spaced_steps

torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[parity]'")

LINEAR = make_schedule("linear")
ABAR = LINEAR.host_alphas_bar
SHAPE, NUM = (4, 4, 3), 2
KEYS = sample_keys(jax.random.key(0), jnp.arange(NUM))
RNG = np.random.default_rng(0)
X_T, EPS_HAT, Z = RNG.standard_normal((3, NUM, *SHAPE)).astype(np.float32)
IMAGE = RNG.uniform(-1, 1, (NUM, *SHAPE)).astype(np.float32)
MASK = np.arange(4)[:, None, None] < 2  # of ours and of theirs: True or 1 is known, 0 is to be drawn
# Both in float32; their alpha-bar is a product of 1,000 float32 numbers, relatively up to 1e-4 off.
LOOSE = dict(rtol=2e-4, atol=2e-5)


@pytest.fixture
def scheduling_repaint(diffusers):
    from diffusers.schedulers import scheduling_repaint

    return scheduling_repaint


def to_torch(array):
    """Channels first."""
    return torch.from_numpy(np.moveaxis(np.array(array, np.float32), -1, -3).copy())


def from_torch(tensor):
    return np.moveaxis(tensor.numpy(), -3, -1)


def single_steps(table, steps):
    """The levels that our walk visits, counted from the least noisy, rises one by one; -1 is x_0."""
    index = {int(t): len(steps) - 1 - i for i, t in enumerate(steps)} | {-1: -1}
    t, s = ([index[int(step)] for step in column] for column in (table.t, table.s))
    visited = [t[0]]
    for i, end in enumerate(s):
        visited.append(end)
        if i + 1 < len(t):
            visited += range(end + 1, t[i + 1] + 1)
    return visited


@pytest.mark.parametrize("num_steps, jump_length, num_resamplings", [(250, 10, 10), (50, 10, 3), (20, 3, 4), (5, 1, 2)])
def test_the_walk(scheduling_repaint, num_steps, jump_length, num_resamplings):
    """Their timesteps are the levels of our walk. Their pipeline calls the network at the level that it has come down
    to, one row later than the paper's code and ours, so that a rise begins one step lower; the calls are as many."""
    peer = scheduling_repaint.RePaintScheduler(1000)
    peer.set_timesteps(num_steps, jump_length, num_resamplings)
    theirs, steps = peer.timesteps.tolist(), spaced_steps(1000, num_steps, "leading")
    table = repaint_table(
        ddim_table(LINEAR, steps=steps),
        Process(LINEAR),
        jump_length=jump_length,
        num_resamplings=num_resamplings,
    )
    stride = 1000 // num_steps
    assert [level * stride for level in single_steps(table, steps)[:-1]] == theirs
    calls = [now for before, now in zip([1000, *theirs], theirs, strict=False) if now < before]
    assert len(calls) == table.num_calls == {250: 2410}.get(num_steps, table.num_calls)
    ends_before_rises = np.asarray(table.s[:-1])[np.asarray(table.t[1:]) > np.asarray(table.s[:-1])]
    before_rises = [now for now, after in zip(calls, calls[1:], strict=False) if after >= now]
    np.testing.assert_array_equal(before_rises, ends_before_rises)  # there it is called, here it is not yet


@pytest.fixture
def given_noise(monkeypatch, scheduling_repaint):
    monkeypatch.setattr(scheduling_repaint, "randn_tensor", lambda *args, **kwargs: to_torch(Z))
    monkeypatch.setattr(inpainting, "edit_noise", lambda keys, row, shape: jnp.asarray(Z))


def our_step(table, t, x_0_limit=None):
    denoise_fn = make_denoiser(Process(LINEAR), lambda x_t, t: jnp.asarray(EPS_HAT), x_0_limit=x_0_limit)
    edit_fn = known_region(Process(LINEAR), IMAGE, MASK)
    return np.asarray(
        sample_loop(denoise_fn, table.rows_at(t), jnp.asarray(X_T), KEYS, edit_fn=edit_fn, noises=jnp.asarray(Z)[None])
    )


def their_step(module, t, eta, clip_sample):
    peer = module.RePaintScheduler(1000, eta=eta, clip_sample=clip_sample)
    peer.set_timesteps(250)
    of_peer = [to_torch(array) for array in (EPS_HAT, X_T, IMAGE)]
    return from_torch(peer.step(of_peer[0], t, of_peer[1], of_peer[2], to_torch(MASK)).prev_sample)


@pytest.mark.parametrize("t", [996, 500, 4, 0])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_one_step(scheduling_repaint, given_noise, eta, t):
    """The known part is at the level of the end of the row; their unknown part has the same draw, which is given."""
    steps = spaced_steps(1000, 250, "leading")
    theirs = their_step(scheduling_repaint, t, eta, clip_sample=False)
    np.testing.assert_allclose(our_step(ddim_table(LINEAR, steps=steps, eta=eta), t), theirs, **LOOSE)
    known = np.sqrt(ABAR[t - 4]) * IMAGE + np.sqrt(1 - ABAR[t - 4]) * Z if t else IMAGE
    np.testing.assert_allclose(theirs[:, :2], known[:, :2], **LOOSE)
    if eta == 1:
        small = Process(LINEAR, variance="fixed_small")
        np.testing.assert_allclose(our_step(ancestral_table(small, steps=steps), t), theirs, **LOOSE)


def test_their_limit_keeps_eps(scheduling_repaint, given_noise):
    """They limit x_0_hat and keep eps_hat; here eps follows from the limited x_0_hat."""
    t, s, steps = 500, 496, spaced_steps(1000, 250, "leading")
    theirs = their_step(scheduling_repaint, t, 0.0, clip_sample=True)
    ours = our_step(ddim_table(LINEAR, steps=steps), t, x_0_limit=1.0)
    x_0_hat = (X_T - np.sqrt(1 - ABAR[t]) * EPS_HAT) / np.sqrt(ABAR[t])
    wanted = np.sqrt(ABAR[s]) * np.clip(x_0_hat, -1, 1) + np.sqrt(1 - ABAR[s]) * EPS_HAT
    np.testing.assert_allclose(theirs[:, 2:], wanted[:, 2:], **LOOSE)
    limited = np.abs(x_0_hat[:, 2:]) > 1
    np.testing.assert_allclose(ours[:, 2:][~limited], theirs[:, 2:][~limited], **LOOSE)
    assert limited.any() and np.abs(ours - theirs)[:, 2:][limited].min() > 1e-4


def of_undo(monkeypatch, module, num_steps, timestep, num_undone):
    """The factor of x and the variance of several of their steps up, from one noise at a time."""
    peer = module.RePaintScheduler(1000)
    peer.set_timesteps(num_steps)
    stride = 1000 // num_steps

    def end(x, of_draw):
        draws = iter(range(num_undone * stride))
        monkeypatch.setattr(
            module, "randn_tensor", lambda shape, **kwargs: torch.full(shape, float(next(draws) == of_draw))
        )
        for i in range(num_undone):
            x = peer.undo_step(x, timestep + i * stride)
        return float(x)

    factor = end(torch.ones(()), -1)
    return factor, sum(end(torch.zeros(()), draw) ** 2 for draw in range(num_undone * stride))


def test_a_rise(monkeypatch, scheduling_repaint):
    """Over all T steps theirs, beta by beta, is the law of our one rise."""
    process = Process(LINEAR)
    table = repaint_table(ddim_table(LINEAR), process, jump_length=10, num_resamplings=2)
    (i,) = np.flatnonzero(np.asarray(table.s) == 300)[:1]
    assert int(table.t[i + 1]) == 310
    factor, variance = of_undo(monkeypatch, scheduling_repaint, 1000, 301, 10)
    np.testing.assert_allclose(table.rise_scale[i], factor, rtol=1e-5)
    np.testing.assert_allclose(table.rise_noise[i] ** 2, variance, rtol=1e-4)


@pytest.mark.parametrize("t, excess", [(300, 1.0098), (0, 5.194)])
def test_a_rise_over_a_stride_of_theirs(monkeypatch, scheduling_repaint, t, excess):
    """After their step at t, x is at t - stride. Its way back to t has the betas of t..t + stride - 1 in place of those
    of t - stride + 1..t, so that with fewer than T steps x arrives with more noise than belongs to t."""
    stride = 4
    factor, variance = of_undo(monkeypatch, scheduling_repaint, 250, t, 1)
    kept, right = ABAR[t + stride - 1] / np.append(ABAR, 1.0)[t - 1], ABAR[t] / (ABAR[t - stride] if t else 1.0)
    np.testing.assert_allclose([factor**2, variance], [kept, 1 - kept], rtol=1e-4)
    assert (1 - kept) / (1 - right) == pytest.approx(excess, rel=1e-3)


class Network(torch.nn.Module):
    """eps_hat of an x_0_hat in [-0.5, 0.5], so that the pipeline limits nothing."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, abar):
        super().__init__()
        self.abar = abar

    def forward(self, x, t):
        a, n = float(np.sqrt(self.abar[int(t)])), float(np.sqrt(1 - self.abar[int(t)]))
        return types.SimpleNamespace(sample=(x - a * 0.5 * torch.tanh(x + 0.1 * t)) / n)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_their_whole_walk_from_our_parts(monkeypatch, scheduling_repaint, eta):
    """The pipeline over all T steps is our loop with its rises one step lower, on its own noise."""
    from diffusers.pipelines.deprecated.repaint import pipeline_repaint

    schedule = make_schedule("cosine", num_steps=12)
    process, abar = Process(schedule), np.append(schedule.host_alphas_bar, 1.0)  # abar[-1] is x_0
    peer = scheduling_repaint.RePaintScheduler(12, trained_betas=np.array(schedule.betas))
    pipeline = pipeline_repaint.RePaintPipeline(unet=Network(abar), scheduler=peer)
    pipeline.set_progress_bar_config(disable=True)
    draws, rng = [], np.random.default_rng(1)

    def randn_tensor(shape, **kwargs):
        draws.append(rng.standard_normal((NUM, *SHAPE)).astype(np.float32))
        return to_torch(draws[-1])

    for module in (scheduling_repaint, pipeline_repaint):
        monkeypatch.setattr(module, "randn_tensor", randn_tensor)
    images = pipeline(
        to_torch(IMAGE), to_torch(MASK[None]), 12, eta, jump_length=3, jump_n_sample=3, output_type="np"
    ).images

    # Their draws in turn: x_T, one of each call, one of each step up.
    x_T, *left = draws
    rows, z, scales, noises, rises = [], [], [], [], []
    before = 12
    for t in peer.timesteps.tolist():
        if t < before:
            rows.append(11 - t)
            z.append(left.pop(0))
            for column in (scales, noises):
                column.append(1.0 if column is scales else 0.0)
            rises.append(np.zeros_like(X_T))
        else:
            beta, drawn = 1 - abar[before] / abar[before - 1], left.pop(0)
            rises[-1] = np.sqrt(1 - beta) * rises[-1] + np.sqrt(beta) * drawn
            scales[-1] *= np.sqrt(1 - beta)
            noises[-1] = 1.0
        before = t
    assert not left and len(rows) == 12 + 3 * 2 * 3
    table = jax.tree.map(lambda column: column[np.array(rows)], ddim_table(schedule, eta=eta)).replace(
        row=jnp.arange(len(rows)), rise_scale=jnp.float32(scales), rise_noise=jnp.float32(noises)
    )
    of_row = lambda arrays: lambda keys, row, shape: jnp.asarray(np.stack(arrays))[row.row]  # noqa: E731
    monkeypatch.setattr(inpainting, "edit_noise", of_row(z))
    monkeypatch.setattr(sampling_loop, "rise_noise", of_row(rises))

    def model_fn(x_t, t):
        a, n = process.levels(t, ndim=4)
        return (x_t - a * 0.5 * jnp.tanh(x_t + 0.1 * t.reshape(-1, 1, 1, 1))) / n

    loop = jax.jit(
        lambda x_T: sample_loop(
            make_denoiser(process, model_fn), table, x_T, KEYS, noises=jnp.asarray(np.stack(z)),
            edit_fn=known_region(process, IMAGE, MASK),
        )
    )  # fmt: skip
    # float32 over 30 rows, each of which may double a difference of 6e-8 near noise.
    np.testing.assert_allclose(np.clip(loop(jnp.asarray(x_T)) / 2 + 0.5, 0, 1), images, atol=1e-4)


@pytest.fixture
def their_part(diffusers):
    """(scheduler, strength) -> the timesteps that image to image walks."""
    from diffusers.pipelines.kandinsky2_2 import pipeline_kandinsky2_2_img2img  # that of Stable Diffusion is the same

    def part(peer, strength):
        num_steps = peer.num_inference_steps
        of_pipeline = types.SimpleNamespace(scheduler=peer)
        pipeline = pipeline_kandinsky2_2_img2img.KandinskyV22Img2ImgPipeline
        return pipeline.get_timesteps(of_pipeline, num_steps, strength, "cpu")[0]

    return part


@pytest.mark.parametrize("num_steps", [50, 100])
def test_the_part_of_the_steps_of_a_strength(diffusers, their_part, num_steps):
    """The last min(int(N strength), N). The product is a float: 0.29 of 100 steps are 28 there, and 29 here."""
    peer = diffusers.DDIMScheduler(1000)
    peer.set_timesteps(num_steps)
    whole = jax.tree.map(np.asarray, ddim_table(LINEAR, steps=peer.timesteps.numpy()))
    rounded = []
    for hundredth in range(101):
        ours, theirs = partial_table(whole, hundredth / 100).t, their_part(peer, hundredth / 100).numpy()
        if int(num_steps * hundredth / 100) == int(num_steps * (hundredth / 100)):
            np.testing.assert_array_equal(ours, theirs)
        else:
            np.testing.assert_array_equal(ours[1:], theirs)
            rounded.append(hundredth)
    assert rounded == {50: [58], 100: [29, 57, 58]}[num_steps]


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
def test_image_to_image(diffusers, their_part, strength):
    """add_noise at the first of the steps, then DDIM; at strength 1, too, the image is in the start."""
    peer = diffusers.DDIMScheduler(1000, clip_sample=False, set_alpha_to_one=True)
    peer.set_timesteps(20)
    table = partial_table(ddim_table(LINEAR, steps=peer.timesteps.numpy()), strength)
    timesteps, e = their_part(peer, strength), initial_noise(KEYS, SHAPE)
    x = start = peer.add_noise(torch.from_numpy(IMAGE), torch.from_numpy(np.array(e)), timesteps[:1])
    for t in timesteps:
        x = peer.step(0.8 * x + 0.3 * torch.tanh(x + 1e-3 * t), t, x).prev_sample
    ours = noised_start(Process(LINEAR), table, IMAGE, KEYS)
    np.testing.assert_allclose(ours, start.numpy(), **LOOSE)
    denoise_fn = make_denoiser(
        Process(LINEAR),
        lambda x, t: 0.8 * x + 0.3 * jnp.tanh(x + 1e-3 * t.reshape(-1, 1, 1, 1)),
        x_0_limit=None,
    )
    drawn = jax.jit(lambda x: sample_loop(denoise_fn, table, x, KEYS))(ours)
    np.testing.assert_allclose(drawn, x.numpy(), rtol=0, atol=1e-4)
