"""Bounds of a pickle, found before it is loaded: its size, its opcodes, and how deep and wide its tuples unfold.

Python hashes the key of a dict with all that a tuple in it contains: a deep nest overflows the stack of C, and one that
refers to itself twice per level takes 2^depth steps, from a file of some kilobytes.
"""

import io
import pickle
import pickletools

MAX_BYTES = 8 * 2**20  # of the pickle alone, without storages: that of 10,000 tensors has some 1 MB
MAX_DEPTH, MAX_UNFOLDED = 100, 10**6  # of tuples in tuples

# For these, Python allocates memory before it checks that the file has the data; torch.save writes none of them.
_REFUSED = {"BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER", "EXT1", "EXT2", "EXT4", "INST", "OBJ"}
_GET, _PUT = {"GET", "BINGET", "LONG_BINGET"}, {"PUT", "BINPUT", "LONG_BINPUT"}
_EXTENDS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}  # change what is on the stack
_UNHASHABLE = {"LIST", "DICT"}  # a tuple with one of them is none either
_MARK = object()
_LEAF = (0, 1)  # (depth, number of objects when unfolded)


def check_pickle(file: io.BufferedIOBase, size: int) -> None:
    """Reads one pickle from `file`, without loading it, up to its end.

    Args:
      size: bytes of the whole file.

    Raises:
      pickle.UnpicklingError: it is beyond a bound, or has an opcode that torch.save does not write.
    """
    start = file.tell()
    stack: list = []
    memo: dict[int, tuple[int, int]] = {}
    for opcode, argument, position in pickletools.genops(file):
        name = opcode.name
        # Python allocates the memo by its largest index.
        if name in _REFUSED or (name in _PUT and argument > size):
            raise pickle.UnpicklingError(f"the opcode {name}, which torch.save does not write")
        if (position or 0) - start > MAX_BYTES:
            raise pickle.UnpicklingError(f"its pickle has more than {MAX_BYTES} bytes")
        _follow(name, opcode, argument, stack, memo)


def _follow(name: str, opcode: pickletools.OpcodeInfo, argument: object, stack: list, memo: dict) -> None:
    """What an opcode does to the stack, in depths and sizes."""
    if name in _GET:
        stack.append(memo.get(argument, _LEAF))
    elif name in _PUT or name == "MEMOIZE":
        if stack:
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "DUP":
        stack += stack[-1:]
    else:
        taken = _taken(opcode, stack)
        if name in _EXTENDS:
            stack += taken[:1]
        elif name in _UNHASHABLE:
            stack.append(_LEAF)
        else:
            stack += [_combined(taken) for _ in opcode.stack_after]


def _taken(opcode: pickletools.OpcodeInfo, stack: list) -> list:
    """Removes what the opcode takes from the stack, and returns it without the mark."""
    before = opcode.stack_before
    if pickletools.markobject not in before:
        count = len(before)
        taken = stack[len(stack) - count :] if count else []
        del stack[len(stack) - count :]
        return [item for item in taken if item is not _MARK]
    at = len(stack) - 1
    while at >= 0 and stack[at] is not _MARK:
        at -= 1
    first = max(at - before.index(pickletools.markobject), 0)  # what is below the mark, such as the list to extend
    taken = stack[first:]
    del stack[first:]
    return [item for item in taken if item is not _MARK]


def _combined(parts: list) -> tuple[int, int]:
    if not parts:
        return _LEAF
    depth, unfolded = 1 + max(part[0] for part in parts), 1 + sum(part[1] for part in parts)
    if depth > MAX_DEPTH or unfolded > MAX_UNFOLDED:
        raise pickle.UnpicklingError("its objects are nested too deeply, or refer to each other too often")
    return depth, unfolded
