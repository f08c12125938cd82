"""Constants and structs of <linux/time.h>, <linux/timex.h> and <asm/times>, and how they are copied in and out."""

from __future__ import annotations

import errno
from struct import Struct
from typing import TYPE_CHECKING, Annotated

from devices.args import EnumSet, FlagSet
from devices.errors import SysError

if TYPE_CHECKING:
    from devices.memory.space import AddressSpace

CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID = range(4)
CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME = range(4, 8)
CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM, CLOCK_SGI_CYCLE, CLOCK_TAI = range(8, 12)
TIMER_ABSTIME = 1

NSEC_PER_SEC = 10**9
NSEC_PER_USEC = 1000
USEC_PER_SEC = 10**6
USER_HZ = 100
"""Ticks a second of clock_t, as programs see it (sysconf(_SC_CLK_TCK))."""
KTIME_MAX = (1 << 63) - 1
"""The largest time in ns that the kernel knows; longer ones count as this one."""
KTIME_SEC_MAX = KTIME_MAX // NSEC_PER_SEC

TIMESPEC = Struct("<qq")
TIMEVAL = Struct("<qq")
TIMEZONE = Struct("<ii")
TMS = Struct("<qqqq")
TIMEX_SIZE = 208

ADJ_ADJTIME = 0x8000
"""Kernel-internal: the mode is one of adjtime(3)."""
ADJ_OFFSET_SINGLESHOT = 0x0001
ADJ_OFFSET_READONLY = 0x2000

ClockId = Annotated[
    int,
    EnumSet({name: value for name, value in list(globals().items()) if name.startswith("CLOCK_")}),
]
TimerFlags = Annotated[int, FlagSet({"TIMER_ABSTIME": TIMER_ABSTIME})]


def read_timespec(memory: AddressSpace, address: int) -> int:
    """Copy in a `struct timespec`: nanoseconds. EFAULT; EINVAL for a negative or not normalized time."""
    seconds, nanoseconds = TIMESPEC.unpack(memory.read(address, 16))
    if seconds < 0 or not 0 <= nanoseconds < NSEC_PER_SEC:
        raise SysError(errno.EINVAL, "timespec out of range")
    if seconds >= KTIME_SEC_MAX:
        return KTIME_MAX
    total: int = seconds * NSEC_PER_SEC + nanoseconds
    return total


def write_timespec(memory: AddressSpace, address: int, ns: int) -> None:
    """Copy out nanoseconds as a `struct timespec`. EFAULT."""
    memory.write(address, TIMESPEC.pack(*divmod(ns, NSEC_PER_SEC)))
