"""The futex calls: man 2 futex, man 2 futex_waitv, man 2 get_robust_list, kernel/futex/syscalls.c."""

from __future__ import annotations

import errno
from struct import Struct
from typing import TYPE_CHECKING

from devices.args import Int, Pid, Ptr, Size, UInt, ULong
from devices.bus import syscall
from devices.errors import SysError
from devices.futex import abi, words
from devices.futex.abi import (
    FUTEX_BITSET_MATCH_ANY,
    FUTEX_CLOCK_REALTIME,
    FUTEX_PRIVATE_FLAG,
    Futex2Flags,
    FutexOp,
)
from devices.futex.futex import wait, wait_multiple
from devices.time.abi import CLOCK_MONOTONIC, CLOCK_REALTIME, ClockId, read_timespec
from devices.time.sleep import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.task.task import Task

WAITV = Struct(abi.FUTEX_WAITV)
SIZE = Struct("<Q")


def _signed(value: int) -> int:
    """A C unsigned int that is passed on as int."""
    return (value & 0xFFFF_FFFF ^ 0x8000_0000) - 0x8000_0000


class Call:
    """What a futex operation is given; `shared` is "not private", `val2` is what else `timeout` may mean."""

    __slots__ = ("op", "shared", "task", "timeout", "uaddr", "uaddr2", "val", "val3")

    def __init__(self, task: Task, uaddr: int, op: int, val: int, timeout: int, uaddr2: int, val3: int) -> None:
        self.task = task
        self.uaddr = uaddr
        self.op = op
        self.shared = not op & FUTEX_PRIVATE_FLAG
        self.val = val
        self.timeout = timeout
        self.uaddr2 = uaddr2
        self.val3 = val3

    @property
    def val2(self) -> int:
        return _signed(self.timeout)

    def deadline(self, clock: int) -> Deadline | None:
        """The absolute time at `timeout`. EFAULT, EINVAL."""
        return Deadline(clock, read_timespec(self.task.memory, self.timeout)) if self.timeout else None

    @property
    def clock(self) -> int:
        return CLOCK_REALTIME if self.op & FUTEX_CLOCK_REALTIME else CLOCK_MONOTONIC


@syscall("futex")
def futex(task: Task, uaddr: Ptr, op: FutexOp, val: UInt, timeout: Ptr, uaddr2: Ptr, val3: UInt) -> int:
    """man 2 futex."""
    if op & ~FUTEX_PRIVATE_FLAG == abi.FUTEX_WAKE:  # the one that is called most
        key = words.key_of(task, uaddr, not op & FUTEX_PRIVATE_FLAG)
        return task.kernel.futexes.wake(key, _signed(val))
    command = op & abi.FUTEX_CMD_MASK
    operation = OPERATIONS.get(command)
    if operation is None:
        raise SysError(errno.ENOSYS, "unknown operation")
    call = Call(task, uaddr, op, val, timeout, uaddr2, val3)
    if op & FUTEX_CLOCK_REALTIME and command not in WITH_CLOCK:
        if timeout and command in WITH_TIMEOUT:
            call.deadline(CLOCK_MONOTONIC)  # its errors come first
        raise SysError(errno.ENOSYS, "FUTEX_CLOCK_REALTIME does not go with this operation")
    return operation(call)


def _wait(call: Call) -> int:
    task = call.task
    deadline = None
    if call.timeout:
        deadline = Deadline.after(task, CLOCK_MONOTONIC, read_timespec(task.memory, call.timeout))
    return wait(task, call.uaddr, call.shared, call.val, FUTEX_BITSET_MATCH_ANY, deadline)


def _wait_bitset(call: Call) -> int:
    return wait(call.task, call.uaddr, call.shared, call.val, call.val3, call.deadline(call.clock))


def _wake(call: Call) -> int:
    return call.task.kernel.futexes.wake(words.key_of(call.task, call.uaddr, call.shared), _signed(call.val))


def _wake_bitset(call: Call) -> int:
    if not call.val3:
        raise SysError(errno.EINVAL, "empty bitset")
    key = words.key_of(call.task, call.uaddr, call.shared)
    return call.task.kernel.futexes.wake(key, _signed(call.val), call.val3)


