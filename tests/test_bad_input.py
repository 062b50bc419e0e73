"""Bad input to the commands: one line on stderr, exit code 2, no traceback, and nothing made or lost."""

import pytest

from ddpm_jax import train as train_command
from ddpm_jax.diffusion.image_conditions import TASKS
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_overrides import flatten
from ddpm_jax.experiment.task_fields import FIELDS
from ddpm_jax.runtime.errors import UserError


def error_of(capfd, main, argv):
    code = main(argv)
    err = capfd.readouterr().err
    assert code == 2 and len(err.splitlines()) == 1 and err.startswith("error: "), err
    return err.removeprefix("error: ").strip()


@pytest.fixture
def train_error(tiny_flags, tmp_path, capfd):
    def error(*flags, workdir=None):
        message = error_of(capfd, train_command.main, [*tiny_flags, f"--workdir={workdir or tmp_path / 'w'}", *flags])
        assert workdir or not (tmp_path / "w").exists()  # no trace of a run that never began
        return message

    return error


CASES = [
    ("train.batchsize=8", "unknown config field 'train.batchsize'; did you mean 'train.batch_size'?"),
    ("train.batch_size=many", "config field 'train.batch_size' must be an int; got 'many'"),
    ("optim.learning_rate=nan", "config field 'optim.learning_rate' must be a finite float; got 'nan'"),
    ("train.num_devices=9", "train.num_devices must be in 0..8 (0: all of them); got 9"),
    ("train.num_devices=-1", "train.num_devices must be in 0..8 (0: all of them); got -1"),
    ("data.name=digit", "data.name"),
    ("data.split=validation", "data.split must be one of"),
    ("data.split=train[5", "data.split must be a name with at most one slice"),
    ("data.eval_split=none", "data.eval_split must be one of"),
    ("data.image_size=8,8,8", "data.image_size must be (H, W) in pixels, each 1 or more; got (8, 8, 8); only"),
    ("data.image_size=0,8", "data.image_size must be (height, width) in pixels; got (0, 8)"),
    ("optim.eps=1e308", "optim.eps must be 0 or a float32, 1e-38..3e+38; got 1e+308"),
    ("optim.learning_rate=1e-60", "optim.learning_rate must be 0 or a float32, 1e-38..3e+38; got 1e-60"),
    ("optim.b2=0.99999999999", "optim.b2 must be in [0, 1); got 0.99999999999"),
    ("train.batch_size=2147483647", "train.batch_size must leave a batch of at most 0.27 TB; got 2147483647 times 64"),
    ("unet.num_res_blocks=1000000", "the network must have at most 500 blocks (unet.num_res_blocks times levels)"),
    ("conv_net.num_layers=1000000", "conv_net.num_layers and conv_net.channels must be at most 1000 and 65536; got"),
    ("sample.classes=3", "sample.classes=3 is for a network with classes; the run has model.num_classes=0"),
    ("data.num_channels=0", "data.num_channels must be at least 1; got 0"),
    ("data.num_channels=2", "data.num_channels must be 1 (grey) or 3 (colour) for 'digits'; got 2"),
    ("data.path=/nowhere", "data.path is not read for 'digits' and must be ''"),
    ("schedule.name=cosin", "schedule.name must be one of"),
    ("schedule.num_steps=0", "schedule.num_steps must be at least 1; got 0"),
    ("schedule.num_steps=1e12", "schedule.num_steps must be at most 2147483647; got 1000000000000"),
    ("schedule.num_steps=2000000", "schedule.num_steps must be in 1..1000000; got 2000000"),
    ("schedule.beta_start=0", "schedule.beta_start and beta_end must satisfy 0 < start <= end"),
    ("schedule.beta_end=inf", "schedule.beta_end must be finite; got inf"),
    ("schedule.name=jsd", "diffusion.prediction='eps' says nothing about x_0 where alpha-bar falls to 0"),
    ("schedule.zero_terminal_snr=true", "diffusion.prediction='eps' says nothing about x_0 where alpha-bar falls to 0"),
    ("diffusion.prediction=x0", "diffusion.prediction must be one of ['eps', 'mean', 'v', 'x_0']; got 'x0'; did"),
    ("diffusion.loss=l2", "diffusion.loss must be one of ['huber', 'hybrid', 'l1', 'rescaled_vlb', 'simple', 'vlb']"),
    ("diffusion.loss=hybrid", "diffusion.loss='hybrid' trains a learned variance; got diffusion.variance='fixed_"),
    ("diffusion.loss_region=all", "diffusion.loss_region must be one of ['hole', 'image']; got 'all'"),
    ("diffusion.vlb_lambda=0", "diffusion.vlb_lambda must be above 0; got 0.0"),
    ("diffusion.weighting=snr", "diffusion.weighting must be one of ['min_snr', 'none', 'p2']; got 'snr'"),
    ("diffusion.min_snr_gamma=0", "diffusion.min_snr_gamma must be above 0; got 0.0"),
    ("diffusion.p2_gamma=-1", "diffusion.p2_gamma must be at least 0; got -1.0"),
    ("diffusion.p2_k=0", "diffusion.p2_k must be above 0; got 0.0"),
    ("diffusion.variance=learned", "diffusion.variance='learned' is not trained by diffusion.loss='simple': take"),
    ("train.time_sampler=random", "train.time_sampler must be one of ['loss_second_moment', 'stratified', 'uniform']"),
    ("diffusion.huber_delta=0", "diffusion.huber_delta must be above 0; got 0.0"),
    ("diffusion.variance=small", "diffusion.variance must be one of ['fixed_large', 'fixed_small', 'learned',"),
    ("unet.channels=5", "unet.channels must be even and at least 4; got 5"),
    ("unet.channels=0", "unet.channels must be even and at least 4; got 0"),
    ("unet.channels=1e11", "unet.channels must be at most 2147483647"),
    ("unet.channel_mults=", "unet.channel_mults must be one or more numbers above 0; got ()"),
    ("unet.channel_mults=1,0", "unet.channel_mults must be one or more numbers above 0; got (1, 0)"),
    ("unet.channel_mults=1,1,1,1,1", "data.image_size must be divisible by 16 = 2^(levels-1)"),
    ("unet.res_blocks_per_level=2,4", "unet.res_blocks_per_level must be a whole number above 0 for each level of un"),
    ("unet.res_blocks_per_level=0.5", "unet.res_blocks_per_level must be a whole number above 0 for each level of un"),
    ("unet.downsample_first=2", "config field 'unet.downsample_first' must be true or false; got '2'"),
    ("unet.num_res_blocks=0", "unet.num_res_blocks must be at least 1; got 0"),
    ("unet.num_groups=3", "unet.num_groups must divide every level's width; got 3 groups for the width 4"),
    ("unet.num_groups=0", "unet.num_groups must be at least 1; got 0"),
    ("unet.attention_resolutions=5", "unet.attention_resolutions must be among the heights of the levels, [8]"),
    ("unet.dropout=1", "unet.dropout must be in [0, 1); got 1.0"),
    ("conv_net.channels=7", "conv_net.channels must be even and at least 4; got 7"),
    ("conv_net.num_layers=0", "conv_net.num_layers must be at least 1; got 0"),
    ("model.name=u-net", "model.name must be one of ['conv_net', 'unet']; got 'u-net'; did you mean 'unet'?"),
    ("model.num_classes=-1", "model.num_classes must be at least 0; got -1"),
    ("condition.drop_rate=1", "condition.drop_rate must be in [0, 1); got 1.0"),
    ("condition.drop_rate=0.1", "condition.drop_rate=0.1 is for a network with a condition from the data"),
    ("model.channels=5", "config field 'model.channels' is now 'unet.channels'"),
    ("model.dtype=float16", "model.dtype must be one of ['bfloat16', 'float32']; got 'float16'"),
    ("unet.norm_eps=0", "unet.norm_eps must be above 0 and below 1, such as 1e-6 or 1e-5; got 0.0"),
    ("unet.num_heads=3", "unet.num_heads must divide the width of every level with attention and of the middle, [4]"),
    ("unet.head_channels=3", "unet.head_channels must divide the width of every level with attention"),
    ("unet.down_padding=start", "unet.down_padding must be one of ['both', 'end']; got 'start'"),
    ("unet.embedding_order=cos", "unet.embedding_order must be one of ['cos_sin', 'sin_cos']; got 'cos'"),
    ("unet.embedding_spacing=2", "unet.embedding_spacing must be one of ['half', 'half_minus_1']; got '2'"),
    ("unet.time_scale=-1", "unet.time_scale must be above 0 and at most 1000, such as 1 or 1000/T; got -1.0"),
    ("optim.learning_rate=0", "optim.learning_rate must be above 0; got 0.0"),
    ("optim.learning_rate=inf", "optim.learning_rate must be finite; got inf"),
    ("optim.warmup_steps=-1", "optim.warmup_steps must be at least 0; got -1"),
    ("optim.decay_steps=-1", "optim.decay_steps must be at least 0; got -1"),
    ("optim.b1=1", "optim.b1 must be in [0, 1); got 1.0"),
    ("optim.b2=-0.5", "optim.b2 must be in [0, 1); got -0.5"),
    ("optim.eps=0", "optim.eps must be above 0; got 0.0"),
    ("optim.grad_clip=-1", "optim.grad_clip must be at least 0; got -1.0"),
    ("optim.clip_replicas=2", "optim.clip_replicas=2 clips each part at 1; with it optim.grad_clip must be 0; got 1.0"),
    ("optim.clip_replicas=-1", "optim.clip_replicas must be at least 0; got -1"),
    ("optim.ema_decay=0.9", "config field 'optim.ema_decay' is now 'optim.ema_decays', a tuple such as (0.9999,)"),
    ("optim.ema_decays=0.9,1", "optim.ema_decays must be in [0, 1); got 1.0"),
    ("optim.ema_decays=", "optim.ema_decays must be at least one decay, and all different; got ()"),
    ("optim.ema_decays=0.9,0.5,0.9", "optim.ema_decays must be at least one decay, and all different; got (0.9, "),
    ("optim.ema_start=zero", "optim.ema_start must be one of ['constant', 'copy_first', 'warmup']; got 'zero'"),
    ("train.seed=-1", "train.seed must be"),
    ("train.seed=4294967296", "train.seed must be"),
    ("train.num_steps=0", "train.num_steps must be at least 1; got 0"),
    ("train.num_steps=-5", "train.num_steps must be at least 1; got -5"),
    ("train.batch_size=0", "train.batch_size must be at least 1; got 0"),
    ("train.grad_accum_steps=0", "train.grad_accum_steps must be at least 1; got 0"),
    ("train.grad_accum_steps=3", "train.batch_size must be a multiple of 3 (1 device times 3 parts); got 8: take 6"),
    ("train.log_every_steps=-1", "train.log_every_steps must be at least 0; got -1"),
    ("train.checkpoint_every_steps=-1", "train.checkpoint_every_steps must be at least 0; got -1"),
    ("train.sample_every_steps=-1", "train.sample_every_steps must be at least 0; got -1"),
    ("train.keep_checkpoints=0", "train.keep_checkpoints must be at least 1; got 0"),
    ("sample.sampler=ddpm", "sample.sampler must be one of ['ancestral', 'ddim', 'dpmpp_1', 'dpmpp_2m',"),
    ("sample.respacing=ddim15", "sample.respacing='ddim15': no whole stride visits exactly 15 of 20 steps; the"),
    ("sample.respacing=fast", "sample.respacing must be such as '250', '10,15,20' (steps per section), 'ddim50' or"),
    ("sample.churn=-1", "sample.churn must be finite and at least 0; got -1.0"),
    ("sample.churn_noise=-1", "sample.churn_noise must be finite and at least 0; got -1.0"),
    ("sample.dynamic_threshold=2", "sample.dynamic_threshold must be in [0, 1], 0 for none; got 2.0"),
    ("sample.num_sampler_steps=21", "sample.num_sampler_steps must be in 1..20 (T); got 21"),
    ("sample.num_sampler_steps=-1", "sample.num_sampler_steps must be at least 0; got -1"),
    ("sample.spacing=cubic", "sample.spacing must be one of ['ddim_quadratic', 'dpm_uniform', 'karras', 'leading',"),
    ("sample.eta=-0.5", "sample.eta must be finite and at least 0; got -0.5"),
    ("sample.batch_size=0", "sample.batch_size must be at least 1; got 0"),
    ("sample.num_grid=0", "sample.num_grid must be at least 1; got 0"),
    ("sample.num_preview_steps=0", "sample.num_preview_steps must be at least 1; got 0"),
    ("eval.batch_size=0", "eval.batch_size must be at least 1; got 0"),
    ("eval.max_images=-1", "eval.max_images must be at least 0; got -1"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "message"), CASES, ids=[override for override, _ in CASES])
