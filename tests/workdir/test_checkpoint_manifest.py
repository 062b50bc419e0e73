"""Digests and versions of checkpoints: each damage is named, the one before it is used, later formats refused."""

import hashlib
import importlib.metadata
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.runtime.errors import UserError
from ddpm_jax.training.train_state import init_state
from ddpm_jax.workdir import checkpoint_manifest, checkpoints
from ddpm_jax.workdir.checkpoint_format import FORMAT_VERSION, MIGRATIONS
from ddpm_jax.workdir.checkpoint_manifest import DamagedError, file_digest, verify, write_manifest
from ddpm_jax.workdir.checkpoints import Checkpoints


def small_state(step):
    params = {"kernel": step + jnp.arange(6.0).reshape(2, 3), "bias": jnp.full(4, step, jnp.float32)}
    return init_state(params, optax.adam(1e-3), ["0.9"]).replace(step=jnp.int32(step))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A workdir with the checkpoints 1, 2 and 3 of `small_state`. Copy it."""
    workdir = tmp_path_factory.mktemp("kept")
    saving = Checkpoints(str(workdir), keep=5, create=True)
    for step in (1, 2, 3):
        saving.save(small_state(step), f'{{"of": {step}}}', {"eval_loss": 1.0})
    saving.close()
    return workdir


@pytest.fixture
def workdir(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "kept")


def data_file(step):
    """The largest data file of the parameters."""
    return max((step / "params" / "d").iterdir(), key=lambda path: path.stat().st_size)


def flip_a_bit(step):
    path = data_file(step)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return f"params/d/{path.name} has a different blake2b-128 digest than when it was saved"


def truncate(step):
    path = data_file(step)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:10])
    return f"params/d/{path.name} has 10 bytes instead of {size}"


def delete(step):
    path = data_file(step)
    path.unlink()
    return f"params/d/{path.name} is missing"


def empty_orbax_manifest(step):
    path = step / "params" / "manifest.ocdbt"
    size = path.stat().st_size
    path.write_bytes(b"")
    return f"params/manifest.ocdbt has 0 bytes instead of {size}"


def change_config(step):
    path = step / "config" / "metadata"
    path.write_bytes(path.read_bytes().replace(b"of", b"or"))
    return "config/metadata has a different blake2b-128 digest than when it was saved"


def damage_manifest(step):
    (step / "manifest.json").write_text('{"algorithm": "blake2b-128", "files": {"par')
    return "manifest.json is damaged: Unterminated string"


def empty_manifest(step):
    (step / "manifest.json").write_text("{}")
    return "manifest.json is damaged: its algorithm is None, not 'blake2b-128'"


def manifest_of_nothing(step):
    (step / "manifest.json").write_text('{"algorithm": "blake2b-128", "files": {}}')
    return "manifest.json is damaged: it lists no file"


def manifest_of_huge_numbers(step):
    path = step / "manifest.json"
    found = json.loads(path.read_text())
    name = sorted(found["files"])[0]
    path.write_text(path.read_text().replace(f'"{name}": [', f'"{name}": [1e400, ', 1))
    return "manifest.json is damaged: it must list the size and the digest of "


def nested_manifest(step):
    (step / "manifest.json").write_text("[" * 100_000)
    return "manifest.json is damaged: nested too deeply"


def manifest_of_other_files(step):
    """The names of the parameters' files are changed, so that no digest is theirs."""
    path = step / "manifest.json"
    path.write_text(path.read_text().replace('"params/', '"paramq/'))
    return "manifest.json lists no file of params"


DAMAGES = [flip_a_bit, truncate, delete, empty_orbax_manifest, change_config, damage_manifest, empty_manifest,
           manifest_of_nothing, manifest_of_huge_numbers, nested_manifest, manifest_of_other_files]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_named_and_the_one_before_is_used(damage, workdir, capfd):
    folder = workdir / "checkpoints"
    what = damage(folder / "3")
    line = f"warning: the checkpoint of step 3 in {folder} cannot be read ({what}"
    reading = Checkpoints(str(workdir))
    step, params = reading.restore_params("params")
    assert step == 2 and params["kernel"].tobytes() == np.asarray(small_state(2).params["kernel"]).tobytes()
    with pytest.raises(UserError, match=re.escape(what)) as raised:
        reading.restore_params("params", 3)
    assert str(raised.value).endswith("; use another step of [1, 2, 3]")
    err = capfd.readouterr().err
    assert err.startswith(line) and err.endswith("); trying an earlier one\n") and err.count("\n") == 1
    # Training on falls back too, and puts it out of the way.
    saving = Checkpoints(str(workdir), create=True)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])),
        small_state(0),
    )
    state = saving.restore_state(abstract)
    assert jax.tree.map(np.array_equal, state, small_state(2)) == jax.tree.map(lambda x: True, state)
    assert capfd.readouterr().err.startswith(line) and saving.steps() == [1, 2]
    assert (workdir / "damaged_checkpoints" / "3").is_dir()
    saving.close()


def test_the_config_is_compared_alone(workdir, capfd):
    flip_a_bit(workdir / "checkpoints" / "3")
    assert Checkpoints(str(workdir)).restore_config() == (3, '{"of": 3}')
    change_config(workdir / "checkpoints" / "3")
    assert Checkpoints(str(workdir)).restore_config() == (2, '{"of": 2}')
    assert "config/metadata has a different" in capfd.readouterr().err


