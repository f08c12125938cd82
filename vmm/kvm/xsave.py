"""XSAVE areas in standard format (SDM volume 1, 13.4): the initial one, and what of a guest's may be believed."""

from __future__ import annotations

import struct

AREA_SIZE = 4096
"""Bytes of KVM's buffer, struct kvm_xsave."""
_LEGACY_SIZE = 512
_FCW, _MXCSR, _HEADER = 0, 24, 512
_X87_SSE = 3


def initial() -> bytearray:
    """The state of a new process, as fpu__init_fpstate of Linux: FCW 0x37F, MXCSR 0x1F80, all registers 0."""
    area = bytearray(AREA_SIZE)
    struct.pack_into("<H", area, _FCW, 0x37F)
    struct.pack_into("<I", area, _MXCSR, 0x1F80)
    struct.pack_into("<Q", area, _HEADER, _X87_SSE)
    return area


def sanitise(area: bytes, size: int, xcr0: int, mxcsr_mask: int) -> bytearray:
    """`area` as KVM_SET_XSAVE takes it, whatever a guest has made of it.

    size: bytes that count; xcr0: components that may be there; mxcsr_mask: bits that MXCSR may have. An area of 512
    bytes is FXSAVE's and has no header. Raises ValueError for a shorter one."""
    if len(area) < _LEGACY_SIZE:
        raise ValueError(f"an XSAVE area of {len(area)} bytes is too short")
    clean = bytearray(AREA_SIZE)
    length = min(len(area), size)
    clean[:length] = area[:length]
    mxcsr = struct.unpack_from("<I", clean, _MXCSR)[0]
    struct.pack_into("<I", clean, _MXCSR, mxcsr & mxcsr_mask)
    present = struct.unpack_from("<Q", clean, _HEADER)[0] if length >= _HEADER + 8 else _X87_SSE
    # XSTATE_BV; then XCOMP_BV (compacted format) and the reserved bytes, which must be 0.
    clean[_HEADER : _HEADER + 64] = struct.pack("<Q56x", present & (xcr0 or _X87_SSE))
    return clean
