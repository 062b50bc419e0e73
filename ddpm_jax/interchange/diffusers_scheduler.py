"""Conversion between the scheduler_config.json of diffusers and our fields of schedule, diffusion and sampler."""

from typing import Any

import numpy as np

from ddpm_jax.diffusion.schedules import SCHEDULES, make_schedule, rescale_zero_terminal_snr
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.runtime.errors import UserError, check_one_of

PREDICTIONS = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}
# fixed_small_log is the same number, computed in another way.
_VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "learned_range": "learned_range",
}
_SPACINGS = {"leading": "leading", "trailing": "trailing", "linspace": "uniform"}
# Their scheduler -> our sampler with the same steps; and the default number of steps of their pipelines.
SAMPLERS = {"DDPMScheduler": "ancestral", "DDIMScheduler": "ddim", "PNDMScheduler": "plms"}
_PIPELINE_STEPS = {"DDPMPipeline": 1000, "DDIMPipeline": 50, "PNDMPipeline": 50}
_SCHEDULER_STEPS = {"DDPMScheduler": 1000}  # without a pipeline: the number of the pipeline of that name
_MOST_T, _LEAST_BETA, _MOST_NUMBER = 1_000_000, 1e-30, 1e30
_SAME = {"rtol": 1e-5, "atol": 1e-8}  # for betas: theirs may be float32 numbers


def fields_of_scheduler(given: dict[str, Any], what: str, pipeline: str | None) -> tuple[dict[str, dict], list[str]]:
    """{"schedule", "diffusion", "sample"} -> fields, and notes on settings that are not converted.

    Args:
      given: the settings of scheduler_config.json.
      what: names the file in error messages.
      pipeline: the class in the folder's model_index.json, which determines the number of steps.

    Raises:
      UserError: names a noise schedule, a prediction or a variance that is not supported.
    """
    _check_kinds(given, what)
    name = given.get("_class_name")
    if name not in SAMPLERS and "beta_start" not in given:
        raise UserError(f"{what} is a {name} without beta_start: supported are the schedules of {sorted(SAMPLERS)}")
    schedule, betas = _schedule_of(given, what)
    prediction = given.get("prediction_type", "epsilon")
    check_one_of(f"prediction_type of {what}", prediction, PREDICTIONS)
    variance = given.get("variance_type", "fixed_small")
    if variance == "fixed_large_log":
        raise UserError(
            f"{what} has variance_type='fixed_large_log', the root of a logarithm, which is NaN: use 'fixed_large'"
        )
    if variance == "learned":
        raise UserError(
            f"{what} has variance_type='learned', the variance itself; here the network outputs its logarithm"
        )
    check_one_of(f"variance_type of {what}", variance, _VARIANCES)
    sample, notes = _sample_of(given, name, pipeline, betas.size)
    diffusion = {"prediction": PREDICTIONS[prediction], "variance": _VARIANCES[variance]}
    if diffusion["variance"] == "learned_range":
        diffusion["loss"] = "hybrid"  # L_simple does not train the variance
    return {"schedule": schedule, "diffusion": diffusion, "sample": sample}, notes


def _check_kinds(given: dict[str, Any], what: str) -> None:
    """Raises UserError for a setting that should be a number, a boolean or a string, but is not."""
    kinds = {
        **dict.fromkeys(("beta_start", "beta_end", "clip_sample_range", "sample_max_value"), (int, float)),
        **dict.fromkeys(("dynamic_thresholding_ratio",), (int, float)),
        **dict.fromkeys(("num_train_timesteps", "steps_offset"), int),
        **dict.fromkeys(("_class_name", "beta_schedule", "prediction_type", "variance_type", "timestep_spacing"), str),
        **dict.fromkeys(("clip_sample", "thresholding", "rescale_betas_zero_snr", "set_alpha_to_one"), bool),
    }
    for name, kind in kinds.items():
        value = given.get(name)
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if not wrong and name == "steps_offset":
            wrong = not 0 <= value <= _MOST_T
        elif not wrong and kind == (int, float):
            wrong = not abs(value) < _MOST_NUMBER
        if name in given and wrong:
            raise UserError(f"{what} has {name}={str(value)[:40]!r}, which is not a valid value")


