"""The x87 and SSE state as an XSAVE area (Intel SDM volume 1, 13.4 and 10.5.1: the FXSAVE image), by registers."""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, Any

from vmm.emulator import abi

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 576
"""Bytes of the legacy region and the XSAVE header: there is no AVX state."""
_MXCSR_MASK = 0xFFFF
_X87, _SSE = 1, 2
_HEADER = 512

# Offset of each register in the area, in bytes. FPTAG is handled by itself: the area has it abridged.
_CONTROL = (
    (abi.REG_FPCW, 0),
    (abi.REG_FPSW, 2),
    (abi.REG_FOP, 6),
    (abi.REG_FIP, 8),
    (abi.REG_FDP, 16),
)
_STACK = tuple((abi.REG_ST0 + n, 32 + 16 * n) for n in range(8))
_MXCSR = ((abi.REG_MXCSR, 24),)
_VECTOR = tuple((abi.REG_XMM0 + n, 160 + 16 * n) for n in range(16))
_TAG_AT, _MASK_AT = 4, 28


def _transfer(move: Callable[[Any, Any, int], None], registers: tuple[tuple[int, int], ...], area: Any) -> None:
    """Read the registers into, or write them from, their places in `area`, a ctypes array of bytes."""
    count = len(registers)
    names = (ctypes.c_int * count)(*(register for register, _ in registers))
    base = ctypes.addressof(area)
    move(names, (ctypes.c_void_p * count)(*(base + at for _, at in registers)), count)


def read(move: Callable[[Any, Any, int], None]) -> bytes:
    """The area. `move(registers, pointers, count)` reads registers of the CPU."""
    area = ctypes.create_string_buffer(SIZE)
    _transfer(move, _CONTROL + _STACK + _MXCSR + _VECTOR, area)
    tags = ctypes.c_uint16()
    move((ctypes.c_int * 1)(abi.REG_FPTAG), (ctypes.c_void_p * 1)(ctypes.addressof(tags)), 1)
    struct.pack_into("<H", area, _TAG_AT, _abridged(tags.value))
    struct.pack_into("<I", area, _MASK_AT, _MXCSR_MASK)
    struct.pack_into("<Q", area, _HEADER, _X87 | _SSE)
    return area.raw


def _abridged(tags: int) -> int:
    """One bit a register, set unless it is empty, of two bits where 3 is empty."""
    return sum(1 << n for n in range(8) if tags >> 2 * n & 3 != 3)


def write(move: Callable[[Any, Any, int], None], given: bytes) -> None:
    """Set the registers from an area of at least 512 bytes, hostile or not; a part that XSTATE_BV leaves out becomes
    initial. `move` writes registers. Raises ValueError for a shorter area."""
    if len(given) < _HEADER:
        raise ValueError(f"an FPU area has at least {_HEADER} bytes, not {len(given)}")
    parts = struct.unpack_from("<Q", given, _HEADER)[0] if len(given) >= _HEADER + 8 else _X87 | _SSE
    area = ctypes.create_string_buffer(bytes(given[:_HEADER]), SIZE)
    if not parts & _X87:
        struct.pack_into("<HHHHQQ", area, 0, 0x37F, 0, 0, 0, 0, 0)
        ctypes.memset(ctypes.addressof(area) + 32, 0, 128)
    if not parts & _SSE:
        ctypes.memset(ctypes.addressof(area) + 160, 0, 256)
    (control,) = struct.unpack_from("<H", area, 0)
    struct.pack_into("<H", area, 0, control & 0x1F7F | 0x40)
    (mxcsr,) = struct.unpack_from("<I", area, 24)
    struct.pack_into("<I", area, 24, mxcsr & _MXCSR_MASK)
    present = struct.unpack_from("<B", area, _TAG_AT)[0]
    tags = ctypes.c_uint16(sum(3 << 2 * n for n in range(8) if not present >> n & 1))
    _transfer(move, _CONTROL, area)  # FPSW first: it says which register ST0 is
    _transfer(move, _STACK + _MXCSR + _VECTOR, area)
    move((ctypes.c_int * 1)(abi.REG_FPTAG), (ctypes.c_void_p * 1)(ctypes.addressof(tags)), 1)
