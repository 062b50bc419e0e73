"""Downloads and prepares a TFDS data set, or says at once why that is not possible here."""

import importlib.util
import os
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

from ddpm_jax.runtime.errors import UserError, arg

_ORIGINALS = ("mnist", "fashion_mnist", "cifar10")
_PROBE_SECONDS = 3.0


def prepare(builder, *, name: str, data_dir: str):
    """The builder of `name`, after TFDS has downloaded it and converted it to array_record files under data_dir.

    Args:
        builder: a TFDS builder whose `is_prepared()` is False.
        name, data_dir: as in `make_tfds`.

    Raises:
        UserError: at once if TensorFlow is missing or the server of the files does not answer; later if TFDS
            fails.
    """
    here = f"{arg('name')} {name!r} is not prepared in {str(builder.data_path)!r}"
    remedies = [f"prepare it on another machine with file_format='array_record' and set {arg('data_dir')}"]
    if builder.name in _ORIGINALS:
        remedies.append(f"put the original files into a folder and set {arg('path=DIR')}")
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"{here}, and preparing needs TensorFlow; " + ", or ".join(["pip install -e '.[tfds-prepare]'", *remedies])
        )
    host = _download_host(builder)
    if host and not _reachable(*host):
        raise UserError(f"{here}, and {host[0]} does not answer; " + ", or ".join(["check the network", *remedies]))
    import tensorflow_datasets as tfds

    try:
        # The default format, tfrecord, has no random access.
        builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # a missing manual download, a wrong checksum, no disk space, ...
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{here}, and preparing it failed ({reason}); {', or '.join(remedies)}") from error
    return builder


def _download_host(builder) -> tuple[str, int] | None:
    """Host and port of the data set's first file; None if possibly nothing has to be downloaded."""
    downloads = Path(os.path.expanduser(builder._data_dir_root)) / "downloads"
    if downloads.is_dir() and any(downloads.iterdir()):
        return None  # files of an earlier attempt, or placed in downloads/manual by hand
    for url in builder.url_infos or {}:
        parts = urlsplit(url)
        if parts.hostname:
            return parts.hostname, parts.port or (80 if parts.scheme == "http" else 443)
    return None


def _reachable(host: str, port: int) -> bool:
    """Whether a connection opens within the limit. In a thread, because name resolution has no time-out."""
    answers = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_PROBE_SECONDS).close()
            answers.append(True)
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return bool(answers)