def _schedule_of(given: dict[str, Any], what: str) -> tuple[dict[str, Any], np.ndarray]:
    """The fields of `schedule` that give their betas, and these betas in float64."""
    num_steps = given.get("num_train_timesteps", 1000)
    start, end = given.get("beta_start", 1e-4), given.get("beta_end", 0.02)
    if not 0 < num_steps <= _MOST_T:
        raise UserError(f"{what} has num_train_timesteps={num_steps}: it must be in 1..{_MOST_T}")
    if not (_LEAST_BETA <= start < 1 and _LEAST_BETA <= end < 1):
        raise UserError(
            f"{what} has beta_start={start} and beta_end={end}: they must be at least {_LEAST_BETA} and below 1"
        )
    zero = bool(given.get("rescale_betas_zero_snr", False))
    betas = _their_betas(given, num_steps, start, end, what)
    found = _named(betas, start, end)
    if found is None and zero:
        betas, zero = rescale_zero_terminal_snr(betas), False
    found = found or _named(betas, start, end, zero_terminal_snr=True)
    if found is None:
        kind = "trained_betas" if given.get("trained_betas") is not None else repr(given.get("beta_schedule"))
        raise UserError(f"{what} has the betas {kind}, which no supported schedule gives: {sorted(SCHEDULES)}")
    fields = {"num_steps": num_steps} | found | ({"zero_terminal_snr": True} if zero else {})
    return fields, np.asarray(make_schedule(**fields).betas_float64)


def _their_betas(given: dict[str, Any], num_steps: int, start: float, end: float, what: str) -> np.ndarray:
    """[T] in float64, by the formulas of their schedulers (which use float32)."""
    if given.get("trained_betas") is not None:
        try:
            betas = np.asarray(given["trained_betas"], np.float64)
        except (ValueError, TypeError):
            betas = np.zeros(0)
        if betas.shape != (num_steps,) or not np.all((betas > 0) & (betas <= 1)):
            raise UserError(f"{what} must have num_train_timesteps={num_steps} trained_betas, each in (0, 1]")
        return betas
    kind = given.get("beta_schedule", "linear")
    u = np.linspace(0, 1, num_steps)
    kinds = {
        "linear": lambda: start + (end - start) * u,
        "scaled_linear": lambda: (start**0.5 + (end**0.5 - start**0.5) * u) ** 2,
        "sigmoid": lambda: start + (end - start) / (1 + np.exp(6 - 12 * u)),
        "squaredcos_cap_v2": lambda: SCHEDULES["cosine"](num_steps, start, end),
    }
    if kind not in kinds:
        raise UserError(f"{what} has beta_schedule={kind!r}: supported are {sorted(kinds)}")
    return kinds[kind]()


def _named(
    betas: np.ndarray, start: float, end: float, zero_terminal_snr: bool = False
) -> dict[str, Any] | None:
    """The name and the ends of our schedule that gives these betas, found by comparing the numbers."""
    num_steps = betas.size
    for name, formula in SCHEDULES.items():
        scale = num_steps / 1000 if name == "linear" else 1.0
        for first, last in ((start, end), (float(betas[0]), float(betas[-1]))):
            first, last = first * scale, last * scale
            if not 0 < first <= last:
                continue
            with np.errstate(over="ignore"):
                ours = formula(num_steps, first, last)
            if not (np.all(ours > 0) and np.all(ours[:-1] < 1) and ours[-1] <= 1):
                continue
            if zero_terminal_snr and num_steps > 1:
                ours = rescale_zero_terminal_snr(ours)
            if np.allclose(ours, betas, **_SAME):
                return {"name": name, "beta_start": first, "beta_end": last, "zero_terminal_snr": zero_terminal_snr}
    return None


