"""prctl: settings of one task or its process (man 2 prctl, kernel/sys.c, cap_task_prctl() in security/commoncap.c).

Options that are not in the table are EINVAL, as for a kernel without the feature: seccomp, speculation control,
naming of anonymous memory, and those of other architectures.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Annotated

from devices.args import EnumSet, ULong
from devices.bus import syscall
from devices.errors import SysError
from devices.task.capabilities import (
    CAP_SETPCAP,
    SECURE_ALL_BITS,
    SECURE_ALL_LOCKS,
    SECURE_KEEP_CAPS,
    SECURE_KEEP_CAPS_LOCKED,
    SECURE_NO_CAP_AMBIENT_RAISE,
)
from devices.task.identity import commit
from devices.task.process import CAP_LAST

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.task.process import Credentials
    from devices.task.task import Task

    Option = Callable[[Task, int, int, int, int], int]

PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE = range(1, 5)
PR_GET_KEEPCAPS, PR_SET_KEEPCAPS = 7, 8
PR_GET_TIMING, PR_SET_TIMING, PR_SET_NAME, PR_GET_NAME = range(13, 17)
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_GET_TSC, PR_SET_TSC = range(23, 27)
PR_GET_SECUREBITS, PR_SET_SECUREBITS, PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = range(27, 31)
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = range(36, 40)
PR_GET_TID_ADDRESS, PR_SET_THP_DISABLE, PR_GET_THP_DISABLE = range(40, 43)
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_IS_SET, PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_LOWER, PR_CAP_AMBIENT_CLEAR_ALL = range(1, 5)
PR_TIMING_STATISTICAL = 0
PR_TSC_ENABLE = 1

SIGNALS = 64
COMM_LEN = 15
"""Bytes of a task's name, without its NUL."""

PrctlOption = Annotated[
    int,
    EnumSet(
        {
            name: value
            for name, value in list(globals().items())
            if name.startswith("PR_") and not name.startswith(("PR_CAP_AMBIENT_", "PR_TIMING", "PR_TSC"))
        }
    ),
]


@syscall("prctl")
def prctl(task: Task, option: PrctlOption, arg2: ULong, arg3: ULong, arg4: ULong, arg5: ULong) -> int:
    """man 2 prctl."""
    served = OPTIONS.get(option)
    if served is None:
        raise SysError(errno.EINVAL, "unknown option")
    return served(task, arg2, arg3, arg4, arg5)


def _require(condition: bool, number: int = errno.EINVAL) -> None:
    if not condition:
        raise SysError(number)


# The task


def _set_pdeathsig(task: Task, signal: int, *_: int) -> int:
    _require(signal <= SIGNALS)
    task.pdeath_signal = signal
    return 0


def _get_pdeathsig(task: Task, address: int, *_: int) -> int:
    task.memory.write_u32(address, task.pdeath_signal)
    return 0


def _set_name(task: Task, address: int, *_: int) -> int:
    raw = task.memory.read_partial(address, COMM_LEN)
    name, nul, _rest = raw.partition(b"\0")
    _require(bool(nul) or len(raw) == COMM_LEN, errno.EFAULT)
    task.comm = name
    return 0


def _get_name(task: Task, address: int, *_: int) -> int:
    task.memory.write(address, task.comm.ljust(COMM_LEN + 1, b"\0"))
    return 0


def _set_timerslack(task: Task, ns: int, *_: int) -> int:
    task.timer_slack_ns = ns or task.default_timer_slack_ns
    return 0


def _get_timerslack(task: Task, *_: int) -> int:
    return task.timer_slack_ns


def _set_timing(task: Task, mode: int, *_: int) -> int:
    _require(mode == PR_TIMING_STATISTICAL)
    return 0


def _get_timing(task: Task, *_: int) -> int:
    return PR_TIMING_STATISTICAL


def _set_tsc(task: Task, mode: int, *_: int) -> int:
    """RDTSC cannot be taken from a program here (PR_TSC_SIGSEGV)."""
    _require(mode & 0xFFFF_FFFF == PR_TSC_ENABLE)
    return 0


def _get_tsc(task: Task, address: int, *_: int) -> int:
    task.memory.write_u32(address, PR_TSC_ENABLE)
    return 0


def _get_tid_address(task: Task, address: int, *_: int) -> int:
    task.memory.write_u64(address, task.clear_child_tid)
    return 0


def _set_no_new_privs(task: Task, value: int, *rest: int) -> int:
    _require(value == 1 and not any(rest))
    task.no_new_privs = True
    return 0


def _get_no_new_privs(task: Task, *rest: int) -> int:
    _require(not any(rest))
    return int(task.no_new_privs)


# The process


def _set_dumpable(task: Task, value: int, *_: int) -> int:
    _require(value in (0, 1))
    task.process.dumpable = value
    return 0


def _get_dumpable(task: Task, *_: int) -> int:
    return task.process.dumpable


