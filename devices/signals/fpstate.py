"""The x87, SSE and AVX state in a signal frame: an XSAVE area in standard format with Linux's marks in and behind it.

arch/x86/kernel/fpu/signal.c; Intel SDM volume 1, sections 10.5.1 and 13.4. The size of the CPU's area says what it
holds: 576 bytes are x87 and SSE, 832 AVX too, more AVX-512 as a whole too (vmm/kvm/cpuid.py enables nothing else).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.signals.abi import (
    FP_XSTATE_MAGIC1,
    FP_XSTATE_MAGIC2,
    FPX_SW_BYTES,
    FXSAVE_SIZE,
    SW_RESERVED,
    XFEATURE_AVX512,
    XFEATURE_FP,
    XFEATURE_SSE,
    XFEATURE_YMM,
    XSAVE_HEADER_SIZE,
)

if TYPE_CHECKING:
    from devices.task.task import Task

FCW, FSW, MXCSR = 0, 2, 24
"""Where the control and status words lie in an FXSAVE area."""
ST_MM, XMM = 32, 160
"""Where the x87 and SSE registers begin in it."""
XMM_END = 416
XSTATE_BV = FXSAVE_SIZE
XCOMP_BV = XSTATE_BV + 8
MUST_BE_ZERO_END = XCOMP_BV + 16
"""XRSTOR looks at 16 bytes of the header from XCOMP_BV on, and refuses a standard area where they are not 0."""
HEADER_END = FXSAVE_SIZE + XSAVE_HEADER_SIZE
YMM_END = HEADER_END + 256

FCW_INITIAL, MXCSR_INITIAL = 0x37F, 0x1F80
MXCSR_DEFINED = 0x2_FFFF
"""MXCSR bits that some CPU has (17 is AMD's MM); a CPU masks those that it lacks."""
MAGIC2 = FP_XSTATE_MAGIC2.to_bytes(4, "little")
SIZE_OF_MARK = len(MAGIC2)


def features(size: int) -> int:
    """XSTATE_BV of all that an area of `size` bytes can hold."""
    if size < YMM_END:
        return XFEATURE_FP | XFEATURE_SSE
    return XFEATURE_FP | XFEATURE_SSE | XFEATURE_YMM | (XFEATURE_AVX512 if size > YMM_END else 0)


def initial(size: int) -> bytes:
    """The state with which a program, and each signal handler, starts."""
    area = bytearray(size)
    area[FCW : FCW + 2] = FCW_INITIAL.to_bytes(2, "little")
    area[MXCSR : MXCSR + 4] = MXCSR_INITIAL.to_bytes(4, "little")
    area[XSTATE_BV] = XFEATURE_FP | XFEATURE_SSE
    return bytes(area)


def marked(area: bytes) -> bytes:
    """An area as it stands in a frame: what is in it, and how long it is, in the bytes that the CPU leaves to software
    (save_xstate_epilog())."""
    size = len(area)
    framed = bytearray(area)
    FPX_SW_BYTES.pack_into(framed, SW_RESERVED, FP_XSTATE_MAGIC1, size + SIZE_OF_MARK, features(size), size)
    framed[XSTATE_BV] |= XFEATURE_FP | XFEATURE_SSE
    return bytes(framed + MAGIC2)


def restore_locked(task: Task, address: int) -> None:
    """Load the state that a frame has at `address`, or the initial one if that is 0.

    SysError(EFAULT) for what XRSTOR would refuse: then the state is the initial one (fpu__restore_sig()).
    """
    size = task.kernel.accelerator.fpu_size
    area = initial(size)
    try:
        if address:
            area = _read(task, address, size)
    finally:
        task.cpu.set_fpu(area)


def _read(task: Task, address: int, size: int) -> bytes:
    raw, legacy = _copy_in(task, address, size)
    if address % (16 if legacy else 64):
        raise SysError(errno.EFAULT, "fpstate is not aligned")
    if legacy:
        wanted = present = XFEATURE_FP | XFEATURE_SSE
    else:
        wanted = FPX_SW_BYTES.unpack_from(raw, SW_RESERVED)[2] & features(size)
        present = int.from_bytes(raw[XSTATE_BV:XCOMP_BV], "little")
        if present & ~features(size) or any(raw[XCOMP_BV:MUST_BE_ZERO_END]):
            raise SysError(errno.EFAULT, "bad XSAVE header")
    uses_mxcsr = wanted & (XFEATURE_SSE | XFEATURE_YMM)
    if uses_mxcsr and int.from_bytes(raw[MXCSR : MXCSR + 4], "little") & ~MXCSR_DEFINED:
        raise SysError(errno.EFAULT, "reserved bits in MXCSR")
    return _with_initial(raw[:size], wanted & present, bool(uses_mxcsr))


def _copy_in(task: Task, address: int, size: int) -> tuple[bytes, bool]:
    """The state in memory, and whether it is a legacy FXSAVE area only, for want of the marks (then padded)."""
    try:
        raw = task.memory.read(address, size + SIZE_OF_MARK)
    except SysError:
        raw = task.memory.read(address, FXSAVE_SIZE)
        if FPX_SW_BYTES.unpack_from(raw, SW_RESERVED)[0] == FP_XSTATE_MAGIC1:
            raise
    else:
        if FPX_SW_BYTES.unpack_from(raw, SW_RESERVED)[0] == FP_XSTATE_MAGIC1 and raw[size:] == MAGIC2:
            return raw, False
    return raw[:FXSAVE_SIZE].ljust(size, b"\0"), True


def _with_initial(area: bytes, present: int, mxcsr: bool) -> bytes:
    """The area with initial values where a component is not `present`, written out, so that no CPU need know how."""
    whole = XFEATURE_FP | XFEATURE_SSE
    if present & whole == whole and mxcsr:
        out = bytearray(area)
    else:
        out = bytearray(initial(len(area)))
        if present & XFEATURE_FP:
            out[:MXCSR], out[ST_MM:XMM] = area[:MXCSR], area[ST_MM:XMM]
        if present & XFEATURE_SSE:
            out[XMM:XMM_END] = area[XMM:XMM_END]
        if mxcsr:
            out[MXCSR:ST_MM] = area[MXCSR:ST_MM]
        out[HEADER_END:] = area[HEADER_END:]
    out[XSTATE_BV:HEADER_END] = (whole | present).to_bytes(XSAVE_HEADER_SIZE, "little")
    return bytes(out)