def test_one_line(train_error, override, message):
    network = ["--config.model.name=unet"] if override.startswith("unet.") else []
    assert train_error(*network, f"--config.{override}").startswith(message)


def test_batches_that_the_devices_do_not_divide(train_error):
    eight = "--config.train.num_devices=8"
    assert train_error(eight, "--config.train.batch_size=12") == (
        "train.batch_size must be a multiple of 8 (8 devices); got 12: take 8, or another train.num_devices"
    )
    # Before the first step, and not when the first grid is drawn.
    assert train_error(eight, "--config.sample.batch_size=4") == (
        "sample.batch_size must be a multiple of 8 (8 devices); got 4: take 8, or another train.num_devices"
    )


def test_settings_of_churn_without_churn(train_error):
    message = train_error("--config.sample.sampler=heun", "--config.sample.churn_noise=1.003")
    assert message.startswith("sample.churn_noise=1.003 needs a sample.churn above 0")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["blur_std=1,2"], "condition.blur_std is of condition.task=deblur; got condition.task='', which does not read "
         "it: leave it at (0.5, 3.0), or give --config.condition.task=deblur"),
        (["task=jpeg", "hole_share=0.2,0.3"], "condition.hole_share is of condition.task=inpaint; got"),
        (["task=uncrop", "factor=2"], "condition.factor is of condition.task=super_resolve; got"),
        (["task=super_resolve", "max_level=3"], "condition.max_level is of condition.augmentation=noise; got 'none'"),
        (["task=super_resolve", "augmentation=blur", "max_level=3"], "condition.max_level is of"),
    ],
    ids=lambda value: "",
)  # fmt: skip
def test_fields_of_another_task(train_error, fields, message):
    assert train_error(*(f"--config.condition.{field}" for field in fields)).startswith(message)


