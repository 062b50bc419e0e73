"""Experiments are found, changed by typed overrides, kept as JSON, and compared."""

import importlib.machinery
import importlib.util
import math
import re
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict, config_dict

import ddpm_jax
from ddpm_jax.experiment import config_overrides, packaged_configs
from ddpm_jax.experiment.config_changes import check_same_run
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.config_json import config_from_json, config_to_json
from ddpm_jax.experiment.config_overrides import flatten
from ddpm_jax.experiment.packaged_configs import with_defaults
from ddpm_jax.runtime.errors import UserError

EXPERIMENT = """
from ml_collections import ConfigDict, config_dict

def get_config():
    config = ConfigDict()
    config.data = ConfigDict(dict(path="", flip=True))
    config.model = ConfigDict(dict(widths=(1, 2), rate=0.1, blocks=(), names=("a",)))
    config.model.scales = (1, 0.5)
    config.optim = ConfigDict(dict(learning_rate=2e-4, clip=1.0))
    config.train = ConfigDict(dict(batch_size=128, num_steps=1000, seed=0, log_every_steps=10))
    config.train.limit = config_dict.placeholder(int)
    config.train.note = None
    return config
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(EXPERIMENT)
    return str(path)


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A folder that stands for the packaged experiments, under the name that they are imported by."""
    folder = tmp_path / "packaged"
    folder.mkdir()
    (folder / "base.py").write_text(EXPERIMENT)
    (folder / "small_digits.py").write_text(
        "from ddpm_jax.configs_of_test.base import get_config as base_config\n\n"
        "def get_config():\n    config = base_config()\n    config.train.seed = 7\n    return config\n"
    )
    name = "ddpm_jax.configs_of_test"
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setattr(packaged_configs, "_PACKAGE", name)
    yield folder
    for module in [key for key in sys.modules if key.startswith(f"{name}.")]:
        del sys.modules[module]


def error_of(function, *args) -> str:
    with pytest.raises(UserError) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Finding experiments


def test_own_file_by_path(experiment, monkeypatch, tmp_path):
    assert load_config(experiment).train.batch_size == 128
    monkeypatch.chdir(tmp_path)
    assert load_config("mine.py").train.batch_size == 128
    assert load_config("./mine.py").is_locked


def test_edited_file_is_read_again(experiment, tmp_path):
    load_config(experiment)
    (tmp_path / "mine.py").write_text(EXPERIMENT.replace("seed=0", "seed=3"))  # same size, same second
    assert load_config(experiment).train.seed == 3


@pytest.mark.parametrize("name", ["small_digits", "small_digits.py", "configs/small_digits.py"])
def test_packaged_by_name_from_any_directory(packaged, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small_digits").touch()  # a file of that name, a picture perhaps, does not hide it
    assert load_config(name).train.seed == 7


def test_packaged_by_full_path(packaged):
    assert load_config(str(packaged / "small_digits.py")).train.seed == 7


def test_file_here_goes_before_packaged(packaged, monkeypatch, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "small_digits.py").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/small_digits.py").train.seed == 0
    assert load_config("small_digits").train.seed == 7


def test_configs_are_importable_without_installing(monkeypatch):
    folder = Path(ddpm_jax.__file__).parent.parent / "configs"
    if not folder.is_dir():
        pytest.skip("ddpm_jax is installed, and not imported from a checkout")
    found = importlib.util.find_spec
    name = "ddpm_jax.configs"
    for module in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(ddpm_jax, "configs", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda key: None if key == name else found(key))
    assert "digits" in packaged_configs.packaged_experiments()
    import ddpm_jax.configs as configs

    assert list(configs.__path__) == [str(folder)]
    assert ddpm_jax.configs is configs


def test_missing_packaged_experiments(monkeypatch, tmp_path):
    monkeypatch.setattr(packaged_configs, "_PACKAGE", "ddpm_jax.nowhere")
    monkeypatch.setattr(ddpm_jax, "__file__", str(tmp_path / "ddpm_jax" / "__init__.py"))
    assert error_of(load_config, "digits") == (
        f"the packaged experiments are missing: no {tmp_path / 'configs'}; install ddpm_jax again"
    )


@pytest.mark.parametrize("name", packaged_configs.packaged_experiments())
def test_packaged_experiments_load_and_survive_json(name):
    config = load_config(name)
    assert config.is_locked
    text = config_to_json(config)
    assert config_to_json(config_from_json(text)) == text


def test_unknown_experiment(packaged):
    assert error_of(load_config, "smal_digits") == (
        "no experiment 'smal_digits'; give a Python file that exists or one of ['small_digits']; "
        "did you mean 'small_digits'?"
    )


def test_mistyped_own_path_is_no_packaged_experiment(packaged):
    assert "no experiment 'mine/small_digits.py'" in error_of(load_config, "mine/small_digits.py")
    assert "no experiment '/nowhere/configs/small_digits.py'" in error_of(
        load_config, "/nowhere/configs/small_digits.py"
    )


def test_file_without_get_config(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert "has no function get_config()" in error_of(load_config, str(tmp_path / "empty.py"))


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("def get_config():\n    return dict(\n", 2, "SyntaxError: '(' was never closed"),
        ("x = 1\nimport nowhere\n", 2, "ModuleNotFoundError: No module named 'nowhere'"),
        ("def get_config():\n    return foo\n", 2, "NameError: name 'foo' is not defined"),
    ],
)
def test_a_file_that_fails_is_named_with_its_line(tmp_path, text, line, what):
    (tmp_path / "mine.py").write_text(text)
    message = error_of(load_config, str(tmp_path / "mine.py"))
    assert message == f"config file {tmp_path / 'mine.py'}, line {line}: {what}; correct the file"


