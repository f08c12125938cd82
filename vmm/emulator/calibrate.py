"""Finding out where an engine keeps what Unicorn has no function for: by trying, not by knowing.

* Fields of a saved context (`Offsets`), from exceptions whose values for them are known.
* `no_exit_request`, a flag of the engine. Without it, translated code looks after every load and store whether it is
  to stop, and goes back to the beginning of the instruction if so: a stop that another thread asks for after the store
  of a read-modify-write instruction makes it happen twice (a lock would be found taken by the one who took it). With
  it, code looks at the beginning of each run of instructions only, and is 2 to 4 times as fast where it uses memory.
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING

from vmm.emulator import abi, ring3
from vmm.emulator.abi import EmulatorUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm.emulator.ring3 import Pages
    from vmm.emulator.unicorn import Unicorn

_LOAD, _STORE, _JUMP, _INT14, _DIVIDE, _TWICE = (
    bytes.fromhex(code)
    for code in (
        "8a00",  # mov (%rax), %al
        "8800",  # mov %al, (%rax)
        "ffe0",  # jmp *%rax
        "cd0e",  # int $14
        "31c9 f7f1",  # xor %ecx, %ecx; div %ecx
        "0fa2 ff07 ff07",  # cpuid; incl (%rdi); incl (%rdi)
    )
)
_LOOKED_AT = 4096
"""Bytes of uc_struct, which is longer than 12 KiB (64 jump buffers), that are searched for the flag."""


class Offsets:
    """Where a saved context holds 32-bit fields, in bytes from its beginning.

    error: the last exception's error code; software: 1 if an INT instruction raised it; previous: the exception "in
    flight" (-1: none), which makes the next one a double fault. Unicorn never clears it.
    """

    __slots__ = ("error", "previous", "software")

    def __init__(self, error: int, previous: int, software: int) -> None:
        self.error = error
        self.previous = previous
        self.software = software


class _Prober:
    """Runs code in ring 3 of the monitor's address space and looks at the context that it leaves."""

    def __init__(self, cpu: Unicorn, pages: Pages, vector: Callable[[], int]) -> None:
        self._cpu = cpu
        self._pages = pages
        self._vector = vector
        self._clean = cpu.new_context()
        self._after = cpu.new_context()
        cpu.save_context(self._clean)

    def __call__(self, code: bytes, expected: int, rax: int) -> bytes:
        """The context after `code`, which must raise the exception `expected` (-1: end with SYSCALL)."""
        self._cpu.write(abi.REG_RAX, rax)
        self._pages.run(self._cpu, code)
        vector = self._vector()
        if vector != expected:
            raise EmulatorUnavailable(f"Unicorn raises exception {vector} for {code.hex()}, not {expected}")
        self._cpu.save_context(self._after)
        data = ctypes.string_at(self._after, self._cpu.context_size)
        self._cpu.restore_context(self._clean)
        return data

    def close(self) -> None:
        self._cpu.free_context(self._clean)
        self._cpu.free_context(self._after)


def context_offsets(cpu: Unicorn, pages: Pages, vector: Callable[[], int]) -> Offsets:
    """The fields' places in a context. `vector` gives, and forgets, the number of the last exception, -1 for none.

    Raises EmulatorUnavailable if they cannot be told from others."""
    prober = _Prober(cpu, pages, vector)
    seen = []
    known = (
        # code, RAX, vector; error, software, previous
        (b"", 0, -1, 0, 0, -1),
        (_LOAD, ring3.ABSENT, 14, 4, 0, 14),
        (_STORE, ring3.ABSENT, 14, 6, 0, 14),
        (_JUMP, ring3.ABSENT, 14, 0x14, 0, 14),
        (_STORE, ring3.READ_ONLY, 14, 7, 0, 14),
        (_JUMP, ring3.NO_EXECUTE, 14, 0x15, 0, 14),
        (_INT14, 0, 14, 0, 1, -1),
        (_DIVIDE, 0, 0, 0, 0, 0),
        (_INT14, 0, 14, 0, 1, -1),
    )
    try:
        for code, rax, number, *_ in known:
            seen.append(prober(code, number, rax))
    finally:
        prober.close()
    return Offsets(
        _only("error code", seen[1:], [case[3] for case in known[1:]]),
        _only("previous exception", seen, [case[5] for case in known]),
        _only("software interrupt", seen[1:], [case[4] for case in known[1:]]),
    )


def _only(what: str, contexts: list[bytes], values: list[int]) -> int:
    """The one 32-bit aligned place that held these values."""
    words = [value.to_bytes(4, "little", signed=True) for value in values]
    places = [
        at
        for at in _aligned(contexts[-1], words[-1])
        if all(context[at : at + 4] == word for context, word in zip(contexts, words, strict=True))
    ]
    if len(places) != 1:
        raise EmulatorUnavailable(f"this Unicorn keeps its {what} in an unknown place ({len(places)} candidates)")
    return places[0]


def _aligned(data: bytes, word: bytes) -> Iterator[int]:
    at = data.find(word)
    while at >= 0:
        if at % 4 == 0:
            yield at
        at = data.find(word, at + 1)


_flag: int | None = None
"""Offset of no_exit_request in uc_struct, once it has proved right; -1 where there is no need of it."""


def stop_between_instructions(cpu: Unicorn, pages: Pages) -> None:
    """See that a stop never comes within an instruction. CPUID's hook must stop while no CPU runs.

    Raises EmulatorUnavailable where that is not to be had."""
    global _flag
    if _flag is None:
        _flag = _find_flag(cpu, pages)
    elif _flag >= 0:
        _set_flag(cpu, _flag, 1)
        cpu.drop_code()


def _find_flag(cpu: Unicorn, pages: Pages) -> int:
    if _stops_late(cpu, pages):
        return -1
    for at in _candidates(cpu):
        _set_flag(cpu, at, 1)
        if _stops_late(cpu, pages):
            return at
        _set_flag(cpu, at, 0)
    raise EmulatorUnavailable("this Unicorn cannot be made to stop between instructions only; 2.1.4 can")


def _set_flag(cpu: Unicorn, at: int, value: int) -> None:
    ctypes.c_uint8.from_address((cpu.handle.value or 0) + at).value = value


def _candidates(cpu: Unicorn) -> Iterator[int]:
    """Where uc_struct has: context_content (1), cpu_context_size, next_pc, hook_insert (0), first_tb, the flag (0),
    init_done (1)."""
    data = ctypes.string_at(cpu.handle, _LOOKED_AT)
    for at in range(0, _LOOKED_AT - 32, 4):
        content, size = struct.unpack_from("<II", data, at)
        if content == 1 and 0 < cpu.context_size - size <= 128:
            flags = (at + 8 + 7 & -8) + 8
            if data[flags] == 0 and data[flags + 1] <= 1 and data[flags + 2 : flags + 4] == b"\0\1":
                yield flags + 2


def _stops_late(cpu: Unicorn, pages: Pages) -> bool:
    """Does code that CPUID's hook stops go on past loads and stores to the end of the run, here SYSCALL?"""
    pages.counter.value = 0
    cpu.write(abi.REG_RDI, ring3.COUNTER)
    pages.run(cpu, _TWICE)
    done = pages.counter.value, cpu.read(abi.REG_RIP) - ring3.CODE
    return done == (2, len(_TWICE) + 2)