def test_every_field_of_a_task_is_in_the_table(tiny_config):
    """An older run, made when a field had another default, is opened nevertheless."""
    fields = {name for names in FIELDS.values() for name in names}
    assert fields | {"task", "drop_rate"} == set(tiny_config().condition) and tuple(FIELDS) == TASKS
    build_experiment(tiny_config("condition.blur_std=0.5,2.0"))


def test_eta_that_asks_for_too_much_noise(train_error):
    message = train_error("--config.sample.sampler=ddim", "--config.sample.eta=50")
    assert message.startswith("sample.eta must be at least 0 and leave sigma^2 <= 1 - alpha_bar; got 50.0")


def test_accumulation_beside_replicas(train_error):
    flags = ["optim.clip_replicas=2", "optim.grad_clip=0", "train.grad_accum_steps=2"]
    assert train_error(*(f"--config.{flag}" for flag in flags)).startswith("optim.clip_replicas=2 already splits the")


def test_empty_or_missing_folders_of_pictures(train_error, tmp_path):
    (tmp_path / "empty").mkdir()
    flags = ["--config.data.name=image_folder", "--config.data.eval_split="]
    for path in (tmp_path / "empty", tmp_path / "absent", ""):
        message = train_error(*flags, f"--config.data.path={path}")
        assert "data.path" in message or str(path) in message


