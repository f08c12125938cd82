"""A look at the program's instructions through its page tables, where the CPU does not tell enough."""

from __future__ import annotations

from vmm.layout import PAGE_SIZE
from vmm.memory.pagetable import ADDRESS, LARGE, PRESENT

_MAX_LENGTH = 15
"""Of an x86 instruction, in bytes."""
_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf2\xf3") | frozenset(range(0x40, 0x50))
_INT = 0xCD


def _translate(words: memoryview, root: int, va: int) -> int:
    """Guest-physical address of `va`; -1 where nothing is mapped."""
    entry = root
    for shift in (39, 30, 21, 12):
        slot = ((entry & ADDRESS) >> 3) + (va >> shift & 511)
        entry = words[slot] if slot < len(words) else 0
        if not entry & PRESENT:
            return -1
        if entry & LARGE and shift == 21:
            break
    return entry & ADDRESS & -(1 << shift) | va & (1 << shift) - 1


def _fetch(words: memoryview, view: memoryview, root: int, va: int) -> bytes:
    """The bytes at `va` that an instruction there can have, as far as they are mapped."""
    code = b""
    while len(code) < _MAX_LENGTH:
        at = va + len(code)
        pa = _translate(words, root, at)
        if not 0 <= pa < len(view):
            break
        code += view[pa : pa + min(_MAX_LENGTH - len(code), PAGE_SIZE - at % PAGE_SIZE)]
    return code


def interrupt_number(words: memoryview, view: memoryview, root: int, rip: int) -> int:
    """`n` if the instruction at `rip` is `int n`, else -1. `words` and `view` are guest RAM, `root` is CR3."""
    code = _fetch(words, view, root, rip).lstrip(bytes(_PREFIXES))
    return code[1] if len(code) > 1 and code[0] == _INT else -1
