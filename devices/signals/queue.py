"""The dispositions of a process, and the signals pending for a task or a process. Plain data: no task is woken here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.signals.abi import IGNORED_BY_DEFAULT, NSIG, SIG_DFL, SIG_IGN, SYNCHRONOUS
from devices.signals.info import SigInfo

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.wait import WaitQueue

STOP_PENDING = 1 << NSIG
"""Beside the signals in a task's `SignalQueue.bits`: its process stops, and it has not yet (JOBCTL_STOP_PENDING). A bit
there because no mask can block it, so that "is anything pending" stays one expression."""


class Action:
    """struct k_sigaction: `handler` is SIG_DFL, SIG_IGN or an address, `mask` the signals that it blocks too. Never
    changed."""

    __slots__ = ("flags", "handler", "mask", "restorer")

    def __init__(self, handler: int = SIG_DFL, flags: int = 0, restorer: int = 0, mask: int = 0) -> None:
        self.handler = handler
        self.flags = flags
        self.restorer = restorer
        self.mask = mask


DEFAULT = Action()


class SignalActions:
    """The 64 dispositions of a process (struct sighand_struct). `ignored` and `caught` are signal sets: those with
    SIG_IGN and those with a handler (SigIgn and SigCgt of /proc/[pid]/status)."""

    __slots__ = ("_actions", "caught", "ignored")

    def __init__(self) -> None:
        self._actions = [DEFAULT] * (NSIG + 1)
        self.ignored = 0
        self.caught = 0

    def copy(self, *, clear: bool = False) -> SignalActions:
        """Those of a process that was forked; with `clear`, no handler is left in it, as after execve
        (flush_signal_handlers())."""
        other = SignalActions()
        other.ignored = self.ignored
        if clear:
            other._actions = [Action(SIG_IGN) if self.ignored >> n - 1 & 1 else DEFAULT for n in range(1, NSIG + 1)]
            other._actions.insert(0, DEFAULT)
        else:
            other._actions = self._actions.copy()
            other.caught = self.caught
        return other

    def __getitem__(self, signo: int) -> Action:
        return self._actions[signo]

    def __setitem__(self, signo: int, action: Action) -> None:
        self._actions[signo] = action
        bit = 1 << signo - 1
        self.ignored &= ~bit
        self.caught &= ~bit
        if action.handler == SIG_IGN:
            self.ignored |= bit
        elif action.handler != SIG_DFL:
            self.caught |= bit

    def is_default(self, bit: int) -> bool:
        return not bit & (self.ignored | self.caught)

    def set_default(self, signo: int) -> None:
        """Only the handler goes; flags and mask stay (SA_RESETHAND, forced signals)."""
        old = self._actions[signo]
        self[signo] = Action(SIG_DFL, old.flags, old.restorer, old.mask)

    def is_ignored(self, bit: int) -> bool:
        """Has the signal of this set bit no effect, as SIG_IGN or by default? (sig_handler_ignored())"""
        return bool(bit & (self.ignored | IGNORED_BY_DEFAULT & ~self.caught))


class SignalQueue:
    """The pending signals of a task or a process (struct sigpending), and what the kernel keeps beside them.

    A standard signal is pending once at most, a real-time one as often as it was sent. `bits` is the set of those
    pending; a signal whose siginfo was not kept is in `bits` alone.
    """

    __slots__ = ("_infos", "bits", "queued", "stop_signal", "stopped", "target", "trap", "waiters")

    def __init__(self) -> None:
        self.bits = 0
        self.queued = 0
        """How many siginfos are kept: they count against RLIMIT_SIGPENDING."""
        self._infos: dict[int, list[SigInfo]] = {}  # by number, in the order in which the first of each came
        # Of a process (struct signal_struct)
        self.waiters: WaitQueue | None = None
        """Tasks in rt_sigtimedwait; a waiter's key is the set that it waits for."""
        self.stop_signal = 0
        """The signal that has stopped the process, 0 while it runs; see stop.py."""
        self.stopped: WaitQueue | None = None
        """The tasks that have stopped."""
        self.target: Task | None = None
        """The task that was chosen last for a signal to the process (curr_target)."""
        # Of a task (struct thread_struct)
        self.trap = (0, 0, 0)
        """Vector, error code and CR2 of the last CPU exception that became a signal; CR2 is that of the last #PF."""

    def put(self, signo: int, info: SigInfo | None) -> None:
        """Make a signal pending; without `info` only its number is kept. Whether it may be is the sender's to say."""
        self.bits |= 1 << signo - 1
        if info is not None:
            self._infos.setdefault(signo, []).append(info)
            self.queued += 1

    def take(self, wanted: int) -> SigInfo | None:
        """Remove and return the next signal out of the set `wanted`: synchronous ones first, then the lowest number
        (next_signal(), collect_signal())."""
        ready = self.bits & wanted & STOP_PENDING - 1
        if not ready:
            return None
        ready = ready & SYNCHRONOUS or ready
        return self._remove((ready & -ready).bit_length())

    def take_synchronous(self, wanted: int) -> SigInfo | None:
        """The first queued signal of the CPU's making, if there is one out of `wanted`: it is delivered before all
        others, so that its frame shows the instruction that caused it (dequeue_synchronous_signal())."""
        wanted &= SYNCHRONOUS
        if self.bits & wanted:
            for signo, infos in self._infos.items():
                if wanted >> signo - 1 & 1 and infos[0].code > 0:
                    return self._remove(signo)
        return None

    def _remove(self, signo: int) -> SigInfo:
        infos = self._infos.get(signo)
        if not infos:
            self.bits &= ~(1 << signo - 1)
            return SigInfo.nothing_known(signo)
        info = infos.pop(0)
        self.queued -= 1
        if not infos:
            del self._infos[signo]
            self.bits &= ~(1 << signo - 1)
        return info

    def discard(self, mask: int) -> None:
        """Forget what is pending out of the set `mask` (flush_sigqueue_mask())."""
        gone = self.bits & mask
        if not gone:
            return
        self.bits &= ~mask
        for signo in [n for n in self._infos if gone >> n - 1 & 1]:
            self.queued -= len(self._infos.pop(signo))
