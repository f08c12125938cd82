"""siginfo_t: what a signal says about itself."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from devices.signals.abi import (
    CODES_OF,
    KERNEL_SIGINFO_SIZE,
    NSIGPOLL,
    SI_ASYNCNL,
    SI_DETHREAD,
    SI_KERNEL,
    SI_TKILL,
    SI_USER,
    SIGINFO_SIZE,
)

if TYPE_CHECKING:
    from devices.task.task import Task

HEADER = struct.Struct("<iii")
TAIL_SIZE = KERNEL_SIGINFO_SIZE - HEADER.size
PADDING = bytes(SIGINFO_SIZE - KERNEL_SIGINFO_SIZE)
SENDER = struct.Struct("<4xiI")
QUEUED = struct.Struct("<4xiIQ")
FAULT = struct.Struct("<4xQ")


class SigInfo:
    """One signal's siginfo_t. `tail` is the union behind si_code: 36 bytes as the program sees them. Never changed."""

    __slots__ = ("code", "errno", "signo", "tail")

    def __init__(self, signo: int, code: int, tail: bytes = b"", errno: int = 0) -> None:
        self.signo = signo
        self.errno = errno
        self.code = code
        self.tail = tail.ljust(TAIL_SIZE, b"\0")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SigInfo) and self.pack() == other.pack()

    def __hash__(self) -> int:
        return hash(self.pack())

    def __repr__(self) -> str:
        return f"SigInfo({self.signo}, {self.code}, {self.tail!r}, {self.errno})"

    def pack(self) -> bytes:
        """The 128 bytes of siginfo_t."""
        return HEADER.pack(self.signo, self.errno, self.code) + self.tail + PADDING

    # What the union holds, for traces

    @property
    def pid(self) -> int:
        """si_pid (si_tid of SI_TIMER)."""
        return int(SENDER.unpack_from(self.tail)[0])

    @property
    def uid(self) -> int:
        """si_uid (si_overrun of SI_TIMER)."""
        return int(SENDER.unpack_from(self.tail)[1])

    @property
    def value(self) -> int:
        """si_value as an unsigned 64-bit pointer."""
        return int(QUEUED.unpack_from(self.tail)[2])

    @property
    def address(self) -> int:
        """si_addr."""
        return int(FAULT.unpack_from(self.tail)[0])

    # Where signals come from

    @classmethod
    def kernel(cls, signo: int) -> SigInfo:
        """SEND_SIG_PRIV: of the kernel's own accord."""
        return cls(signo, SI_KERNEL)

    @classmethod
    def nothing_known(cls, signo: int) -> SigInfo:
        """A signal whose siginfo was not kept."""
        return cls(signo, SI_USER)

    @classmethod
    def sent_by(cls, task: Task, signo: int, code: int = SI_USER) -> SigInfo:
        """From `task`: kill(2), or tkill(2) with SI_TKILL (SEND_SIG_NOINFO and prepare_kill_siginfo())."""
        return cls(signo, code, SENDER.pack(task.process.pid, task.credentials.uid))

    @classmethod
    def fault(cls, signo: int, code: int, address: int) -> SigInfo:
        """A CPU exception at, or about, `address`."""
        return cls(signo, code, FAULT.pack(address))

    @classmethod
    def unpack(cls, signo: int, raw: bytes) -> SigInfo:
        """From the first 48 bytes of a program's siginfo_t; si_signo there does not count."""
        _, errno, code = HEADER.unpack_from(raw)
        return cls(signo, code, raw[HEADER.size : KERNEL_SIGINFO_SIZE], errno)

    def layout_known(self) -> bool:
        """Does the kernel know that no more than 48 bytes of such a siginfo_t matter? (known_siginfo_layout())"""
        code = self.code
        if code == SI_KERNEL:
            return True
        if code > SI_USER:
            return code <= CODES_OF.get(self.signo, NSIGPOLL)
        return code >= SI_DETHREAD or code == SI_ASYNCNL

    def impersonates(self) -> bool:
        """Would it pass for a signal of the kernel's or of kill(2)? Programs may send that to themselves only."""
        return self.code >= 0 or self.code == SI_TKILL