def test_a_moved_field_is_named_with_its_new_name(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text(
        "from ddpm_jax.configs import base\n\ndef get_config():\n    c = base.get_config()\n"
        "    c.model.channels = 64\n    return c\n"
    )
    assert error_of(load_config, str(own)) == (
        f"config file {own}, line 5: model.channels is now unet.channels; correct the file"
    )
    own.write_text(
        "from ml_collections import ConfigDict\n\ndef get_config():\n"
        "    return ConfigDict({'model': {'channels': 64}})\n"
    )
    assert error_of(load_config, str(own)) == (
        f"config file {str(own)!r} sets 'model.channels', which is now 'unet.channels'; correct the file"
    )
    assert error_of(load_config, "digits", ["model.channels=64"]) == (
        "config field 'model.channels' is now 'unet.channels'"
    )


def test_a_moved_field_of_another_form_says_which(tmp_path):
    own, form = tmp_path / "mine.py", "a tuple such as (0.9999,)"
    own.write_text(
        "from ddpm_jax.configs import base\n\ndef get_config():\n    c = base.get_config()\n"
        "    c.optim.ema_decay = 0.99\n    return c\n"
    )
    assert error_of(load_config, str(own)) == (
        f"config file {own}, line 5: optim.ema_decay is now optim.ema_decays, {form}; correct the file"
    )
    own.write_text(own.read_text().replace("get_config()\n    c.", "get_config().unlock()\n    c."))
    assert error_of(load_config, str(own)) == (
        f"config file {str(own)!r} sets 'optim.ema_decay', which is now 'optim.ema_decays', {form}; correct the file"
    )
    assert error_of(load_config, "digits", ["optim.ema_decay=0.99"]) == (
        f"config field 'optim.ema_decay' is now 'optim.ema_decays', {form}"
    )


def test_a_saved_config_of_one_decay_has_a_tuple_of_it(tmp_path):
    config = load_config("digits", ["optim.ema_decays=0.99"])
    text = config_to_json(config)
    old = re.sub(r'"ema_decays": \[0.99\]', '"ema_decay": 0.99', text)
    assert old != text and config_from_json(old) == config
    (tmp_path / "config.json").write_text(old)
    assert load_config(str(tmp_path / "config.json")) == config
    check_same_run(config_from_json(old), config)


def test_get_config_of_another_type(tmp_path):
    (tmp_path / "dict.py").write_text("def get_config():\n    return {}\n")
    assert "must return a ConfigDict; got dict" in error_of(load_config, str(tmp_path / "dict.py"))


def test_default_that_cannot_be_kept(tmp_path):
    (tmp_path / "list.py").write_text(EXPERIMENT.replace("(1, 2)", "[1, 2]"))
    message = error_of(load_config, str(tmp_path / "list.py"))
    assert message.startswith("config field 'model.widths' must be an int")
    assert message.endswith("got list")


# Overrides


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.batch_size=64", 64),
        ("train.num_steps=1e6", 1_000_000),
        ("train.num_steps=1_000", 1000),
        ("train.seed=-1", -1),
        ("optim.learning_rate=2e-4", 2e-4),
        ("optim.clip=1", 1.0),
        ("optim.clip=inf", math.inf),
        ("data.flip=false", False),
        ("data.flip=True", True),
        ("data.flip=0", False),
        ("data.path=a=b, c", "a=b, c"),
        ("data.path=", ""),
        ("model.widths=(1,2,4)", (1, 2, 4)),
        ("model.widths=1,2,4", (1, 2, 4)),
        ("model.widths=[1, 2]", (1, 2)),
        ("model.widths=8", (8,)),
        ("model.widths=(8,)", (8,)),
        ("model.widths=()", ()),
        ("model.scales=1,2", (1.0, 2.0)),
        ("model.blocks=16,8", (16, 8)),
        ("model.names='b',c", ("b", "c")),
        ("train.limit=5", 5),
        ("train.limit=none", None),
        ("train.note=0.5", 0.5),
        ("train.note=words", "words"),
    ],
)
def test_override(experiment, override, value):
    got = config_overrides.flatten(load_config(experiment, [override]))[override.partition("=")[0]]
    assert got == value and type(got) is type(value)
    if isinstance(value, tuple):
        assert [type(item) for item in got] == [type(item) for item in value]