def test_one_flipped_bit_anywhere_in_any_file(workdir):
    """Every file that restoring opens is compared: none is left out of the manifest."""
    step = workdir / "checkpoints" / "3"
    items = ("params", "ema_params", "opt_state", "config", "metrics")
    listed = json.loads((step / "manifest.json").read_text())["files"]
    there = {path.relative_to(step).as_posix() for path in step.rglob("*") if path.is_file()}
    assert set(listed) == there - {"manifest.json"} and verify(step, items)
    for name in listed:
        content = (step / name).read_bytes()
        for at in {0, len(content) - 1} if content else ():
            (step / name).write_bytes(content[:at] + bytes([content[at] ^ 128]) + content[at + 1 :])
            with pytest.raises(DamagedError, match=f"^{re.escape(name)} has a different"):
                verify(step, items)
        (step / name).write_bytes(content)
    assert verify(step, items)


def test_without_a_manifest_it_is_read(workdir, capfd):
    """Saved before there were manifests, or the process ended between commit and manifest."""
    step = workdir / "checkpoints" / "3"
    (step / "manifest.json").unlink()
    reading = Checkpoints(str(workdir))
    assert reading.restore_params("params")[0] == 3 and reading.restore_config()[0] == 3
    line = f"note: the checkpoint of step 3 in {step.parent} has no manifest.json to verify it by\n"
    assert capfd.readouterr().err == line
    (step / "config" / "metadata").write_text('{"config": "{}"}')  # of format 1, which had none
    assert Checkpoints(str(workdir)).restore_params("params")[0] == 3
    assert capfd.readouterr().err == ""
    # What Orbax itself notices is found as before.
    truncate(step)
    assert Checkpoints(str(workdir)).restore_params("params")[0] == 2


def test_the_digest_is_that_of_the_standard(tmp_path):
    """`printf abc | b2sum -l 128` says the same."""
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_digest(tmp_path / "abc") == "cf4ab791c62b8d2b2109c90275287816"
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * 4096 * 3 + b"end")  # several chunks
    assert file_digest(large) == hashlib.blake2b(large.read_bytes(), digest_size=16).hexdigest()


def test_the_manifest_goes_with_its_step(tmp_path):
    """And without an eval loss the newest alone stay: not all."""
    saving = Checkpoints(str(tmp_path), keep=1, create=True)
    for step in (1, 2, 3):
        saving.save(small_state(step), "{}")
    saving.wait()
    assert [path.parent.name for path in tmp_path.rglob("manifest.json")] == ["3"]
    saving.close()


def test_what_goes_wrong_in_the_background_is_raised(tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(5, "Input/output error", str(folder))

    monkeypatch.setattr(checkpoints, "write_manifest", fail)
    for ending in ("wait", "close", "save"):
        saving = Checkpoints(str(tmp_path / ending), create=True)
        saving.save(small_state(1), "{}")
        with pytest.raises(OSError, match="Input/output error"):
            saving.save(small_state(2), "{}") if ending == "save" else getattr(saving, ending)()
        assert saving.steps() == [1]
        saving.close()


def test_an_interrupted_manifest_is_none(workdir, monkeypatch):
    step = workdir / "checkpoints" / "3"
    before = (step / "manifest.json").read_bytes()

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_manifest.os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(step)
    assert (step / "manifest.json").read_bytes() == before


# Versions


def set_version(step, **fields):
    path = step / "config" / "metadata"
    item = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in (item | fields).items() if value is not None}))
    write_manifest(step)


def test_the_version_and_the_libraries_are_recorded(kept):
    item = json.loads((kept / "checkpoints" / "3" / "config" / "metadata").read_text())
    assert item["format_version"] == FORMAT_VERSION and item["config"] == '{"of": 3}'
    assert item["written_by"]["jax"] == jax.__version__
    assert item["written_by"]["orbax-checkpoint"] == importlib.metadata.version("orbax-checkpoint")
    assert {"ddpm_jax", "flax", "optax"} < item["written_by"].keys()
    assert sorted(MIGRATIONS) == list(range(1, FORMAT_VERSION))


def test_a_later_format_is_refused(workdir):
    """In every way of reading, and not passed over for an earlier checkpoint."""
    folder = workdir / "checkpoints"
    set_version(folder / "3", format_version=FORMAT_VERSION + 1, written_by={"ddpm_jax": "7.0"})
    reading = Checkpoints(str(workdir))
    message = (
        rf"^the checkpoint of step 3 in {folder} has format {FORMAT_VERSION + 1}, written by ddpm_jax 7\.0; "
        rf"this ddpm_jax \S.* reads formats 1 to {FORMAT_VERSION}: upgrade ddpm_jax$"
    )
    for read in (
        reading.restore_config,
        lambda: reading.restore_config(3),
        lambda: reading.restore_params("params"),
        lambda: reading.restore_params("params", 3),
        lambda: reading.restore_state(small_state(0)),
    ):
        with pytest.raises(UserError, match=message):
            read()
    assert reading.restore_config(2) == (2, '{"of": 2}')


def test_without_a_version_it_is_the_first(workdir):
    set_version(workdir / "checkpoints" / "3", format_version=None, written_by=None)
    reading = Checkpoints(str(workdir))
    assert reading.restore_config() == (3, '{"of": 3}') and reading.restore_params("params")[0] == 3


@pytest.mark.parametrize("version", ["2", 0, -1, 1.5])
def test_a_version_that_is_none_is_damage(version, workdir):
    set_version(workdir / "checkpoints" / "3", format_version=version)
    with pytest.raises(UserError, match=r"step 3 .* cannot be read \(its config: its format_version is .*step of"):
        Checkpoints(str(workdir)).restore_config(3)
