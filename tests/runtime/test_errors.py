"""Helpers of one-line errors."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.runtime.errors import UserError, real_number


@pytest.mark.parametrize("got", [0.5, np.float32(0.5), np.float64(0.5), np.asarray(0.5), jnp.float32(0.5)])
def test_numbers_of_python_numpy_and_jax(got):
    assert real_number("x", got) == 0.5 and type(real_number("x", got)) is float


def test_an_int_beyond_all_floats_is_infinite():
    assert real_number("x", -(10**400)) == -math.inf and real_number("x", 2) == 2.0


@pytest.mark.parametrize("got", ["3", b"3", None, True, [1.0, 2.0], 1j, {}])
def test_no_numbers(got):
    with pytest.raises(UserError, match="^x must be a number; got "):
        real_number("x", got)
