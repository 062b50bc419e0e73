"""Rate and distortion from the terms of the bound."""

import warnings

import numpy as np
import pytest

from ddpm_jax.evaluation.elbo_bits_per_dim import Bits
from ddpm_jax.evaluation.rate_distortion import rate_distortion, table_steps


def some_bits(num_images=7, num_steps=5):
    rng = np.random.default_rng(0)
    terms, x_0_mse, eps_mse = rng.random((3, num_images, num_steps)).astype(np.float32)
    return Bits(terms, rng.random(num_images).astype(np.float32), x_0_mse, eps_mse)


def test_the_curve_is_the_slow_sum():
    """Received x_t: the prior's bits, then the terms from T-1 down to t+1; Ho et al. 2020, algorithms 3 and 4."""
    bits = some_bits()
    curve = rate_distortion(bits)
    for t in range(5):
        received = np.array([prior + sum(terms[t + 1 :]) for prior, terms in zip(bits.prior, bits.terms, strict=True)])
        assert curve["rate"][t] == pytest.approx(received.mean(), rel=1e-6)
        # Over the pictures: the terms of a picture go together, their errors do not add.
        assert curve["rate_standard_error"][t] == pytest.approx(received.std(ddof=1) / 7**0.5, rel=1e-5)
    np.testing.assert_array_equal(curve["reverse_steps"], [5, 4, 3, 2, 1])


def test_both_ends_of_the_rate():
    bits = some_bits()
    summary, curve = bits.summary(), rate_distortion(bits)
    assert curve["rate"][-1] == pytest.approx(summary["prior"][0])
    assert curve["rate"][0] == pytest.approx(summary["total"][0] - summary["decoder"][0])
    assert summary["total"][0] == pytest.approx(sum(summary[name][0] for name in ("prior", "kl", "decoder")))


def test_distortion_is_in_pixel_values():
    """Half of the pictures off by one of the 256 values, half by three."""
    step = 2 / 255
    mse = np.repeat(np.array([1, 9, 1, 9]) * step**2, 3).reshape(4, 3).astype(np.float32)
    bits = Bits(np.ones((4, 3), np.float32), np.ones(4, np.float32), mse, mse)
    curve = rate_distortion(bits)
    np.testing.assert_allclose(curve["distortion"], np.sqrt(5), rtol=1e-6)
    # Of the mean of 1, 9, 1, 9: sqrt(64/3)/2; of its root: that over 2 sqrt(5).
    np.testing.assert_allclose(curve["distortion_standard_error"], np.sqrt(64 / 3) / 2 / (2 * np.sqrt(5)), rtol=1e-6)


def test_one_picture_has_no_standard_error():
    bits = some_bits(num_images=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curve, summary = rate_distortion(bits), bits.summary()
    assert np.all(np.isfinite(curve["rate"])) and np.all(np.isfinite(curve["distortion"]))
    assert np.all(np.isnan(curve["rate_standard_error"])) and np.isnan(summary["total"][1])


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [(1000, range(0, 1000, 100)), (1, [0]), (4, [0, 1, 2, 3]), (10, range(10))],
)
def test_the_rows_of_the_table(num_steps, expected):
    np.testing.assert_array_equal(table_steps(num_steps), list(expected))
