"""Ending another thread's KVM_RUN with EINTR, by the signal of vmm/threads/kick.py."""

from __future__ import annotations

import os
from _thread import get_native_id
from typing import TYPE_CHECKING

from vmm.threads import current_job
from vmm.threads.kick import install, kick, unblock

if TYPE_CHECKING:
    from collections.abc import Callable

_SYS_TGKILL = 234


def me() -> object:
    """Whom a kick is to reach: the job of vmm.threads that the calling thread runs, else the thread, by its id."""
    return current_job() or get_native_id()


def kicker() -> Callable[[], object]:
    """A function that interrupts the system call that `me()` will then be in; any thread may call it.

    A thread of vmm.threads is interrupted while its job lives, another one while it exists."""
    job = current_job()
    unblock()
    if job is not None:
        return lambda: kick(job)

    import ctypes

    call, process, thread, number = ctypes.CDLL(None).syscall, os.getpid(), get_native_id(), install()
    return lambda: call(_SYS_TGKILL, process, thread, number)  # ESRCH: the thread is gone
