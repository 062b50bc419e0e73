"""JSON from files of any content: a value, or a ValueError of one line."""

import os

import pytest

from ddpm_jax.runtime import json_files
from ddpm_jax.runtime.json_files import is_count, parse_json, read_json

FAULTS = {
    "nothing": (b"", "Expecting value"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "deep objects": (b'{"a":' * 100_000, "nested too deeply"),
    "not UTF-8": (b'{"a": "\x80"}', "not UTF-8 at byte 7"),
    "digits": (b"1" * 5_000, "Exceeds the limit"),
    "kind": (b"[]", "must hold an object; got list"),
    "text": (b"{'a': 1}", "Expecting property name"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_line(name, tmp_path):
    text, message = FAULTS[name]
    path = tmp_path / "x.json"
    path.write_bytes(text)
    for read, given in ((parse_json, text), (read_json, path)):
        with pytest.raises(ValueError, match=message) as error:
            read(given, dict)
        assert "\n" not in str(error.value)


def test_files_that_are_none(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="not a regular file"):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")
    monkeypatch.setattr(json_files, "MAX_BYTES", 10)
    (tmp_path / "large").write_text(" " * 11 + "1")
    with pytest.raises(ValueError, match="12 bytes, more than"):
        json_files.read_limited(tmp_path / "large", json_files.MAX_BYTES)


def test_values_and_counts():
    assert parse_json('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    for value, known in ((0, True), (7, True), (-1, False), (True, False), (1.0, False), ("1", False), (2**60, False)):
        assert is_count(value) == known
    assert not is_count(0, least=1) and not is_count(float("inf"))