def test_every_field_with_nasty_values(tiny_config):
    """Whatever single field is set to whatever its type allows, building says UserError or works."""
    nasty = {
        int: ["-1", "0", "7", "2147483647", "1e30"],
        float: ["-1", "0", "1e-45", "1e300", "-inf"],
        str: ["", "é b", "../.."],
        bool: ["true", "false"],
        tuple: ["", "0", "-1", "1", "3,5", "1,1,1,1,1,1,1,1", "2147483648"],
    }
    refused = 0
    for field, value in flatten(tiny_config()).items():
        for text in nasty[type(value)]:
            try:
                build_experiment(tiny_config(f"{field}={text}"))
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 500
    assert refused > 80


@pytest.mark.parametrize(
    "flag,message",
    [
        ("--num_steps=3", "unknown flag '--num_steps'; did you mean '--config.train.num_steps'?"),
        ("--batch-size=3", "unknown flag '--batch-size'; did you mean '--config.train.batch_size'?"),
        ("--lr=1e-3", "unknown flag '--lr'; did you mean '--config.optim.learning_rate'?"),
        ("--ema_decay=0.9", "unknown flag '--ema_decay'; did you mean '--config.optim.ema_decays'?"),
        ("--resume", "unknown flag '--resume': the same command resumes the run in --workdir from its newest check"),
        ("--config.num_steps=3", "unknown config field 'num_steps'; did you mean 'train.num_steps'?"),
    ],
)
def test_flags_of_other_codes_are_answered(train_error, flag, message):
    assert train_error(flag).startswith(message)