def test_last_override_wins(experiment):
    assert load_config(experiment, ["train.seed=1", "train.seed=2"]).train.seed == 2


def test_reference_follows(tmp_path):
    half = "    config.train.half = config.train.get_ref('batch_size') // 2\n"
    (tmp_path / "ref.py").write_text(EXPERIMENT.replace("    return", half + "    return"))
    assert load_config(str(tmp_path / "ref.py"), ["train.batch_size=64"]).train.half == 32


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.bs=1", "unknown config field 'train.bs'; did you mean 'train.batch_size'?"),
        ("train.batchsize=1", "unknown config field 'train.batchsize'; did you mean 'train.batch_size'?"),
        ("train.clip=1", "unknown config field 'train.clip'; did you mean 'optim.clip'?"),
        ("train.path=1", "unknown config field 'train.path'; did you mean 'data.path'?"),
        ("clip=1", "unknown config field 'clip'; did you mean 'optim.clip'?"),
        ("trian.batch_sise=1", "unknown config field 'trian.batch_sise'; did you mean 'train.batch_size'?"),
        ("optim.zc=1", "unknown config field 'optim.zc'; the group has ['clip', 'learning_rate']"),
        ("data.pth=1", "unknown config field 'data.pth'; did you mean 'data.path'?"),
        ("data.zzz=1", "unknown config field 'data.zzz'; the group has ['flip', 'path']"),
        ("qq.zzz=1", "unknown config field 'qq.zzz'; the groups are ['data', 'model', 'optim', 'train']"),
        ("data=1", "config field 'data' is a group; set one of its fields, such as 'data.flip'"),
        ("data.flip", "config override must look like group.field=value; got 'data.flip'"),
    ],
)
def test_bad_override_field(experiment, override, message):
    assert error_of(load_config, experiment, [override]) == message


@pytest.mark.parametrize(
    ("field", "got", "wanted", "example"),
    [
        ("train.batch_size", "6.5", "an int", "128"),
        ("train.batch_size", "inf", "an int", "128"),
        ("train.batch_size", "", "an int", "128"),
        ("train.limit", "x", "an int", "1"),
        ("optim.clip", "high", "a finite float", "1.0"),
        ("optim.clip", "nan", "a finite float", "1.0"),
        ("data.flip", "maybe", "true or false", "true"),
        ("model.widths", "1,2.5", "a tuple of ints", "1,2"),
        ("model.scales", "a", "a tuple of floats", "1,0.5"),
    ],
)
def test_bad_override_value(experiment, field, got, wanted, example):
    assert error_of(load_config, experiment, [f"{field}={got}"]) == (
        f"config field {field!r} must be {wanted}; got {got!r}; an example: --config.{field}={example}"
    )


