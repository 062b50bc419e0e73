"""Rate and distortion of progressive lossy coding: what a receiver knows after each x_t, and how many bits it needed.

Ho et al. 2020, section 4.3, algorithms 3 and 4, figure 5, table 4.
"""

import numpy as np

from ddpm_jax.evaluation.elbo_bits_per_dim import Bits, mean_and_error

PIXEL_UNITS = 127.5  # one unit of the network's scale [-1, 1] on the scale 0..255


def rate_distortion(bits: Bits) -> dict[str, np.ndarray]:
    """The curve over t: arrays [T], indexed by t.

    A receiver of x_t has received rate_t = L_T + L_(T-1) + ... + L_(t+1) bits/dim (t counts from 0: L_s sends x_(s-1);
    the prior term L_T sends x_(T-1), as in algorithm 3 and in the paper's "L_1 + ... + L_T as rate"). It knows
    x_0_hat(x_t), with a distortion of sqrt(mean over the images of their MSE) on the scale 0..255. At t = 0 the
    rate is the whole bound except the decoder term L_0, which would pay for lossless reconstruction.

    Returns:
      t; reverse_steps = T - t, the paper's axis; rate and distortion, with `*_standard_error` over the images
      (that of the root by the derivative, se(MSE)/(2 RMSE)).
    """
    num_steps = bits.terms.shape[1]
    later = np.cumsum(bits.terms[:, ::-1], axis=1, dtype=np.float64)[:, ::-1] - bits.terms  # the sum over s > t
    rate, rate_error = mean_and_error(later + bits.prior[:, None])
    mse, mse_error = mean_and_error(bits.x_0_mse)
    rmse = np.sqrt(mse)
    rmse_error = np.divide(mse_error, 2 * rmse, out=np.zeros_like(rmse), where=rmse > 0)
    t = np.arange(num_steps)
    return {
        "t": t,
        "reverse_steps": num_steps - t,
        "rate": rate,
        "rate_standard_error": rate_error,
        "distortion": PIXEL_UNITS * rmse,
        "distortion_standard_error": PIXEL_UNITS * rmse_error,
    }


def table_steps(num_steps: int, num_rows: int = 10) -> np.ndarray:
    """The t for a short table, ascending: T - t evenly spaced up to T, at most `num_rows` of them."""
    reverse_steps = np.unique(np.rint(num_steps * np.arange(1, num_rows + 1) / num_rows).astype(int))
    return num_steps - reverse_steps[reverse_steps > 0][::-1]