def test_one_number_is_a_square_image(tiny_config):
    assert tiny_config("data.image_size=16").data.image_size == (16, 16)


# The workdir


def test_workdir_of_another_run(own_run, train_error):
    before = (own_run / "config.json").read_bytes()
    message = train_error("--config.train.seed=1", "--config.conv_net.channels=4", workdir=own_run)
    assert message.startswith(
        "the workdir holds a run with another config: conv_net.channels was 8 and is 4; train.seed was 0 and is 1; "
    )
    assert (own_run / "config.json").read_bytes() == before


def test_workdir_that_cannot_be(train_error, tmp_path):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        message = train_error(workdir=workdir)
        assert message.startswith(f"--workdir {workdir} cannot be written (") and "give another folder" in message
    assert (tmp_path / "file").read_text() == "mine"


def test_workdir_without_permission(train_error, tmp_path, monkeypatch):
    """A real one cannot be made where tests run as root."""

    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("ddpm_jax.experiment.training.tempfile.TemporaryFile", refuse)
    workdir = tmp_path / "run"
    assert train_error(workdir=workdir) == (
        f"--workdir {workdir} cannot be written (Permission denied: {workdir}): give another folder"
    )


# The sample command


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_samples=0"], "--num_samples must be at least 1; got 0"),
        (["--num_samples=1000000000000"], "--num_samples must be at most 2147483647; got 1000000000000"),
        (["--seed=-1"], "--seed must be"),
        (["--seed=4294967296"], "--seed must be"),
        (["--step=3"], "--step must be one of [2, 4, 6, 8]; got 3"),
        (["--step=2", "--best"], "--best and --step=2 both choose a checkpoint: give one of them"),
        (["--weights=best"], "--weights must be one of ['ema', 'ema/0.995', 'raw']; got 'best'"),
        (["--weights=ema/0.9"], "--weights must be one of ['ema', 'ema/0.995', 'raw']; got 'ema/0.9'; did you mean"),
        (["--sampler=dim"], "--sampler must be one of ['ancestral', 'ddim', 'dpmpp_1', 'dpmpp_2m',"),
        (["--eta=1"], "--eta is of --sampler=ddim; got 'ancestral', which does not read it"),
        (["--guidance_scale=2,5"], "argument --guidance_scale: invalid float value: '2,5': use a decimal point: 2.5"),
        (["--classifier_scale=1,5"], "argument --classifier_scale: invalid float value: '1,5': use a decimal point"),
        (["--ema_std=0,15"], "argument --ema_std: invalid float value: '0,15': use a decimal point: 0.15"),
        (["--config.sample.eta=0,5"], "config field 'sample.eta' must be a finite float; got '0,5': use a decimal "
         "point: 0.5; an example"),
        (["--config.sample.num_steps=10"], "unknown config field 'sample.num_steps'; did you mean "
         "'sample.num_sampler_steps'?"),
        (["--classifier=digits"], "--classifier must be the folder of a training run; there is no 'digits', and the "
         "packaged run of that name can only be the --workdir"),
        (["--autoguidance=digits", "--guidance_scale=2"], "--autoguidance must be the folder of a training run; there "
         "is no 'digits', and the packaged run of that name can only be the --workdir"),
        (["--sampler=unipc", "--churn=1"], "--churn is of --sampler=heun; got 'unipc', which does not read it"),
        (["--respacing=ddim10", "--num_sampler_steps=4"], "--respacing says which steps are visited: leave out "),
        (["--respacing=ddim0"], "--respacing='ddim0': no whole stride visits exactly 0 of 20 steps"),
        (["--num_sampler_steps=21"], "--num_sampler_steps must be in 1..20 (T); got 21"),
        (["--sampler=ddim", "--eta=-1"], "--eta must be finite and at least 0; got -1.0"),
        (["--sampler=ddim", "--eta=nan"], "--eta must be finite and at least 0; got nan"),
        (["--batch_size=3"], "--batch_size must be a multiple of 8 (8 devices); got 3"),
        (["--spacing=cubic"], "--spacing must be one of"),
        (["--config.train.seed=1"], "a field after --config. must be one of ['sample.*']; got 'train.seed'"),
        (["--num-samples=3"], "unknown flag '--num-samples'; did you mean '--num_samples'?"),
        (["--out="], "--out must be a path such as samples/new"),
        (["--out=" + "x" * 260], "--out="),
        (["--classes=3"], "--classes=3 is for a network with classes; the run has model.num_classes=0: leave it out, "
         "train a run with model.num_classes, or give a --classifier"),
        (["--guidance_scale=0.3", "--cfg_plus_plus=true", "--apg_eta=0"], "--apg_eta must be 1 with --cfg_plus_plus"),
        (["--steps=3"], "unknown flag '--steps': --num_sampler_steps=N is the number of sampler steps; --step=N is a"),
        (["--cfg=3"], "unknown flag '--cfg': --guidance_scale=S, the papers' 1 + w"),
        (["--out=new/"], "--out must be a path such as samples/new"),
        (["--out=o.gif"], "--out=o.gif: a PNG and an .npz are written; give --out=o"),
        (["--out=/dev/null/x"], "--out: the folder /dev/null cannot be written ("),
    ],
    ids=lambda value: "",
)
def test_sample(sample_main, straight_run, tmp_path, capfd, flags, message):
    argv = [f"--workdir={straight_run}", f"--out={tmp_path}/x", "--nocompilation_cache", *flags]
    assert error_of(capfd, sample_main, argv).startswith(message)