def _sample_of(given: dict[str, Any], name: str | None, pipeline: str | None, T: int) -> tuple[dict, list[str]]:
    """The fields of `sample` for the default sampling of their pipeline, and notes on what is not converted."""
    notes = []
    sampler = SAMPLERS.get(name, "ddim")
    if name not in SAMPLERS:
        notes.append(f"the sampler of {name} is replaced by ddim: docs/samplers.md lists similar samplers")
    wanted = _PIPELINE_STEPS.get(pipeline or "", _SCHEDULER_STEPS.get(name or "", 50))
    num_steps = min(wanted, T)
    clip = bool(given.get("clip_sample", sampler != "plms"))
    fields = {"sampler": sampler, "eta": 0.0, "clip_x_0": clip, "dynamic_threshold": 0.0}
    fields |= _steps_of(given, num_steps, T, notes)
    if given.get("thresholding", False):
        most = given.get("sample_max_value", 1.0)
        # Their threshold is between 1 and sample_max_value; with 1 it is the same as clipping.
        fields["clip_x_0"] = True
        if most > 1:
            fields["dynamic_threshold"] = float(given.get("dynamic_thresholding_ratio", 0.995))
            notes.append(f"sample_max_value={most} is ignored: the threshold here has no upper limit")
    elif clip and given.get("clip_sample_range", 1.0) != 1:
        notes.append(f"clip_sample_range={given['clip_sample_range']} is ignored: x_0 is clipped to [-1, 1]")
    if sampler == "plms" and not given.get("skip_prk_steps", False):
        notes.append("the Runge-Kutta steps of PNDMScheduler are not used: plms starts as with skip_prk_steps")
    if sampler in ("ddim", "plms") and not given.get("set_alpha_to_one", sampler == "ddim"):
        notes.append("set_alpha_to_one=False is ignored: the last step ends at the clean image")
    return fields, notes


def _steps_of(given: dict[str, Any], num_steps: int, T: int, notes: list[str]) -> dict[str, Any]:
    """Their steps as one of our spacings, or as a list of steps if none fits."""
    spacing = given.get("timestep_spacing", "leading")
    if spacing not in _SPACINGS:
        notes.append(f"timestep_spacing={spacing!r} is ignored")
        spacing = "linspace"
    ours = _SPACINGS[spacing]
    offset = given.get("steps_offset", 0) if spacing == "leading" else 0
    steps = spaced_steps(T, num_steps, ours)
    if steps[0] + offset >= T:
        notes.append(f"steps_offset={offset} is ignored: it leads past the last step")
        offset = 0
    if num_steps == T:
        return {"num_sampler_steps": 0, "spacing": "uniform", "respacing": ""}
    respacing = "t=" + ",".join(map(str, steps + offset)) if offset else ""
    return {"num_sampler_steps": num_steps, "spacing": ours, "respacing": respacing}


def scheduler_of_fields(groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The scheduler_config.json of the DDPMScheduler with the schedule, prediction and variance of a config.

    Args:
      groups: {"group": {"field": value}}; "schedule", "diffusion" and "sample" are read.

    Raises:
      UserError: a prediction or variance that it does not support.
    """
    schedule, diffusion, sample = (groups[name] for name in ("schedule", "diffusion", "sample"))
    theirs = {ours: name for name, ours in PREDICTIONS.items()}
    if diffusion["prediction"] not in theirs:
        raise UserError(f"DDPMScheduler does not support diffusion.prediction={diffusion['prediction']!r}")
    if diffusion["variance"] == "learned":
        raise UserError("DDPMScheduler does not support diffusion.variance='learned': its network gives no logarithm")
    names = {"linear": "linear", "quadratic": "scaled_linear", "cosine": "squaredcos_cap_v2"}
    scale = 1000 / schedule["num_steps"] if schedule["name"] == "linear" else 1.0
    betas, zero = {"trained_betas": None}, schedule["zero_terminal_snr"]
    if schedule["name"] not in names:
        betas, zero = {"trained_betas": list(make_schedule(**schedule).betas_float64)}, False
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule["num_steps"],
        "beta_schedule": names.get(schedule["name"], "linear"),
        "beta_start": schedule["beta_start"] * scale,
        "beta_end": schedule["beta_end"] * scale,
        **betas,
        "variance_type": diffusion["variance"],
        "prediction_type": theirs[diffusion["prediction"]],
        "clip_sample": sample["clip_x_0"],
        "clip_sample_range": 1.0,
        "thresholding": sample["dynamic_threshold"] > 0,
        "dynamic_thresholding_ratio": sample["dynamic_threshold"] or 0.995,
        "sample_max_value": 1e9 if sample["dynamic_threshold"] else 1.0,  # ours has no upper limit
        "timestep_spacing": {"leading": "leading", "trailing": "trailing"}.get(sample["spacing"], "linspace"),
        "steps_offset": 0,
        "rescale_betas_zero_snr": zero,
    }