# JSON


def test_json_round_trip(experiment):
    config = load_config(experiment, ["data.path=a\"b\\ü", "optim.clip=inf", "optim.learning_rate=0.1"])
    text = config_to_json(config)
    restored = config_from_json(text)
    assert config_overrides.flatten(restored) == config_overrides.flatten(config)
    before, after = config_overrides.flatten(config), config_overrides.flatten(restored)
    assert {field: repr(value) for field, value in after.items()} == {f: repr(v) for f, v in before.items()}
    assert config_to_json(restored) == text
    assert restored.is_locked


def test_json_is_one_field_a_line(experiment):
    assert config_to_json(load_config(experiment)).splitlines()[:4] == [
        "{", '  "data": {', '    "flip": true,', '    "path": ""'
    ]


def test_nested_and_empty_json():
    config = ConfigDict({"a": {"b": {"c": ((1, 2), (3,))}}, "e": {}})
    assert config_overrides.flatten(config_from_json(config_to_json(config))) == {"a.b.c": ((1, 2), (3,))}


@pytest.mark.parametrize(
    ("text", "part"), [("{", "the saved config is damaged"), ("[1]", "must hold an object; got list")]
)
def test_damaged_json(text, part):
    assert part in error_of(config_from_json, text)


# The same run


def test_same_run(experiment):
    saved = load_config(experiment)
    changeable = ["train.num_steps=5", "train.log_every_steps=1", "data.path=x"]
    check_same_run(saved, load_config(experiment, changeable))
    other = ["train.seed=1", "model.rate=0.2", "optim.clip=2", "train.batch_size=1"]
    assert error_of(check_same_run, saved, load_config(experiment, other)) == (
        "the workdir holds a run with another config: model.rate was 0.1 and is 0.2; "
        "optim.clip was 1.0 and is 2.0; train.batch_size was 128 and is 1; and 1 more; "
        "give the values of that run to continue it, or another workdir to start anew"
    )
    assert "train.num_steps was 1000 and is 5" in error_of(
        check_same_run, saved, load_config(experiment, ["train.num_steps=5"]), ()
    )


def test_same_run_names_a_field_of_one_side(experiment):
    saved, given = load_config(experiment), load_config(experiment)
    with given.unlocked():
        given.model.width = 64
    assert "model.width was nothing and is 64" in error_of(check_same_run, saved, given)
    assert "model.width was 64 and is nothing" in error_of(check_same_run, given, saved)


def older(config, *fields):
    """`config` as a run kept it before `fields` or groups were there."""
    config = config_from_json(config_to_json(config))
    with config.unlocked():
        for field in fields:
            group, _, name = field.partition(".")
            del (config[group] if name else config)[name or group]
    return config


def test_fields_that_a_run_is_older_than_have_their_defaults():
    config = load_config("digits", ["unet.channels=8", "eval.batch_size=7"])
    old = older(config, "unet.num_heads", "unet.time_scale", "eval")
    before = config_to_json(old)
    filled = with_defaults(old)
    assert filled.is_locked and config_to_json(old) == before
    assert (filled.unet.num_heads, filled.unet.time_scale, filled.eval.batch_size) == (1, 1.0, 256)
    assert config_overrides.flatten(filled) == config_overrides.flatten(config) | {"eval.batch_size": 256}
    assert with_defaults(config) == config


def test_a_run_older_than_a_field_goes_on_with_its_default_alone():
    config = load_config("digits")
    old = older(config, "unet.num_heads", "optim.ema_start")
    check_same_run(old, config)
    check_same_run(config, old)  # an experiment of one's own, written before the field
    assert "unet.num_heads was 1 and is 2; give" in error_of(
        check_same_run, old, load_config("digits", ["unet.num_heads=2"])
    )


def test_placeholder_survives_json():
    config = ConfigDict({"train": {"limit": config_dict.placeholder(int)}})
    assert config_from_json(config_to_json(config)).train.limit is None


def test_what_people_type_for_a_field_is_a_field():
    fields = flatten(packaged_configs.base_config())
    assert set(config_overrides._MEANT.values()) <= fields.keys()
    assert set(config_overrides._SQUARE) <= fields.keys()
