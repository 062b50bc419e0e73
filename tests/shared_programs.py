"""Runs of one process whose configs differ in nothing that a program is made of share their compiled programs.

A run of eight steps of a tiny network takes ten times as long to trace, lower and load its programs as to train. The
tests of whole runs start some hundred of them; the tests that start processes of their own share nothing.
"""

import fnmatch

# Fields that no compiled program depends on.
NOT_COMPILED = (
    "train.num_steps", "train.keep_checkpoints", "train.num_ema_snapshots", "train.nonfinite_limit",
    "train.wandb_project", "train.seed",
    "*_every_steps", "data.path", "data.data_dir", "data.split", "data.eval_split", "eval.*", "sample.*",
)  # fmt: skip

# Of the group `sample`, what the programs of a generator are made of or hold beside the table.
SAMPLE_FIELDS = (
    "clip_x_0", "dynamic_threshold", "batch_size", "classes", "negative_classes", "guidance_scale",
    "guidance_interval", "guidance_rescale", "apg_eta", "apg_norm", "cfg_plus_plus", "autoguidance",
    "autoguidance_step", "autoguidance_weights",
)  # fmt: skip


def share_programs(patch):
    """Makes `Experiment` and what `train` builds keep their programs; `patch` is a `pytest.MonkeyPatch`."""
    from ddpm_jax.experiment import sampler_factory, trainer, training
    from ddpm_jax.experiment.build import Experiment
    from ddpm_jax.experiment.config_overrides import flatten

    kept = {}

    def key_of(config, mesh, *others):
        fields = flatten(config).items()
        compiled = {name: value for name, value in fields if not any(fnmatch.fnmatch(name, p) for p in NOT_COMPILED)}
        return repr(sorted(compiled.items())), mesh, *others

    def once(key, make):
        if key not in kept:
            kept[key] = make()
        return kept[key]

    def shared(name, real):
        return lambda experiment: once((name, key_of(experiment.config, experiment.mesh)), lambda: real(experiment))

    for name in ("jitted_step", "jitted_init"):
        patch.setattr(Experiment, name, shared(name, getattr(Experiment, name)))
    patch.setattr(Experiment, "abstract_state", property(shared("state", Experiment.abstract_state.func)))

    build_generator, build_eval_loss = sampler_factory.build_generator, training.build_eval_loss
    flops, peak = trainer.train_step_flops, {"flops_per_second": 1e11}

    def shared_generator(config, process, table, model, mesh, edit=None, **others):
        if edit is not None or config.sample.classifier or others.get("weak") is not None:
            return build_generator(config, process, table, model, mesh, edit, **others)
        images = repr(config.data) if config.condition.task else ""  # which its samples are shown
        key = ("generator", key_of(config, mesh, tuple(config.sample[name] for name in SAMPLE_FIELDS), images))
        return once(key, lambda: build_generator(config, process, table, model, mesh)).with_table(table)

    def shared_eval_loss(experiment):
        config = experiment.config
        key = ("eval", key_of(config, experiment.mesh, repr(config.eval), repr(config.data), config.train.seed))
        return once(key, lambda: build_eval_loss(experiment))

    def shared_flops(experiment, step_fn):
        return once(("flops", key_of(experiment.config, experiment.mesh)), lambda: flops(experiment, step_fn))

    patch.setattr(sampler_factory, "build_generator", shared_generator)
    patch.setattr(training, "build_eval_loss", shared_eval_loss)
    patch.setattr(trainer, "train_step_flops", shared_flops)
    patch.setattr(trainer, "product_peak", lambda *args: peak)  # half a second to measure
