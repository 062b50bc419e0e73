"""Power-function averages and post-hoc EMA beside ema-pytorch's KarrasEMA and PostHocEMA."""

import numpy as np
import pytest

from ddpm_jax.training.post_hoc_ema import post_hoc_weights
from ddpm_jax.training.power_averages import gamma_of_std, make_power_averages

torch = pytest.importorskip("torch")
peer = pytest.importorskip("ema_pytorch.post_hoc_ema", reason="ema-pytorch is not installed")

STDS = (0.05, 0.1)


def their_weights(steps, gammas, step, gamma):
    given = (torch.tensor(x, dtype=torch.float64) for x in (steps, gammas, [step], [gamma]))
    return peer.solve_weights(*given).squeeze(-1).numpy()


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_gamma(std):
    assert gamma_of_std(std) == pytest.approx(peer.sigma_rel_to_gamma(std), rel=1e-12)


@pytest.mark.parametrize("std", [0.03, 0.07, 0.15, 0.25])
def test_weights(std):
    """Theirs are not divided by their sum."""
    steps = [step for step in range(25, 501, 25) for _ in STDS]
    stds = list(STDS) * 20
    gammas = [gamma_of_std(one) for one in stds]
    theirs = their_weights(steps, gammas, 500, gamma_of_std(std))
    ours, _ = post_hoc_weights(steps, stds, step=500, std=std)
    np.testing.assert_allclose(ours, theirs / theirs.sum(), rtol=0, atol=1e-9 * np.abs(theirs).max())


def test_a_run(tmp_path):
    """Their first call copies the parameters and its beta is that of t = 2: their average after n calls is ours after
    n + 1 updates of which the first is there twice. Their gammas and weights are float32 in between."""
    import jax
    import jax.numpy as jnp

    from ddpm_jax.training.optimizer import update_averages

    num_steps, every, std = 120, 10, 0.15
    trajectory = np.random.default_rng(0).standard_normal((num_steps, 6)).astype(np.float32)
    model = torch.nn.Linear(6, 1, bias=False)
    theirs = peer.PostHocEMA(model, sigma_rels=STDS, update_every=1, checkpoint_every_num_steps=every,
                             checkpoint_folder=str(tmp_path), checkpoint_dtype=torch.float32)  # fmt: skip
    update = jax.jit(lambda ema, theta, n: update_averages(ema, theta, n, make_power_averages(STDS)))
    ours = {f"std_{one}": jnp.zeros(6) for one in STDS}
    ours, stored = update(ours, trajectory[0], 0), []
    for n, theta in enumerate(trajectory, start=1):
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(theta)[None])
        theirs.update()
        ours = update(ours, theta, n)
        for one, karras in zip(STDS, theirs.ema_models, strict=True):
            np.testing.assert_allclose(ours[f"std_{one}"], karras.ema_model.weight[0].detach(), rtol=0, atol=2e-5)
        if n % every == 0:
            stored += [np.asarray(ours[f"std_{one}"], np.float64) for one in STDS]
    steps = [step for step in range(every, num_steps + 1, every) for _ in STDS]
    X, _ = post_hoc_weights(steps, list(STDS) * (num_steps // every), step=num_steps, std=std)
    made = sum(weight * average for weight, average in zip(X, stored, strict=True))
    found = theirs.synthesize_ema_model(sigma_rel=std).ema_model.weight[0].detach().numpy()
    assert 1.5 < np.abs(X).sum() < 3
    # Undo nothing but the sum, by which theirs are not divided.
    gammas = [gamma_of_std(one) for one in STDS] * (num_steps // every)
    total = their_weights(steps, gammas, num_steps, gamma_of_std(std)).sum()
    np.testing.assert_allclose(made * total, found, rtol=0, atol=1e-4)
