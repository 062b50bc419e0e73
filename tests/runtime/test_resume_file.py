"""The file that a long measurement goes on from."""

import numpy as np
import pytest

from ddpm_jax.runtime import resume_file
from ddpm_jax.runtime.resume_file import ResumeFile, fingerprint


def fill(prefix, facts, *, stop_after=4, error=KeyboardInterrupt):
    """Four parts, each a row; returns the rows that were made in this call, and the point."""
    point, made = ResumeFile(prefix, facts, {"rows": np.zeros((4, 2), np.float32)}), []
    with point:
        for row in range(point.num_done, 4):
            if len(made) == stop_after:
                raise error
            point.arrays["rows"][row] = row + 0.1
            made.append(row)
            point.advance()
    return made, point


@pytest.fixture
def prefix(tmp_path):
    return str(tmp_path / "bits")


def test_an_interrupted_measurement_goes_on(prefix, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill(prefix, {"step": 1}, stop_after=3)
    assert len(list(tmp_path.glob("bits_*.partial.npz"))) == 1
    made, point = fill(prefix, {"step": 1})
    assert made == [3]
    np.testing.assert_array_equal(point.arrays["rows"], fill(None, {})[1].arrays["rows"])
    point.finish()
    assert not list(tmp_path.iterdir())


def test_a_kill_loses_what_came_after_the_last_period(prefix, monkeypatch):
    point = ResumeFile(prefix, {}, {"rows": np.zeros(3)})
    point.arrays["rows"][0] = 7
    point.advance()  # within the period: nothing is written
    assert ResumeFile(prefix, {}, {"rows": np.zeros(3)}).num_done == 0
    monkeypatch.setattr(resume_file, "KEEP_EVERY_SECONDS", 0)
    point.arrays["rows"][1] = 8
    point.advance()
    found = ResumeFile(prefix, {}, {"rows": np.zeros(3)})
    assert found.num_done == 2
    np.testing.assert_array_equal(found.arrays["rows"], [7, 8, 0])


def test_another_setting_never_picks_it_up(prefix, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill(prefix, {"seed": 0}, stop_after=2)
    (path,) = tmp_path.iterdir()
    assert ResumeFile(prefix, {"seed": 1}, {"rows": np.zeros((4, 2), np.float32)}).num_done == 0
    # Nor where someone gave the file that name.
    other = ResumeFile(prefix, {"seed": 2}, {"rows": np.zeros((4, 2), np.float32)})
    path.rename(other._path)
    assert ResumeFile(prefix, {"seed": 2}, {"rows": np.zeros((4, 2), np.float32)}).num_done == 0


def test_a_damaged_file_is_no_start(prefix, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        fill(prefix, {}, stop_after=2)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:40])
    made, point = fill(prefix, {})
    assert made == [0, 1, 2, 3]
    err = capsys.readouterr().err
    assert "cannot be read" in err and err.count("\n") == 1


def test_nothing_is_kept_without_a_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resume_file, "KEEP_EVERY_SECONDS", 0)
    fill(None, {})[1].finish()
    assert not list(tmp_path.iterdir())


def test_fingerprints_tell_apart_what_differs():
    weights = {"a": np.zeros(3, np.float32), "b": np.ones((2, 2))}
    nearly = {"a": np.array([0, 0, 1e-30], np.float32), "b": np.ones((2, 2))}
    names = [fingerprint(*parts) for parts in (
        [weights], [nearly], [weights, "x"], [weights, "y"], [{"a": np.zeros(4, np.float32), "b": np.ones((2, 2))}],
        [{"a": np.zeros((3, 1), np.float32), "b": np.ones((2, 2))}],
    )]  # fmt: skip
    assert len(set(names)) == len(names)
    assert fingerprint({name: leaf.copy() for name, leaf in weights.items()}) == names[0]
