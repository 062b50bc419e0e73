"""From the groups `sample` and `diffusion` of a config to the table of its sampler, and to a generator of images."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddpm_jax.diffusion.denoiser import without_carry
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers import dpmpp_table, heun_table, plms_table, unipc_table
from ddpm_jax.diffusion.samplers.ancestral import ancestral_table
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.ddim import ddim_table
from ddpm_jax.diffusion.timestep_spacing import named_steps, spaced_steps
from ddpm_jax.experiment.classifier import TrainedClassifier, classifier_of, classifier_of_samples, drawn_classes
from ddpm_jax.experiment.codec_factory import build_codec
from ddpm_jax.experiment.conditions import condition_of
from ddpm_jax.experiment.config_checks import fields_named, image_shape_of
from ddpm_jax.experiment.edit import Edit
from ddpm_jax.experiment.generator import Generator
from ddpm_jax.experiment.image_condition import labels_of_shown
from ddpm_jax.experiment.model_factory import build_denoiser
from ddpm_jax.experiment.sample_guidance import guidance_of, is_guided
from ddpm_jax.experiment.weak_network import WeakNetwork, weak_network_of_samples
from ddpm_jax.runtime.devices import check_batch_size
from ddpm_jax.runtime.errors import UserError, arg, check_one_of

# The samplers by name: (process, steps, config) -> table.
_TABLES: dict[str, Callable[[Process, np.ndarray, ConfigDict], SamplerTable]] = {
    "ancestral": lambda p, steps, c: ancestral_table(p, steps=steps),
    "ddim": lambda p, steps, c: ddim_table(p.schedule, steps=steps, eta=c.sample.eta),
    "euler": lambda p, steps, c: ddim_table(p.schedule, steps=steps, eta=0.0),
    "euler_ancestral": lambda p, steps, c: ddim_table(p.schedule, steps=steps, eta=1.0),
    "heun": lambda p, steps, c: heun_table(
        p.schedule,
        steps=steps,
        churn=c.sample.churn,
        churn_min=c.sample.churn_min,
        churn_max=c.sample.churn_max or math.inf,
        churn_noise=c.sample.churn_noise,
    ),
    "dpmpp_1": lambda p, steps, c: dpmpp_table(p.schedule, steps=steps, order=1),
    "dpmpp_2m": lambda p, steps, c: dpmpp_table(p.schedule, steps=steps, order=2),
    "dpmpp_3m": lambda p, steps, c: dpmpp_table(p.schedule, steps=steps, order=3),
    "dpmpp_3m_full": lambda p, steps, c: dpmpp_table(p.schedule, steps=steps, order=3, full_order=True),
    "dpmpp_sde": lambda p, steps, c: dpmpp_table(p.schedule, steps=steps, order=1, sde=True),
    "dpmpp_2m_sde": lambda p, steps, c: dpmpp_table(p.schedule, steps=steps, order=2, sde=True),
    "plms": lambda p, steps, c: plms_table(p.schedule, steps=steps),
    "unipc": lambda p, steps, c: unipc_table(p.schedule, steps=steps, order=2),
    "unipc_3": lambda p, steps, c: unipc_table(p.schedule, steps=steps, order=3),
}
SAMPLERS = tuple(_TABLES)  # every other list of these names is made from this one or compared with it in a test

# Arguments of the functions for steps and tables whose config field is not `sample.ARGUMENT`.
_NAMES = {
    "name": "sample.respacing",
    "variance": "diffusion.variance",
    "strength": arg("strength"),  # an argument, and no field
    "steps=None": "sample.num_sampler_steps=0",
    "ddim_table": "sample.sampler='ddim'",
}
_PREVIEW_NAMES = _NAMES | {
    "num_sampler_steps": "sample.num_preview_steps",
    "sampler": "sample.preview_sampler",
    "ddim_table": "sample.preview_sampler='ddim'",
}


def build_table(config: ConfigDict, process: Process, strength: float = 1.0) -> SamplerTable:
    """The sampler's table, from the groups `sample` and `diffusion`.

    Args:
      strength: in (0, 1]: the last floor(strength * S) of its S steps, as in `edits.partial_table`.
    """
    fields = config.sample
    for name in ("sampler", "preview_sampler"):
        check_one_of(f"sample.{name}", fields[name], SAMPLERS)
    for name in ("eta", "churn", "churn_min", "churn_max", "churn_noise"):  # also if the sampler does not use them
        if not math.isfinite(fields[name]) or fields[name] < 0:
            hint = ": 0 is deterministic, 1 has full noise" if name == "eta" else ""
            raise UserError(f"sample.{name} must be finite and at least 0; got {fields[name]}{hint}")
    if fields.sampler == "heun" and not fields.churn:
        for name, neutral in (("churn_min", 0.0), ("churn_max", 0.0), ("churn_noise", 1.0)):
            if fields[name] != neutral:
                raise UserError(f"sample.{name}={fields[name]} needs a sample.churn above 0, which it is a part of")
    if not 0 <= fields.dynamic_threshold <= 1:
        raise UserError(f"sample.dynamic_threshold must be in [0, 1], 0 for none; got {fields.dynamic_threshold}")
    schedule = process.schedule
    with fields_named("sample", _NAMES):
        if fields.respacing:
            steps = named_steps(schedule.num_steps, fields.respacing)
        else:
            wanted = fields.num_sampler_steps or schedule.num_steps
            steps = spaced_steps(schedule.num_steps, wanted, fields.spacing, schedule=schedule)
        if strength < 1:
            kept = int(strength * len(steps) + 1e-9)  # 0.29 * 100 is a little less than 29
            if kept < 1:
                raise UserError(
                    f"{arg('strength')} must be 0, or at least 1/{len(steps)} with {len(steps)} sampler steps; got "
                    f"{strength}: take more steps, or a higher strength"
                )
            steps = steps[len(steps) - kept :]
        table = _named_table(config, process, "sampler", steps)
    if strength == 1:
        _check_interval(config, process, table)
    return table


def _check_interval(config: ConfigDict, process: Process, table: SamplerTable) -> None:
    """Raises UserError for an interval of guidance that contains no step of the table."""
    interval = tuple(config.sample.guidance_interval)
    numbers = [type(end) in (int, float) for end in interval]
    if not is_guided(config) or numbers != [True, True] or interval[0] >= interval[1]:
        return  # none, or one that `guidance_of` refuses
    signal, noise = map(np.asarray, process.levels(table.t, ndim=1))
    with np.errstate(divide="ignore"):
        log_snr = 2 * (np.log(signal) - np.log(noise))
    if not np.any((log_snr >= interval[0]) & (log_snr <= interval[1])):
        raise UserError(
            f"sample.guidance_interval={interval[0]:g},{interval[1]:g} contains none of the {len(log_snr)} steps of "
            f"the sampler, whose log SNR is in {log_snr.min():.1f}..{log_snr.max():.1f}: leave it out, or take -2,4"
        )


def _named_table(config: ConfigDict, process: Process, field: str, steps: np.ndarray) -> SamplerTable:
    """The table of the sampler in the field `sample.<field>`."""
    table = _TABLES[config.sample[field]](process, steps, config)
    if config.sample.cfg_plus_plus and table.c_x_0_reference is None:
        raise UserError(
            f"sample.cfg_plus_plus=True needs ancestral, ddim, euler or euler_ancestral as sample.{field}, whose eps "
            f"can be that of the reference; got {config.sample[field]!r}"
        )
    if not process.parameterisation.fractional and not jnp.issubdtype(table.t.dtype, jnp.integer):
        raise UserError(
            f"diffusion.prediction={config.diffusion.prediction!r} needs whole steps; got "
            f"sample.spacing={config.sample.spacing!r} and sample.churn={config.sample.churn}: take 'uniform' and 0"
        )
    return table


def build_preview_table(config: ConfigDict, process: Process) -> SamplerTable:
    """The table of `sample.preview_sampler` with `sample.num_preview_steps` steps, for images during training."""
    with fields_named("sample", _PREVIEW_NAMES | {"steps=None": f"sample.num_preview_steps={process.num_steps}"}):
        steps = spaced_steps(process.num_steps, min(config.sample.num_preview_steps, process.num_steps))
        return _named_table(config, process, "preview_sampler", steps)


def check_sample_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Raises UserError if the sampling batch is not divisible by the number of devices."""
    with fields_named("sample", {"num_devices": "train.num_devices"}):
        check_batch_size(config.sample.batch_size, mesh)


