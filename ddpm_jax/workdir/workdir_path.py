"""Which folders a run can be written to."""

import os

from ddpm_jax.runtime.errors import UserError, arg

_LONGEST_NAME, _LONGEST_PATH = 255, 3500  # the path of 4,096 bytes, of which files below need some
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
    if "\0" in workdir:
        raise UserError(f"{arg('workdir')} must be printable text; got {workdir!r}: give another folder")
    path = os.path.abspath(workdir)
    longest = max(len(os.fsencode(part)) for part in path.split(os.sep))
    if longest > _LONGEST_NAME or len(os.fsencode(path)) > _LONGEST_PATH:
        raise UserError(
            f"{arg('workdir')} must be a path of at most {_LONGEST_PATH} bytes, {_LONGEST_NAME} in each name; got "
            f"{len(os.fsencode(path))} and {longest}: give a shorter one"
        )
    found = sorted(_PATTERN & set(path))
    if found:
        raise UserError(
            f"{arg('workdir')} must not have any of * ? [ in its path, since Orbax takes them for a pattern; got "
            f"{path!r}: give another folder"
        )
    if not path.isprintable():
        raise UserError(f"{arg('workdir')} must be printable text; got {path!r}: give another folder")