def test_sample_of_no_run(sample_main, tmp_path, capfd):
    argv = ["--out", str(tmp_path / "x"), "--nocompilation_cache"]
    for workdir, message in (
        (tmp_path, f"no checkpoint in {tmp_path}/checkpoints: train first, or give another --workdir"),
        (
            tmp_path / "absent",
            "--workdir must be the folder of a training run, or one of the package, 'digits'; there is no "
            f"'{tmp_path}/absent'",
        ),
    ):
        assert error_of(capfd, sample_main, [*argv, f"--workdir={workdir}"]) == message
    assert not (tmp_path / "absent").exists() and not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config=digits", "--workdir="], "--workdir must name a folder; got ''; for the current one give"),
        (["configs/digits.py", "--workdir=w"], "unexpected argument 'configs/digits.py'; an experiment is given as"),
        (["--workdir", "w"], "which experiment? give --config=FILE"),
        (["--config=digits", "--workdir=gs://bucket/run"], "--workdir must be a folder of this machine, or a mou"),
        (["--config=digits", "--workdir=lr=[2e-4]"], "--workdir must not have any of * ? [ in its path, since Orbax"),
        (["--config=digits", "--workdir=a*"], "--workdir must not have any of * ? [ in its path, since Orbax"),
        (["--config=digits", "--workdir=a\x1bb"], "--workdir must be printable text; got "),
        (["--config=README.md", "--workdir=w"], "no experiment 'README.md'; give a Python file that exists or one"),
    ],
)
def test_what_is_easily_forgotten(capfd, argv, message):
    assert error_of(capfd, train_command.main, argv).startswith(message)
