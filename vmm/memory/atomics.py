"""Atomic read-modify-write of 32-bit words in guest RAM, and the host's time-stamp counter: guest/atomics.S.

Python has neither. Guest threads change the same words from other cores with plain LOCK instructions, so nothing less
than such an instruction will do. The functions are called with the GIL held (`PYFUNCTYPE`): they take nanoseconds, and
taking the GIL again behind a busy thread could take milliseconds.

The code is put into a private anonymous page that is never writable and executable at once.

Rejected: a C extension (a compiler on the user's machine or a wheel for each Python), and libatomic through `ctypes`
(libc exports no atomics, and libatomic is not everywhere).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from typing import TYPE_CHECKING, Any

import guest

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.memory.physical import GuestRam

FUNCTIONS = 7


class Code:
    """The functions of guest/atomics.S, mapped executable for the life of the process."""

    __slots__ = ("_mapping", "add", "and_", "cmpxchg", "or_", "rdtsc", "xchg", "xor")

    def __init__(self, image: bytes) -> None:
        if len(image) < 4 * (FUNCTIONS + 1) or len(image) > mmap.PAGESIZE:
            raise ValueError(f"atomics.bin has a wrong size: {len(image)} bytes")
        count, *offsets = struct.unpack_from(f"<{FUNCTIONS + 1}I", image)
        if count != FUNCTIONS or not all(4 * FUNCTIONS < offset < len(image) for offset in offsets):
            raise ValueError("atomics.bin has a wrong table: it is not of this version")
        self._mapping = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._mapping[: len(image)] = image
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        _make_executable(start, mmap.PAGESIZE)
        binary = ctypes.PYFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32)
        ternary = ctypes.PYFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)
        cmpxchg, xchg, add, or_, and_, xor, rdtsc = (start + offset for offset in offsets)
        self.cmpxchg: Any = ternary(cmpxchg)
        self.xchg: Any = binary(xchg)
        self.add: Any = binary(add)
        self.or_: Any = binary(or_)
        self.and_: Any = binary(and_)
        self.xor: Any = binary(xor)
        self.rdtsc: Any = ctypes.PYFUNCTYPE(ctypes.c_uint64)(rdtsc)


def _make_executable(address: int, length: int) -> None:
    """mprotect(2) to read and execute: the mapping loses its write permission in the same call."""
    libc = ctypes.PyDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if libc.mprotect(address, length, mmap.PROT_READ | mmap.PROT_EXEC):
        error = ctypes.get_errno()
        raise OSError(error, f"mprotect of the monitor's own code: {os.strerror(error)}")


_code: Code | None = None


def code() -> Code:
    """The process's one copy of the functions, loaded when first asked for.

    Raises guest.NotBuilt without the built file, OSError when the host forbids executable memory.
    """
    global _code
    if _code is None:
        _code = Code(guest.built("atomics.bin"))
    return _code


def read_tsc() -> int:
    """The host's time-stamp counter, in cycles: LFENCE; RDTSC (Intel SDM volume 3, 18.17)."""
    return int(code().rdtsc())


class Atomics:
    """Atomic operations on `uint32_t` words of a machine's guest RAM; addresses are guest-physical.

    Each returns the word's value before the operation and is a full memory barrier. Operands count modulo 2^32.
    ValueError for an address that is not a multiple of 4 or not in RAM. On an accelerator whose guest code is not
    atomic itself, call them inside its `exclusive()`.
    """

    __slots__ = ("_hold", "cmpxchg_u32", "fetch_add_u32", "fetch_and_u32", "fetch_or_u32", "fetch_xor_u32", "xchg_u32")

    def __init__(self, ram: GuestRam) -> None:
        functions = code()
        self._hold = ram.view[:0]
        """Keeps the mapping at `base`, even behind ram.close()."""
        base = ram.address
        last = ram.size - 4

        # Closures: a call of one costs 0.3 us less than a method that looks up its function, base and bound.
        def cmpxchg_u32(address: int, expected: int, new: int) -> int:
            if address & 3 or not 0 <= address <= last:
                raise _bad_word(address)
            old: int = cmpxchg(base + address, expected, new)
            return old

        def operation(function: Any) -> Callable[[int, int], int]:
            def operate(address: int, operand: int) -> int:
                if address & 3 or not 0 <= address <= last:
                    raise _bad_word(address)
                old: int = function(base + address, operand)
                return old

            return operate

        cmpxchg = functions.cmpxchg
        self.cmpxchg_u32: Callable[[int, int, int], int] = cmpxchg_u32
        """(address, expected, new): store `new` if the word is `expected`."""
        self.xchg_u32 = operation(functions.xchg)
        """(address, new): store `new`."""
        self.fetch_add_u32 = operation(functions.add)
        """(address, by): add `by`."""
        self.fetch_or_u32 = operation(functions.or_)
        """(address, mask): set the bits of `mask`."""
        self.fetch_and_u32 = operation(functions.and_)
        """(address, mask): keep only the bits of `mask`."""
        self.fetch_xor_u32 = operation(functions.xor)
        """(address, mask): flip the bits of `mask`."""


def _bad_word(address: int) -> ValueError:
    return ValueError(f"{address:#x} is not the address of a 32-bit word of guest RAM")
