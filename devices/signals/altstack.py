"""The alternate signal stack of a task: `Task.altstack` is (address, size in bytes, flags) as of sigaltstack(2)."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.signals.abi import MINSIGSTKSZ, SS_AUTODISARM, SS_DISABLE, SS_ONSTACK, STACK

if TYPE_CHECKING:
    from devices.task.task import Task

NONE = (0, 0, SS_DISABLE)


def within(task: Task, sp: int) -> bool:
    """Does a stack pointer lie in the stack, even one that is disarmed while in use? (__on_sig_stack())"""
    address, size, _ = task.altstack
    return sp > address and sp - address <= size


def in_use(task: Task, sp: int) -> bool:
    """Is the task on it? With SS_AUTODISARM it never counts as such (on_sig_stack())."""
    return not task.altstack[2] & SS_AUTODISARM and within(task, sp)


def state(task: Task, sp: int) -> int:
    """SS_DISABLE, SS_ONSTACK or 0: there, and free (sas_ss_flags())."""
    if not task.altstack[1]:
        return SS_DISABLE
    return SS_ONSTACK if in_use(task, sp) else 0


def describe(task: Task, sp: int) -> bytes:
    """The stack_t that sigaltstack gives back; `sp` is the program's stack pointer."""
    address, size, flags = task.altstack
    return STACK.pack(address, signed(state(task, sp) | flags & SS_AUTODISARM), size)


def save(task: Task) -> bytes:
    """The stack_t of a signal frame, from which set_from() restores it."""
    address, size, flags = task.altstack
    return STACK.pack(address, signed(flags), size)


def set_from(task: Task, raw: bytes, sp: int) -> None:
    """Take over a program's stack_t. SysError: EPERM on the stack, EINVAL for bad flags, ENOMEM if too small."""
    address, flags, size = STACK.unpack(raw)
    if in_use(task, sp):
        raise SysError(errno.EPERM, "the stack is in use")
    mode = flags & 0xFFFF_FFFF & ~SS_AUTODISARM
    if mode not in (0, SS_ONSTACK, SS_DISABLE):
        raise SysError(errno.EINVAL)
    if mode == SS_DISABLE:
        address = size = 0
    elif size < MINSIGSTKSZ:
        raise SysError(errno.ENOMEM, "smaller than MINSIGSTKSZ")
    task.altstack = (address, size, flags & 0xFFFF_FFFF)


def restore(task: Task, raw: bytes, sp: int) -> None:
    """Take over the stack_t of a frame; one that cannot be is no reason not to return (restore_altstack())."""
    with suppress(SysError):
        set_from(task, raw, sp)


def signed(flags: int) -> int:
    """As the C int that ss_flags is."""
    return (flags ^ 1 << 31) - (1 << 31)