def _requeue(call: Call) -> int:
    return requeue(call.task, call.uaddr, call.shared, call.uaddr2, _signed(call.val), call.val2, None)


def _cmp_requeue(call: Call) -> int:
    return requeue(call.task, call.uaddr, call.shared, call.uaddr2, _signed(call.val), call.val2, call.val3)


def requeue(task: Task, address: int, shared: bool, target: int, wake: int, move: int, expected: int | None) -> int:
    """Wake some waiters and move others, if the word has the expected value: EAGAIN when not; EINVAL, EFAULT."""
    if wake < 0 or move < 0:
        raise SysError(errno.EINVAL, "negative count")
    key = words.key_of(task, address, shared)
    target_key = words.key_of(task, target, shared)
    if expected is not None and words.read(task, address) != expected:
        raise SysError(errno.EAGAIN, "the word has another value")
    return task.kernel.futexes.requeue(key, target_key, wake, move)


def _wake_op(call: Call) -> int:
    task = call.task
    futexes = task.kernel.futexes
    key = words.key_of(task, call.uaddr, call.shared)
    key2 = words.key_of(task, call.uaddr2, call.shared, write=True)
    met = words.operate(task, call.uaddr2, call.val3)
    woken = futexes.wake(key, _signed(call.val))
    if met:
        woken += futexes.wake(key2, call.val2)
    return woken


def _lock_pi(call: Call) -> int:
    from devices.futex import pi

    return pi.lock(call.task, call.uaddr, call.shared, call.deadline(CLOCK_REALTIME))


def _lock_pi2(call: Call) -> int:
    from devices.futex import pi

    return pi.lock(call.task, call.uaddr, call.shared, call.deadline(call.clock))


def _unlock_pi(call: Call) -> int:
    from devices.futex import pi

    return pi.unlock(call.task, call.uaddr, call.shared)


def _trylock_pi(call: Call) -> int:
    from devices.futex import pi

    return pi.try_lock(call.task, call.uaddr, call.shared)


def _wait_requeue_pi(call: Call) -> int:
    from devices.futex import pi

    return pi.wait_requeue(call.task, call.uaddr, call.shared, call.val, call.deadline(call.clock), call.uaddr2)


def _cmp_requeue_pi(call: Call) -> int:
    from devices.futex import pi

    return pi.cmp_requeue(call.task, call.uaddr, call.shared, call.uaddr2, _signed(call.val), call.val2, call.val3)


OPERATIONS: dict[int, Callable[[Call], int]] = {
    abi.FUTEX_WAIT: _wait,
    abi.FUTEX_WAKE: _wake,
    abi.FUTEX_REQUEUE: _requeue,
    abi.FUTEX_CMP_REQUEUE: _cmp_requeue,
    abi.FUTEX_WAKE_OP: _wake_op,
    abi.FUTEX_LOCK_PI: _lock_pi,
    abi.FUTEX_UNLOCK_PI: _unlock_pi,
    abi.FUTEX_TRYLOCK_PI: _trylock_pi,
    abi.FUTEX_WAIT_BITSET: _wait_bitset,
    abi.FUTEX_WAKE_BITSET: _wake_bitset,
    abi.FUTEX_WAIT_REQUEUE_PI: _wait_requeue_pi,
    abi.FUTEX_CMP_REQUEUE_PI: _cmp_requeue_pi,
    abi.FUTEX_LOCK_PI2: _lock_pi2,
}
WITH_CLOCK = {abi.FUTEX_WAIT_BITSET, abi.FUTEX_WAIT_REQUEUE_PI, abi.FUTEX_LOCK_PI2}
WITH_TIMEOUT = WITH_CLOCK | {abi.FUTEX_WAIT, abi.FUTEX_LOCK_PI}


# The calls of Linux 5.16 and 6.7


def _check_flags(flags: int, *values: int) -> bool:
    """futex2_to_flags(): only 32-bit words are there, NUMA nodes are not. Returns `shared`; EINVAL."""
    if flags & ~(abi.FUTEX2_SIZE_MASK | abi.FUTEX2_PRIVATE) or flags & abi.FUTEX2_SIZE_MASK != abi.FUTEX2_SIZE_U32:
        raise SysError(errno.EINVAL, "flags")
    if any(value >> 32 for value in values):
        raise SysError(errno.EINVAL, "more than 32 bits")
    return not flags & abi.FUTEX2_PRIVATE


