"""Mirror of guest/vdso/vvar.h: the page of clock data that the monitor writes and the guest's vDSO reads."""

from ctypes import Structure, c_uint32, c_uint64

VVAR_SIZE = 4096
"""Bytes from the page to the vDSO's image, which follows it."""

VVAR_SYSCALL, VVAR_TSC = range(2)
"""Values of `mode`."""

VVAR_REALTIME, VVAR_MONOTONIC, VVAR_MONOTONIC_RAW, VVAR_BOOTTIME, VVAR_TAI, VVAR_CLOCKS = range(6)
"""Indexes of `base_ns`."""

_NSEC_PER_SEC = 10**9


class Vvar(Structure):
    """struct vvar. The writer adds 1 to `seq`, writes the rest and adds 1 again."""

    _fields_ = (
        ("seq", c_uint32),
        ("mode", c_uint32),
        ("cycle_last", c_uint64),
        ("cycle_limit", c_uint64),
        ("mult", c_uint32),
        ("shift", c_uint32),
        ("base_ns", c_uint64 * VVAR_CLOCKS),
        ("resolution_ns", c_uint32),
        ("coarse_ns", c_uint32),
    )


def scale(tsc_hz: float, seconds: float = 1.0) -> tuple[int, int, int]:
    """The most precise scale for a TSC of `tsc_hz`, for a page that is stale after `seconds`.

    Returns (mult, shift, cycle_limit) within the bound of vvar.h: cycle_limit * mult < 2^64. Raises ValueError where
    there is none.
    """
    limit = int(tsc_hz * seconds)
    for shift in range(63, -1, -1):
        mult = int((_NSEC_PER_SEC << shift) / tsc_hz)
        if mult < 1 << 32 and limit * mult < 1 << 64:
            if mult == 0:
                break
            return mult, shift, limit
    raise ValueError(f"no scale for {tsc_hz} Hz and {seconds} s")
