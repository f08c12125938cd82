"""Pending signals and dispositions against the simplest model that can be written down."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from devices.signals.abi import (
    IGNORED_BY_DEFAULT,
    SIG_DFL,
    SIG_IGN,
    SIGCHLD,
    SIGFPE,
    SIGHUP,
    SIGRTMIN,
    SIGSEGV,
    SIGUSR1,
    SYNCHRONOUS,
    sigmask,
)
from devices.signals.info import SigInfo
from devices.signals.queue import STOP_PENDING, Action, SignalActions, SignalQueue

ALL = (1 << 64) - 1
SIGNALS = st.one_of(st.sampled_from([SIGHUP, SIGFPE, SIGUSR1, SIGSEGV, SIGRTMIN, 64]), st.integers(1, 64))
MASKS = st.one_of(st.sets(SIGNALS).map(lambda members: sigmask(*members)), st.just(ALL))


class Reference:
    """A list of what was sent, in order; the kernel's rules applied when it is looked at."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, SigInfo | None]] = []

    def put(self, signo: int, info: SigInfo | None) -> None:
        self.sent.append((signo, info))

    def take(self, wanted: int) -> SigInfo | None:
        numbers = {n for n, _ in self.sent if wanted >> n - 1 & 1}
        if not numbers:
            return None
        synchronous = {n for n in numbers if SYNCHRONOUS >> n - 1 & 1}
        return self._remove(min(synchronous or numbers))

    def _remove(self, signo: int) -> SigInfo:
        with_info = [pair for pair in self.sent if pair[0] == signo and pair[1] is not None]
        if not with_info:
            self.sent = [pair for pair in self.sent if pair[0] != signo]
            return SigInfo(signo, 0)
        self.sent.remove(with_info[0])
        if len(with_info) == 1:  # what has lost its siginfo is one with the last that has not
            self.sent = [pair for pair in self.sent if pair[0] != signo]
        found = with_info[0][1]
        assert found is not None
        return found

    def take_synchronous(self, wanted: int) -> SigInfo | None:
        for signo, info in self.sent:
            if wanted & SYNCHRONOUS & sigmask(signo) and info is not None and info.code > 0:
                return self._remove(signo)
        return None

    def discard(self, mask: int) -> None:
        self.sent = [pair for pair in self.sent if not mask >> pair[0] - 1 & 1]

    @property
    def bits(self) -> int:
        return sigmask(*{n for n, _ in self.sent})


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), SIGNALS, st.integers(-7, 7), st.booleans()),
        st.tuples(st.just("take"), MASKS),
        st.tuples(st.just("take_synchronous"), MASKS),
        st.tuples(st.just("discard"), MASKS),
    ),
    max_size=60,
)


@given(OPERATIONS)
def test_queue_is_the_reference(operations: list[tuple[object, ...]]) -> None:
    queue, reference = SignalQueue(), Reference()
    number = 0
    for name, *arguments in operations:
        if name == "put":
            signo, code, kept = arguments
            assert isinstance(signo, int)
            assert isinstance(code, int)
            if signo < SIGRTMIN and queue.bits >> signo - 1 & 1:
                continue  # the sender's rule
            number += 1
            info = SigInfo(signo, code, number.to_bytes(4, "little")) if kept else None
            queue.put(signo, info)
            reference.put(signo, info)
        else:
            got = getattr(queue, str(name))(*arguments)
            assert got == getattr(reference, str(name))(*arguments)
        assert queue.bits == reference.bits
        assert queue.queued == sum(1 for _, info in reference.sent if info is not None)


def test_real_time_signals_keep_their_order() -> None:
    queue = SignalQueue()
    for number in range(5):
        queue.put(SIGRTMIN + 2, SigInfo(SIGRTMIN + 2, -1, bytes([number])))
    queue.put(SIGRTMIN, SigInfo(SIGRTMIN, -1))
    first = queue.take(ALL)
    assert first is not None
    assert first.signo == SIGRTMIN
    order = []
    while info := queue.take(ALL):
        order.append(info.tail[0])
    assert order == [0, 1, 2, 3, 4]


def test_a_stop_is_no_signal_to_be_taken() -> None:
    queue = SignalQueue()
    queue.bits |= STOP_PENDING
    assert queue.take(-1) is None
    assert queue.take_synchronous(-1) is None
    queue.put(SIGHUP, None)
    assert queue.take(-1) == SigInfo(SIGHUP, 0)
    assert queue.bits == STOP_PENDING


def test_a_fault_goes_before_a_sent_signal_of_a_lower_number() -> None:
    queue = SignalQueue()
    queue.put(SIGFPE, SigInfo(SIGFPE, 0))  # kill()
    queue.put(SIGSEGV, SigInfo(SIGSEGV, 1))
    assert queue.take_synchronous(ALL) == SigInfo(SIGSEGV, 1)
    assert queue.take_synchronous(ALL) is None
    assert queue.take(ALL) == SigInfo(SIGFPE, 0)


@given(st.lists(st.tuples(SIGNALS, st.sampled_from([SIG_DFL, SIG_IGN, 0x1000]))))
def test_actions_know_their_sets(changes: list[tuple[int, int]]) -> None:
    actions = SignalActions()
    handlers = dict.fromkeys(range(1, 65), SIG_DFL)
    for signo, handler in changes:
        actions[signo] = Action(handler)
        handlers[signo] = handler
    for signo, handler in handlers.items():
        bit = sigmask(signo)
        assert actions[signo].handler == handler
        assert bool(actions.ignored & bit) == (handler == SIG_IGN)
        assert bool(actions.caught & bit) == (handler == 0x1000)
        assert actions.is_default(bit) == (handler == SIG_DFL)
        by_default = bool(handler == SIG_DFL and IGNORED_BY_DEFAULT & bit)
        assert actions.is_ignored(bit) == (handler == SIG_IGN or by_default)


def test_set_default_keeps_flags_and_mask() -> None:
    actions = SignalActions()
    actions[SIGUSR1] = Action(0x1000, 4, 0x2000, 8)
    actions.set_default(SIGUSR1)
    action = actions[SIGUSR1]
    assert (action.handler, action.flags, action.restorer, action.mask) == (SIG_DFL, 4, 0x2000, 8)
    assert not actions.caught
    assert actions.is_ignored(sigmask(SIGCHLD))


def test_siginfo_is_what_the_program_gave() -> None:
    raw = bytes(range(48)) + bytes(80)
    info = SigInfo.unpack(10, raw)
    assert info.pack() == (10).to_bytes(4, "little") + raw[4:]
    assert len(info.pack()) == 128
