"""The commands take ml_collections' syntax in any order, and answer mistakes in one line with exit code 2."""

import errno

import jax
import pytest

from ddpm_jax.experiment.config_flags import ConfigParser, OverridesParser, split_config_flags
from ddpm_jax.runtime.command_line import CommandParser, run
from ddpm_jax.runtime.compilation import enable_compilation_cache
from ddpm_jax.runtime.errors import UserError, out_of_memory

EXPERIMENT = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.data = ConfigDict(dict(path="", flip=True))
    config.train = ConfigDict(dict(batch_size=128, seed=0))
    return config.lock()
"""
CACHE_OPTIONS = ("jax_compilation_cache_dir", "jax_enable_compilation_cache",
                 "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def keep_jax_config(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = {name: getattr(jax.config, name) for name in CACHE_OPTIONS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(EXPERIMENT)
    return str(path)


def train_parser(takes_config=True):
    example = "python -m ddpm_jax.train --config=digits --workdir=W"
    parser = (ConfigParser if takes_config else OverridesParser)("train", "Trains.", example)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the folder of the run")
    parser.add_argument("--num_samples", type=int, default=64, metavar="N", help="how many")
    parser.add_argument("--scale", type=float, metavar="S", help="a number")
    return parser


def outcome(capsys, argv, takes_config=True):
    """Exit code, the lines on stderr, and the args that the command got."""
    got = []
    code = run(got.append, train_parser(takes_config), argv)
    return code, capsys.readouterr().err.splitlines(), got[0] if got else None


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--config=f.py"], ("f.py", [], [])),
        (["--config", "f.py"], ("f.py", [], [])),
        (["-config=f.py"], ("f.py", [], [])),
        (["--config=a", "--config=b"], ("b", [], [])),
        (["--config.a.b=1=2", "--workdir=W", "--config=f"], ("f", ["a.b=1=2"], ["--workdir=W"])),
        (["--config.a.b", "-1", "--workdir", "W"], (None, ["a.b=-1"], ["--workdir", "W"])),
        (["--config.a.b", "--config.a.c"], (None, ["a.b=true", "a.c=true"], [])),
        (["--noconfig.a.b", "x"], (None, ["a.b=false"], ["x"])),
        (["--config.a.b="], (None, ["a.b="], [])),
        (["--noconfig", "--configs=x"], (None, [], ["--noconfig", "--configs=x"])),
        (["--noconfig.a=1"], (None, [], ["--noconfig.a=1"])),
        (["x", "--", "--config=f"], (None, [], ["x", "--", "--config=f"])),
    ],
)
def test_split_config_flags(argv, expected):
    assert split_config_flags(argv) == expected


def test_config_needs_a_value():
    for argv in (["--config"], ["--config="], ["--config", "--workdir=W"]):
        with pytest.raises(UserError, match="^--config needs a value: a config file or the name of"):
            split_config_flags(argv)


def test_run_passes_flags_and_config(experiment, capsys):
    argv = ["--config.train.batch_size=64", "--workdir", "W", "--noconfig.data.flip"]
    code, lines, args = outcome(capsys, [*argv, f"--config={experiment}"])
    assert (code, lines) == (0, [])
    assert (args.workdir, args.num_samples) == ("W", 64)
    assert (args.config.train.batch_size, args.config.data.flip) == (64, False)


def test_run_reads_the_process_arguments(experiment, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py", f"--config={experiment}", "--workdir=W"])
    assert outcome(capsys, None)[2].workdir == "W"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--config.train.bs=1", "--workdir=W"],
         "error: unknown config field 'train.bs'; did you mean 'train.batch_size'?"),
        (["--workdr=W"], "error: unknown flag '--workdr'; did you mean '--workdir'?"),
        (["--workdir=W", "--num-samples=1"],
         "error: unknown flag '--num-samples'; did you mean '--num_samples'?"),
        (["--workdir=W", "--batch_size=1"],
         "error: unknown flag '--batch_size'; did you mean '--config.train.batch_size'?"),
        (["--workdir=W", "--train.seed=1"],
         "error: unknown flag '--train.seed'; did you mean '--config.train.seed'?"),
        (["--workdir=W", "--zzz"], "error: unknown flag '--zzz'; see python -m ddpm_jax.train --help"),
        (["--workdir=W", "zzz"], "error: unexpected argument 'zzz'; see python -m ddpm_jax.train --help"),
        ([], "error: the following arguments are required: --workdir; see python -m ddpm_jax.train --help"),
        (["--workdir=W", "--num_samples=x"],
         "error: argument --num_samples: invalid int value: 'x'; see python -m ddpm_jax.train --help"),
        (["--workdir=W", "--scale=-1,5"],
         "error: argument --scale: invalid float value: '-1,5': use a decimal point: -1.5; see python -m "
         "ddpm_jax.train --help"),
        (["--workdir=W", "--scale=1,5,2"],
         "error: argument --scale: invalid float value: '1,5,2'; see python -m ddpm_jax.train --help"),
    ],
)
def test_mistakes_are_one_line(experiment, capsys, argv, line):
    assert outcome(capsys, [f"--config={experiment}", *argv]) == (2, [line], None)


def test_missing_config(capsys):
    code, lines, _ = outcome(capsys, ["--workdir=W"])
    assert code == 2 and len(lines) == 1
    assert lines[0].startswith("error: which experiment? give --config=FILE")


def test_config_where_none_is_taken(capsys):
    code, lines, _ = outcome(capsys, ["--workdir=W", "--config=digits"], takes_config=False)
    assert code == 2 and len(lines) == 1 and "this command takes no --config=FILE" in lines[0]
    code, _, args = outcome(capsys, ["--workdir=W", "--config.a.b=1", "--noconfig.a.c"], takes_config=False)
    assert code == 0 and args.overrides == ["a.b=1", "a.c=false"]


def failing(error):
    def main(args):
        raise error

    return main


def test_errors_of_the_command(capsys):
    parser, argv = train_parser(takes_config=False), ["--workdir=W"]
    assert run(failing(UserError("first\nsecond")), parser, argv) == 2
    assert capsys.readouterr().err == "error: first second\n"
    assert run(failing(KeyboardInterrupt()), parser, argv) == 130
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(ZeroDivisionError):
        run(failing(ZeroDivisionError()), parser, argv)
    assert run(lambda args: 3, parser, argv) == 3


def test_a_device_out_of_memory_is_one_line_with_remedies(capsys):
    """What JAX itself raises where there is no room, here for 4 TiB; any other of its errors keeps its traceback."""
    parser, argv = train_parser(takes_config=False), ["--workdir=W"]
    assert run(lambda args: jax.numpy.zeros(2**40, "float32").block_until_ready(), parser, argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: the device is out of memory: Out of memory allocating 4398046511104 bytes;")
    assert "train.grad_accum_steps" in err and len(err.splitlines()) == 1
    with pytest.raises(RuntimeError, match="INTERNAL"):
        run(failing(jax.errors.JaxRuntimeError("INTERNAL: a bug")), parser, argv)


def test_what_a_compiler_says_of_a_program_that_is_too_large():
    said = "RESOURCE_EXHAUSTED: E1: Oom: Ran out of memory on HBM, 79G exceeds 15G. HLO module: jit_f.\nSee https"
    assert out_of_memory(RuntimeError(said)) == "Ran out of memory on HBM, 79G exceeds 15G"
    assert out_of_memory(RuntimeError("INTERNAL: RESOURCE_EXHAUSTED")) is None


def test_help(capsys):
    assert run(failing(AssertionError()), train_parser(), ["--help"]) == 0
    shown = capsys.readouterr().out
    for part in ("Trains.", "--workdir DIR", "--config FILE", "--config.train.batch_size=64",
                 "--nocompilation_cache", "example:\n  python -m ddpm_jax.train --config=digits --workdir=W"):
        assert part in shown


# The compilation cache


def test_cache_is_on_by_default(tmp_path, capsys):
    outcome(capsys, ["--workdir=W"], takes_config=False)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache" / "ddpm_jax" / "xla")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    assert list((tmp_path / "cache" / "ddpm_jax" / "xla").iterdir()) == []


def test_cache_turned_off(tmp_path, capsys):
    outcome(capsys, ["--workdir=W", "--nocompilation_cache"], takes_config=False)
    assert not jax.config.jax_enable_compilation_cache and not (tmp_path / "cache").exists()


def test_own_cache_folder_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
    before = jax.config.jax_compilation_cache_dir
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before and not (tmp_path / "cache").exists()


def test_cache_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "cache").write_text("a file")
    before = jax.config.jax_compilation_cache_dir
    enable_compilation_cache()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("warning: no compilation cache, because ")
    assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENAMETOOLONG, "Too long", "a" * 5000), f"'{'a' * 299} cannot be used: Too long"),
        (FileExistsError(errno.EEXIST, "File exists", "/etc/passwd"), "'/etc/passwd' cannot be used: File exists"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "the current folder cannot be used: No such file"),
    ],
)
def test_a_file_that_the_system_refuses_is_one_line(error, line, capsys):
    def main(args):
        raise error

    assert run(main, CommandParser("sample", "Tests.", "none", compiles=False), []) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_other_errors_of_the_system_are_bugs():
    def main(args):
        raise OSError(errno.EBADF, "Bad file descriptor")

    with pytest.raises(OSError, match="Bad file"):
        run(main, CommandParser("sample", "Tests.", "none", compiles=False), [])
