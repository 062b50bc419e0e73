"""Which folders a run can be written to."""

import os

from ddpm_jax.runtime.errors import UserError, arg

_PATTERN = set("*?[")  # Orbax's merge of a checkpoint's files takes its path for a pattern


def check_workdir(workdir: str | os.PathLike) -> None:
    """Raises UserError for a folder in which checkpoints could be written and not be read again.

    A path with a character of a pattern, an address such as gs://bucket/run, and a name that is not text.
    """
    workdir = os.fspath(workdir)
    if not workdir:
        raise UserError(f"{arg('workdir')} must name a folder; got '': for the current one give '.'")
    if "://" in workdir:
        raise UserError(
            f"{arg('workdir')} must be a folder of this machine, or a mounted one; got {workdir!r}: write the run to a "
            "disk and copy the folder afterwards"
        )
    path = os.path.abspath(workdir)
    found = sorted(_PATTERN & set(path))
    if found:
        raise UserError(
            f"{arg('workdir')} must not have any of * ? [ in its path, since Orbax takes them for a pattern; got "
            f"{path!r}: give another folder"
        )
    if not path.isprintable():
        raise UserError(f"{arg('workdir')} must be printable text; got {path!r}: give another folder")
