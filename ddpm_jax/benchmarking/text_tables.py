"""Numbers of a benchmark as text."""

from collections.abc import Sequence

_FIRST, _WIDTH = 15, 15


def aligned(cells: Sequence[str]) -> str:
    """A line of a table: the first cell left-aligned, the others right-aligned in columns of equal width."""
    return f"{cells[0]:<{_FIRST}}" + "".join(f"{cell:>{_WIDTH}}" for cell in cells[1:])


def mebibytes(num_bytes: int) -> str:
    """`num_bytes` in units of 2^20 bytes: `1,234.5`; anything above 0 is at least `0.1`."""
    return f"{max(num_bytes / 2**20, 0.1):,.1f}" if num_bytes else "0"


def counted(number: int | float) -> str:
    """A number with four digits and a metric prefix: `94.46 T`.

    Example:
      >>> counted(94_464_995_491_840), counted(12)
      ('94.46 T', '12 ')
    """
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g} {prefix}"
    return f"{number:.4g} "