def build_generator(
    config: ConfigDict,
    process: Process,
    table: SamplerTable,
    model: nn.Module,
    mesh: Mesh,
    edit: Edit | None = None,
    *,
    classifier: TrainedClassifier | None = None,
    weak: WeakNetwork | None = None,
    self_conditioning: bool = True,
) -> Generator:
    """A generator of samples on the whole mesh; raises UserError if the devices do not divide the batch.

    Args:
      classifier, weak: those of the config, if they were read before.
      self_conditioning: False: a network with self-conditioning sees no estimate, as `without_carry` says.
    """
    check_sample_batch(config, mesh)
    if classifier is None:
        classifier = classifier_of_samples(config)
    if weak is None:
        weak = weak_network_of_samples(config)
    if weak is not None:
        weak = weak.on_devices(mesh)
    shifts_mean = classifier is not None and table.c_shift is not None
    network = None if classifier is None else classifier.network
    told, given = condition_of(config), condition_of(config, derived=False)
    denoiser_of = build_denoiser(
        config,
        process,
        model,
        classifier=network,
        shifts_mean=shifts_mean,
        weak_predict_of=None if weak is None else weak.predict_of,
    )
    self_conditioned = config.diffusion.self_conditioning
    if self_conditioned and not self_conditioning:
        with_carry, self_conditioned = denoiser_of, False
        denoiser_of = lambda *args, **given: without_carry(with_carry(*args, **given))  # noqa: E731
    return Generator(
        denoiser_of,
        table,
        codec=build_codec(config),
        learns_variance=process.learns_variance,
        self_conditioning=self_conditioned,
        edit=edit,
        image_shape=image_shape_of(config),
        mesh=mesh,
        batch_size=config.sample.batch_size,
        condition_of=told,
        given_of=given,
        guidance_of=guidance_of(config, weak),
        classifier_of=classifier_of(config, classifier, mesh, given),
        shifts_mean=shifts_mean,
        num_classes=0 if labels_of_shown(config) else len(drawn_classes(config, classifier)),
        other_networks={
            name: other.facts for name, other in (("classifier", classifier), ("autoguidance", weak)) if other
        },
    )
