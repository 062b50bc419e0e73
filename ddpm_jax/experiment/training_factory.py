"""From the groups `diffusion`, `optim` and `train` of a config to loss, optimiser and train step.

Like `model_factory`, this reads a ConfigDict and checks user input, outside jit.
"""

from collections.abc import Callable

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddpm_jax.codecs.codec import Codec
from ddpm_jax.data.condition import ConditionSpec
from ddpm_jax.diffusion.loss_weights import loss_weights
from ddpm_jax.diffusion.losses import BOUNDS, LossFn, make_loss_fn
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.timestep_samplers import TimestepSampler, make_timestep_sampler
from ddpm_jax.experiment.config_checks import fields_named, image_shape_of, is_image
from ddpm_jax.runtime.devices import check_batch_size
from ddpm_jax.runtime.errors import UserError, check_one_of
from ddpm_jax.training.objective import Objective
from ddpm_jax.training.optimizer import StepFn, make_ema_decays, make_learning_rate, make_optimizer
from ddpm_jax.training.power_averages import PowerDecay, make_power_averages
from ddpm_jax.training.train_step import TrainStep, make_train_step
from ddpm_jax.workdir.ema_snapshots import due_steps

NONFINITE = ("stop", "skip", "rewind")  # how a loss that is not finite is handled


def build_loss(config: ConfigDict, process: Process, codec: Codec) -> LossFn:
    """The training loss."""
    diffusion = config.diffusion
    with fields_named("diffusion"):
        weights = loss_weights(
            process,
            diffusion.weighting,
            min_snr_gamma=diffusion.min_snr_gamma,
            p2_gamma=diffusion.p2_gamma,
            p2_k=diffusion.p2_k,
        )
        if weights is not None and diffusion.loss in BOUNDS:
            raise UserError(
                f"diffusion.weighting must be 'none' with diffusion.loss={diffusion.loss!r}, whose weights are given"
            )
        return make_loss_fn(
            process,
            loss=diffusion.loss,
            huber_delta=diffusion.huber_delta,
            vlb_lambda=diffusion.vlb_lambda,
            weights=weights,
            log_likelihood=codec.log_likelihood,
        )


def build_timestep_sampler(config: ConfigDict) -> TimestepSampler:
    """The sampler of t for training."""
    with fields_named("train", {"name": "train.time_sampler"}):
        return make_timestep_sampler(config.train.time_sampler, config.schedule.num_steps)


def build_ema_decays(config: ConfigDict) -> dict[str, StepFn]:
    """The decays of all averages by name; the first average is the one that is sampled."""
    optim = config.optim
    with fields_named("optim", {"decay": "optim.ema_decays", "decays": "optim.ema_decays", "start": "optim.ema_start"}):
        decays = make_ema_decays(optim.ema_decays, start=optim.ema_start)
    return decays | build_power_averages(config)


def build_power_averages(config: ConfigDict) -> dict[str, PowerDecay]:
    """The decays of the averages of optim.ema_stds by name, of which snapshots are kept."""
    with fields_named("optim", {"std": "optim.ema_stds", "stds": "optim.ema_stds"}):
        return make_power_averages(config.optim.ema_stds)


def ema_snapshot_steps(config: ConfigDict) -> list[int]:
    """The steps of the snapshots of the averages of optim.ema_stds; none if there are no such averages."""
    num_snapshots, num_steps = config.train.num_ema_snapshots, config.train.num_steps
    return due_steps(num_snapshots, num_steps) if config.optim.ema_stds and num_snapshots else []


def learning_rate_steps(config: ConfigDict, name: str) -> int:
    """The number of updates of the "warmup" or "decay", given in updates or as a share of the run; 0: none.

    Raises:
      UserError: a number out of its range, or a length given both in updates and as a share.
    """
    optim, num_steps = config.optim, config.train.num_steps
    steps, share = optim[f"{name}_steps"], optim[f"{name}_share"]
    if steps < 0:
        raise UserError(f"optim.{name}_steps must be at least 0; got {steps}")
    if not 0 <= share <= 1:
        raise UserError(f"optim.{name}_share must be in [0, 1], a share of train.num_steps; got {share}")
    if steps and share:
        raise UserError(
            f"optim.{name}_steps={steps} and optim.{name}_share={share} both set the length of {name}: set one to 0, "
            f"such as --config.optim.{name}_steps=0"
        )
    return max(1, round(share * num_steps)) if share else steps


def build_learning_rate(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """Update number -> learning rate."""
    optim = config.optim
    for field in ("learning_rate", "eps"):
        if optim[field] <= 0:
            raise UserError(f"optim.{field} must be above 0; got {optim[field]}")
    for field in ("grad_clip", "clip_replicas", "weight_decay"):
        if optim[field] < 0:
            raise UserError(f"optim.{field} must be at least 0; got {optim[field]}")
    for field in ("b1", "b2"):
        if not 0 <= np.float32(optim[field]) < 1:
            raise UserError(f"optim.{field} must be in [0, 1); got {optim[field]}")
    return make_learning_rate(
        optim.learning_rate,
        warmup_steps=learning_rate_steps(config, "warmup"),
        first_step_zero=optim.first_step_zero,
        decay_steps=learning_rate_steps(config, "decay"),
    )


def build_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam with warm-up and global clipping; clipping per replica is done by the train step."""
    optim, learning_rate = config.optim, build_learning_rate(config)
    if optim.clip_replicas and optim.grad_clip:
        raise UserError(
            f"optim.clip_replicas={optim.clip_replicas} clips each part at 1; with it optim.grad_clip must be 0; "
            f"got {optim.grad_clip}"
        )
    return make_optimizer(
        learning_rate,
        b1=optim.b1,
        b2=optim.b2,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        grad_clip=optim.grad_clip,
    )


def build_train_step(
    config: ConfigDict,
    mesh: Mesh,
    objective: Objective,
    condition: ConditionSpec,
    optimizer: optax.GradientTransformation,
) -> TrainStep:
    """The pure train step, not jitted; raises UserError if devices and parts do not divide the batch."""
    optim, train = config.optim, config.train
    if train.grad_accum_steps < 1:
        raise UserError(f"train.grad_accum_steps must be at least 1; got {train.grad_accum_steps}")
    if optim.clip_replicas and train.grad_accum_steps > 1:
        raise UserError(
            f"optim.clip_replicas={optim.clip_replicas} already splits the batch into parts; with it "
            f"train.grad_accum_steps must be 1; got {train.grad_accum_steps}"
        )
    if config.data.flip and not is_image(image_shape_of(config)):
        raise UserError(
            f"data.flip=True mirrors images, and data.image_size={tuple(config.data.image_size)} is of other data: "
            "give --config.data.flip=false"
        )
    check_one_of("train.nonfinite", train.nonfinite, NONFINITE)
    num_parts = optim.clip_replicas or train.grad_accum_steps
    with fields_named("train"):
        check_batch_size(train.batch_size, mesh, num_parts)
    return make_train_step(
        objective,
        optimizer,
        ema_decays=build_ema_decays(config),
        spec=condition,
        drop_rate=config.condition.drop_rate,
        flip=config.data.flip,
        num_parts=num_parts,
        clip_each_part=1.0 if optim.clip_replicas else 0.0,
        skip_nonfinite=train.nonfinite == "skip",
    )
