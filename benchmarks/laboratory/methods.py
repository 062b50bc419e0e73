"""The samplers, guides and edits that the laboratory tries, run on a network without error."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.edits import (
    Measurement,
    ilvr,
    known_region,
    noised_start,
    posterior_sampling,
    range_null_projection,
)
from ddpm_jax.diffusion.exact import GaussianMixture, exact_class_log_probs_fn, exact_model_fn
from ddpm_jax.diffusion.gradient_guidance import class_log_prob, gradient_guidance, gradient_shift
from ddpm_jax.diffusion.guidance import Guidance, Guide, autoguidance, classifier_free_guidance, make_guidance
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.projected_guidance import Projection
from ddpm_jax.diffusion.rng import sample_keys
from ddpm_jax.diffusion.samplers import (
    ancestral_table,
    ddim_table,
    dpmpp_table,
    heun_table,
    initial_noise,
    plms_table,
    sample_loop,
    unipc_table,
)
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.sampling_loop import init_sampler_state, walk_rows
from ddpm_jax.diffusion.timestep_spacing import respaced, spaced_steps

# Name -> (process, number of network calls) -> table. `dpmpp_1` and `euler` are `ddim`; `euler_ancestral`, `dpmpp_sde`
# and `ddim` with eta = 1 are `ancestral` with the variance "fixed_small".
SAMPLERS: dict[str, Callable[[Process, int], SamplerTable]] = {
    "ancestral": lambda p, calls: ancestral_table(p, steps=steps_of(p, calls)),
    "ddim": lambda p, calls: ddim_table(p.schedule, steps=steps_of(p, calls)),
    "plms": lambda p, calls: plms_table(p.schedule, steps=steps_of(p, calls)),
    "heun": lambda p, calls: heun_table(p.schedule, steps=steps_of(p, (calls + 1) // 2)),
    "heun, karras": lambda p, calls: heun_table(p.schedule, steps=steps_of(p, (calls + 1) // 2, "karras")),
    "dpmpp_2m": lambda p, calls: dpmpp_table(p.schedule, steps=steps_of(p, calls), order=2),
    "dpmpp_2m, log_snr": lambda p, calls: dpmpp_table(p.schedule, steps=steps_of(p, calls, "log_snr"), order=2),
    "dpmpp_3m": lambda p, calls: dpmpp_table(p.schedule, steps=steps_of(p, calls), order=3),
    "dpmpp_3m, log_snr": lambda p, calls: dpmpp_table(p.schedule, steps=steps_of(p, calls, "log_snr"), order=3),
    "dpmpp_3m_full": lambda p, calls: dpmpp_table(p.schedule, steps=steps_of(p, calls), order=3, full_order=True),
    "dpmpp_2m_sde": lambda p, calls: dpmpp_table(p.schedule, steps=steps_of(p, calls), order=2, sde=True),
    "unipc": lambda p, calls: unipc_table(p.schedule, steps=steps_of(p, calls), order=2),
    "unipc_3": lambda p, calls: unipc_table(p.schedule, steps=steps_of(p, calls), order=3),
    "unipc_3, log_snr": lambda p, calls: unipc_table(p.schedule, steps=steps_of(p, calls, "log_snr"), order=3),
}

# Name -> the arrays that it needs: `mask` and `x_0` [D]; `matrix` [M, D], its pseudo-inverse `pinv` and `y` [M].
EDITS = {
    "replacement": ("mask", "x_0"),  # RePaint, too, with a table that rises
    "ddnm": ("matrix", "pinv", "y"),
    "dps": ("matrix", "pinv", "y", "zeta"),
    "ilvr": ("matrix", "pinv", "y"),
    "sdedit": ("x_0",),  # from the noised x_0, with a part of a table
}


def steps_of(process: Process, calls: int, spacing: str = "uniform") -> np.ndarray:
    """The steps of a sampler with one network call each."""
    return spaced_steps(process.num_steps, calls, spacing, schedule=process.schedule)


def process_of_steps(process: Process, calls: int, variance: str) -> Process:
    """The process of the visited steps alone: its exact network knows the best variance of each step that is taken.

    A variance that was learned for all T steps is far from it when steps are left out.
    """
    return Process(respaced(process.schedule, steps_of(process, calls)), process.prediction, variance)


class Drawer:
    """Draws from one process and law; one compiled program serves all samplers, numbers of calls and scales.

    Args:
      num: of samples at a time.
      max_calls: of all samplers.
      x_0_limit: x_0_hat is clipped to this; None: no clipping.
      weak: the law whose network is the reference of guidance, which then is autoguidance; None: the null class is.
    """

    def __init__(
        self,
        process: Process,
        law: GaussianMixture,
        *,
        num: int,
        max_calls: int,
        x_0_limit: float | None = None,
        weak: GaussianMixture | None = None,
    ):
        self._process, self._law, self._num, self._x_0_limit = process, law, num, x_0_limit
        self._max_rows = max_calls + 1  # plms makes one more
        self._model_fn = exact_model_fn(process, law)
        self._weak_model_fn = None if weak is None else exact_model_fn(process, weak)

    def __call__(
        self,
        table: SamplerTable,
        seed: int,
        *,
        label: int | None = None,
        scale: float = 1.0,
        interval: tuple[float, float] = (-math.inf, math.inf),
        rescale: float = 0.0,
        projection: Projection | None = None,
        renoises: bool = False,
        classifier: tuple[int, float] | None = None,
        edit: str | None = None,
        **given: np.ndarray | float,
    ) -> np.ndarray:
        """Samples [num, D], float64.

        Args:
          label: the class to draw, by default any.
          scale, interval, rescale, projection, renoises: of guidance; see `guidance.make_guidance`.
          classifier: (label, scale) of guidance by a classifier without error, which shifts the mean of ancestral
            sampling, and eps with other samplers.
          edit: one of `EDITS`, with the arrays that it needs in `given`.
        """
        no_class = self._law.num_classes
        labels = {"label": jnp.full(self._num, no_class if label is None else label)}
        guidance = None
        if scale != 1 or renoises:
            reference = {"label": jnp.full(self._num, no_class)}
            guidance = make_guidance(
                reference, scale=scale, interval=interval, rescale=rescale, projection=projection, renoises=renoises
            )
        shifts_mean = classifier is not None and table.c_shift is not None
        padded = table.padded(
            max(self._max_rows, table.num_calls),
            learns_variance=self._process.learns_variance,
            shifts_mean=shifts_mean,
            renoises=renoises,
            rises=table.rise_scale is not None,
        )
        if classifier is not None:
            classifier = jnp.full(self._num, classifier[0]), jnp.float32(classifier[1])
        takes = EDITS.get(edit, ())
        if set(given) != set(takes) or not (takes or edit is None):
            raise ValueError(f"edit {edit!r} of {tuple(EDITS)} takes {takes}; got {tuple(given)}")
        given = {name: jnp.asarray(array, jnp.float32) for name, array in given.items()}
        x_0 = self._draw(edit, padded, table.num_calls, jax.random.key(seed), labels, guidance, classifier, given)
        return np.asarray(x_0, np.float64)

    @partial(jax.jit, static_argnums=(0, 1))
    def _draw(self, edit, table, num_calls, key, condition, guidance, classifier, given):
        process, law = self._process, self._law
        guide, mean_shift_fn = self._guide(guidance), None
        if classifier is not None:
            log_prob_fn = class_log_prob(exact_class_log_probs_fn(process, law), classifier[0])
            if table.c_shift is None:
                guide = gradient_guidance(process, log_prob_fn, scale=classifier[1])
            else:
                mean_shift_fn = gradient_shift(process, log_prob_fn, scale=classifier[1])
        measurement = linear(given["matrix"], given["pinv"]) if "matrix" in given else None
        denoise_fn = make_denoiser(
            process,
            self._model_fn,
            condition=condition,
            guide=guide,
            x_0_limit=self._x_0_limit,
            project_fn=range_null_projection(measurement, given["y"]) if edit == "ddnm" else None,
            mean_shift_fn=mean_shift_fn,
        )
        edit_fn = None
        if edit == "dps":
            denoise_fn = posterior_sampling(denoise_fn, measurement.measure, given["y"], zeta=given["zeta"])
        elif edit == "replacement":
            edit_fn = known_region(process, given["x_0"], given["mask"])
        elif edit == "ilvr":
            reference = measurement.pseudo_inverse(given["y"][None])
            edit_fn = ilvr(process, reference, lambda x: measurement.pseudo_inverse(measurement.measure(x)))
        keys = sample_keys(key, jnp.arange(self._num))
        if edit == "sdedit":
            x_t = noised_start(process, table, given["x_0"], keys)
        else:
            x_t = initial_noise(keys, law.shape)
        state = init_sampler_state(table, x_t)
        return walk_rows(denoise_fn, table, num_calls, state, keys, edit_fn=edit_fn).x_t

    def _guide(self, guidance: Guidance | None) -> Guide | None:
        if guidance is None:
            return None
        if self._weak_model_fn is None:
            return classifier_free_guidance(self._process, guidance)

        def weak_predict_fn(x_t, t, condition):
            return self._process.predict(lambda x_t, t: self._weak_model_fn(x_t, t, condition), x_t, t)

        return autoguidance(self._process, guidance, weak_predict_fn)


def linear(matrix, pinv) -> Measurement:
    """y = matrix x of samples [B, D]."""
    exact = jax.lax.Precision.HIGHEST
    return Measurement(
        lambda x: jnp.matmul(x, matrix.T, precision=exact), lambda y: jnp.matmul(y, pinv.T, precision=exact)
    )


def pushed_gaussian(process: Process, law: GaussianMixture, table: SamplerTable) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [D] of what a sampler draws of one Gaussian with the axes as its axes, exactly.

    The network is affine, so the result is x_0 = c + A x_T + sum_i B_i z_i in each coordinate. The loop is run once for
    a batch of unit inputs, one for x_T and one for the noise of each row.
    """
    num_rows, num_dims = table.num_calls, law.num_dims
    x_T = np.zeros((num_rows + 2, num_dims), np.float32)
    x_T[1] = 1
    noises = np.zeros((num_rows, num_rows + 2, num_dims), np.float32)
    noises[np.arange(num_rows), np.arange(num_rows) + 2] = 1
    denoise_fn = make_denoiser(process, exact_model_fn(process, law), x_0_limit=None)
    keys = sample_keys(jax.random.key(0), jnp.arange(num_rows + 2))
    loop = jax.jit(lambda x_T, noises: sample_loop(denoise_fn, table, x_T, keys, noises=noises))
    out = np.asarray(loop(jnp.asarray(x_T), jnp.asarray(noises)), np.float64)
    return out[0], np.sqrt(np.sum((out[1:] - out[0]) ** 2, axis=0))
