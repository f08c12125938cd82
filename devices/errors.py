"""How a device says no."""

from __future__ import annotations

import errno as _errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class SysError(Exception):
    """A system call's error: `errno` goes to the guest as -errno, `reason` only to the trace.

    Not an OSError, so that a bug of the monitor never reaches the guest as an innocent ENOENT.
    """

    def __init__(self, errno: int, reason: str = "") -> None:
        super().__init__(errno, reason)
        self.errno = errno
        self.reason = reason

    def __str__(self) -> str:
        name = _errno.errorcode.get(self.errno, str(self.errno))
        return f"{name} ({self.reason or os.strerror(self.errno)})"


@contextmanager
def host_errno() -> Iterator[None]:
    """At a host-backed edge only: an OSError of the host becomes the guest's SysError with the same number."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise SysError(error.errno, error.strerror or "") from error


class Interrupted(Exception):
    """A blocking call was cut short because a signal is to be acted upon (kernel: signal_pending()).

    `restart` is the kernel's own code (include/linux/errno.h) that decides what the program sees.
    """

    def __init__(self, restart: int) -> None:
        super().__init__(restart)
        self.restart = restart


ERESTARTSYS = 512
"""Restart if no handler runs or the handler has SA_RESTART, else EINTR."""
ERESTARTNOINTR = 513
"""Always restart."""
ERESTARTNOHAND = 514
"""Restart only if no handler runs."""
ERESTART_RESTARTBLOCK = 516
"""Restart through restart_syscall with the remaining time; EINTR if a handler runs."""


class LeaveGuest(Exception):
    """Raised in a call that is served in place (see vmm/cpu.py) when it turns out that it must wait or may take long.

    The bus leaves the guest and calls the handler again from its start.
    """


class TaskExit(BaseException):
    """The calling task has ended; unwinds its thread to the bus. A BaseException, so that no handler swallows it."""