def _set_child_subreaper(task: Task, value: int, *_: int) -> int:
    task.process.child_subreaper = bool(value)
    return 0


def _get_child_subreaper(task: Task, address: int, *_: int) -> int:
    task.memory.write_u32(address, int(task.process.child_subreaper))
    return 0


def _set_thp_disable(task: Task, value: int, *rest: int) -> int:
    _require(not any(rest))
    task.process.thp_disable = bool(value)
    return 0


def _get_thp_disable(task: Task, *rest: int) -> int:
    _require(not any(rest))
    return int(task.process.thp_disable)


# Capabilities


def _changed(task: Task) -> Credentials:
    """A copy of the task's credentials, to be changed and committed."""
    return task.credentials.copy()


def _capbset_read(task: Task, number: int, *_: int) -> int:
    _require(number <= CAP_LAST)
    return task.credentials.bounding >> number & 1


def _capbset_drop(task: Task, number: int, *_: int) -> int:
    _require(task.credentials.capable(CAP_SETPCAP), errno.EPERM)
    _require(number <= CAP_LAST)
    new = _changed(task)
    new.bounding &= ~(1 << number)
    return commit(task, new)


def _set_securebits(task: Task, bits: int, *_: int) -> int:
    now = task.credentials.securebits
    locks = now & SECURE_ALL_LOCKS
    _require(
        not locks >> 1 & (now ^ bits)  # no change of a locked bit
        and not locks & ~bits  # no unlocking
        and not bits & ~(SECURE_ALL_LOCKS | SECURE_ALL_BITS)
        and task.credentials.capable(CAP_SETPCAP),
        errno.EPERM,
    )
    new = _changed(task)
    new.securebits = bits
    return commit(task, new)


def _get_securebits(task: Task, *_: int) -> int:
    return task.credentials.securebits


def _set_keepcaps(task: Task, value: int, *_: int) -> int:
    _require(value in (0, 1))
    _require(not task.credentials.securebits & SECURE_KEEP_CAPS_LOCKED, errno.EPERM)
    new = _changed(task)
    new.securebits = new.securebits & ~SECURE_KEEP_CAPS | (SECURE_KEEP_CAPS if value else 0)
    return commit(task, new)


def _get_keepcaps(task: Task, *_: int) -> int:
    return int(bool(task.credentials.securebits & SECURE_KEEP_CAPS))


def _cap_ambient(task: Task, action: int, number: int, *rest: int) -> int:
    now = task.credentials
    if action == PR_CAP_AMBIENT_CLEAR_ALL:
        _require(not number and not any(rest))
        new = _changed(task)
        new.ambient = 0
        return commit(task, new)
    _require(number <= CAP_LAST and not any(rest))
    if action == PR_CAP_AMBIENT_IS_SET:
        return now.ambient >> number & 1
    _require(action in (PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_LOWER))
    new = _changed(task)
    if action == PR_CAP_AMBIENT_LOWER:
        new.ambient &= ~(1 << number)
    else:
        has = now.permitted & now.inheritable
        _require(bool(has >> number & 1) and not now.securebits & SECURE_NO_CAP_AMBIENT_RAISE, errno.EPERM)
        new.ambient |= 1 << number
    return commit(task, new)


OPTIONS: dict[int, Option] = {
    PR_SET_PDEATHSIG: _set_pdeathsig,
    PR_GET_PDEATHSIG: _get_pdeathsig,
    PR_GET_DUMPABLE: _get_dumpable,
    PR_SET_DUMPABLE: _set_dumpable,
    PR_GET_KEEPCAPS: _get_keepcaps,
    PR_SET_KEEPCAPS: _set_keepcaps,
    PR_GET_TIMING: _get_timing,
    PR_SET_TIMING: _set_timing,
    PR_SET_NAME: _set_name,
    PR_GET_NAME: _get_name,
    PR_CAPBSET_READ: _capbset_read,
    PR_CAPBSET_DROP: _capbset_drop,
    PR_GET_TSC: _get_tsc,
    PR_SET_TSC: _set_tsc,
    PR_GET_SECUREBITS: _get_securebits,
    PR_SET_SECUREBITS: _set_securebits,
    PR_SET_TIMERSLACK: _set_timerslack,
    PR_GET_TIMERSLACK: _get_timerslack,
    PR_SET_CHILD_SUBREAPER: _set_child_subreaper,
    PR_GET_CHILD_SUBREAPER: _get_child_subreaper,
    PR_SET_NO_NEW_PRIVS: _set_no_new_privs,
    PR_GET_NO_NEW_PRIVS: _get_no_new_privs,
    PR_GET_TID_ADDRESS: _get_tid_address,
    PR_SET_THP_DISABLE: _set_thp_disable,
    PR_GET_THP_DISABLE: _get_thp_disable,
    PR_CAP_AMBIENT: _cap_ambient,
}