def _absolute(task: Task, timeout: int, clockid: int) -> Deadline | None:
    if not timeout:
        return None
    if clockid not in (CLOCK_REALTIME, CLOCK_MONOTONIC):
        raise SysError(errno.EINVAL, "clock")
    return Deadline(clockid, read_timespec(task.memory, timeout))


def _read_waitv(task: Task, address: int, count: int) -> list[tuple[int, bool, int]]:
    """Copy in an array of struct futex_waitv as (address, shared, value). EFAULT, EINVAL."""
    found = []
    for index in range(count):
        raw = task.memory.read(address + index * abi.FUTEX_WAITV_SIZE, abi.FUTEX_WAITV_SIZE)
        value, uaddr, flags, reserved = WAITV.unpack(raw)
        if reserved:
            raise SysError(errno.EINVAL, "reserved field")
        found.append((uaddr, _check_flags(flags, value), value))
    return found


@syscall("futex_waitv")
def futex_waitv(task: Task, waiters: Ptr, nr_futexes: UInt, flags: UInt, timeout: Ptr, clockid: ClockId) -> int:
    """man 2 futex_waitv."""
    if flags or not 0 < nr_futexes <= abi.FUTEX_WAITV_MAX or not waiters:
        raise SysError(errno.EINVAL)
    deadline = _absolute(task, timeout, clockid)
    return wait_multiple(task, _read_waitv(task, waiters, nr_futexes), deadline)


@syscall("futex_wake")
def futex_wake(task: Task, uaddr: Ptr, mask: ULong, nr: Int, flags: Futex2Flags) -> int:
    """FUTEX_WAKE_BITSET with another signature; wakes nobody for `nr` 0."""
    shared = _check_flags(flags, mask)
    if not mask:
        raise SysError(errno.EINVAL, "empty bitset")
    key = words.key_of(task, uaddr, shared)
    return task.kernel.futexes.wake(key, nr, mask) if nr else 0


@syscall("futex_wait")
def futex_wait(
    task: Task, uaddr: Ptr, val: ULong, mask: ULong, flags: Futex2Flags, timeout: Ptr, clockid: ClockId
) -> int:
    """FUTEX_WAIT_BITSET with another signature, and the clock as an argument; restarted from its start."""
    shared = _check_flags(flags, val, mask)
    deadline = _absolute(task, timeout, clockid)
    return wait(task, uaddr, shared, val, mask, deadline, restart_block=False)


@syscall("futex_requeue")
def futex_requeue(task: Task, waiters: Ptr, flags: UInt, nr_wake: Int, nr_requeue: Int) -> int:
    """FUTEX_CMP_REQUEUE with its two futexes as an array of struct futex_waitv."""
    if flags or not waiters:
        raise SysError(errno.EINVAL)
    (source, shared, value), (target, target_shared, _) = _read_waitv(task, waiters, 2)
    if shared != target_shared:
        raise SysError(errno.EINVAL, "the flags differ")
    return requeue(task, source, shared, target, nr_wake, nr_requeue, value)


# Robust lists


@syscall("set_robust_list")
def set_robust_list(task: Task, head: Ptr, len: Size) -> int:
    """man 2 set_robust_list."""
    if len != abi.ROBUST_LIST_HEAD_SIZE:
        raise SysError(errno.EINVAL, "size of struct robust_list_head")
    task.robust_list = head
    return 0


@syscall("get_robust_list")
def get_robust_list(task: Task, pid: Pid, head_ptr: Ptr, len_ptr: Ptr) -> int:
    """man 2 get_robust_list."""
    from devices.task.permissions import find_task, may_trace

    target = find_task(task, pid)
    if not may_trace(task, target):
        raise SysError(errno.EPERM)
    task.memory.write(len_ptr, SIZE.pack(abi.ROBUST_LIST_HEAD_SIZE))
    task.memory.write(head_ptr, SIZE.pack(target.robust_list))
    return 0
