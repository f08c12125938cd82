"""The futex calls through the whole stack but the guest: words in guest RAM, tasks that sleep on threads."""

from __future__ import annotations

import contextlib
import errno
import struct
from typing import TYPE_CHECKING

import pytest

from devices.errors import ERESTART_RESTARTBLOCK, ERESTARTSYS, Interrupted, LeaveGuest, SysError
from devices.futex import abi
from devices.futex.words import _sign_extend_12
from devices.time.abi import TIMESPEC
from tests.unit.devices.running import Machine, machine
from vmm.layout import TASK_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.devices.running import Call

PRIVATE = abi.FUTEX_PRIVATE_FLAG
REALTIME = abi.FUTEX_CLOCK_REALTIME


class Futex:
    """A machine with some words and a way to call futex() on them."""

    def __init__(self, made: Machine) -> None:
        self.machine = made
        self.memory = made.first.memory
        self.word = made.data
        self.other = made.data + 64
        self.time = made.data + 4096
        self.task = made.first

    def set(self, value: int, at: int | None = None) -> None:
        self.memory.write_u32(self.word if at is None else at, value)

    def get(self, at: int | None = None) -> int:
        return self.memory.read_u32(self.word if at is None else at)

    def timespec(self, seconds: int, ns: int = 0) -> int:
        self.memory.write(self.time, TIMESPEC.pack(seconds, ns))
        return self.time

    def wait(self, value: int = 0, op: int = abi.FUTEX_WAIT | PRIVATE, timeout: int = 0, bitset: int = 0) -> Call:
        task = self.machine.thread()
        return self.machine.start(task, "futex", self.word, op, value, timeout, 0, bitset)

    def call(
        self, op: int, val: int = 0, timeout: int = 0, uaddr2: int = 0, val3: int = 0, at: int | None = None
    ) -> int:
        """Result or -errno of a futex call of the first task."""
        address = self.word if at is None else at
        try:
            return self.machine.world.call("futex", address, op, val, timeout, uaddr2, val3)
        except SysError as error:
            return -error.errno


@pytest.fixture
def futex() -> Iterator[Futex]:
    with machine() as made:
        yield Futex(made)
        assert len(made.kernel.futexes) == sum(call.asleep for call in made.calls) or made.calls


# Waiting and waking


def test_a_waiter_is_woken(futex: Futex) -> None:
    waiting = futex.wait()
    assert waiting.asleep
    assert futex.call(abi.FUTEX_WAKE | PRIVATE, 1) == 1
    assert waiting.result() == 0
    assert len(futex.machine.kernel.futexes) == 0
    assert futex.call(abi.FUTEX_WAKE | PRIVATE, 1) == 0


def test_another_value_is_eagain(futex: Futex) -> None:
    futex.set(7)
    assert futex.call(abi.FUTEX_WAIT, 8) == -errno.EAGAIN
    assert futex.call(abi.FUTEX_WAIT_BITSET, 8, 0, 0, 1) == -errno.EAGAIN


def test_waiters_are_woken_in_their_order(futex: Futex) -> None:
    waiting = [futex.wait() for _ in range(4)]
    for index, call in enumerate(waiting):
        assert futex.call(abi.FUTEX_WAKE | PRIVATE, 1) == 1
        assert call.result() == 0
        assert all(later.asleep for later in waiting[index + 1 :])


@pytest.mark.parametrize("count", [0, -1, -(1 << 31)])
def test_a_count_below_one_still_wakes_one(futex: Futex, count: int) -> None:
    waiting = [futex.wait() for _ in range(2)]
    assert futex.call(abi.FUTEX_WAKE | PRIVATE, count) == 1
    assert waiting[0].result() == 0
    assert waiting[1].asleep


def test_bitsets_choose(futex: Futex) -> None:
    op = abi.FUTEX_WAIT_BITSET | PRIVATE
    first, second, third = futex.wait(op=op, bitset=1), futex.wait(op=op, bitset=2), futex.wait(op=op, bitset=3)
    assert futex.call(abi.FUTEX_WAKE_BITSET | PRIVATE, 9, 0, 0, 4) == 0
    assert futex.call(abi.FUTEX_WAKE_BITSET | PRIVATE, 9, 0, 0, 2) == 2
    assert (second.result(), third.result()) == (0, 0)
    assert first.asleep
    assert futex.call(abi.FUTEX_WAKE | PRIVATE, 9) == 1
    assert first.result() == 0


def test_an_empty_bitset_is_einval(futex: Futex) -> None:
    assert futex.call(abi.FUTEX_WAIT_BITSET, 1, 0, 0, 0) == -errno.EINVAL
    assert futex.call(abi.FUTEX_WAKE_BITSET, 1, 0, 0, 0) == -errno.EINVAL


def test_private_and_shared_are_two_futexes_in_private_memory(futex: Futex) -> None:
    waiting = futex.wait()
    assert futex.call(abi.FUTEX_WAKE, 1) == 0
    assert futex.call(abi.FUTEX_WAKE | PRIVATE, 1) == 1
    assert waiting.result() == 0
    waiting = futex.wait(op=abi.FUTEX_WAIT)
    assert futex.call(abi.FUTEX_WAKE | PRIVATE, 1) == 0
    assert futex.call(abi.FUTEX_WAKE, 1) == 1
    assert waiting.result() == 0


# Errors of addresses, operations and times, and which comes first


@pytest.mark.parametrize("op", [abi.FUTEX_WAIT, abi.FUTEX_WAKE, abi.FUTEX_LOCK_PI, abi.FUTEX_REQUEUE])
@pytest.mark.parametrize("private", [0, PRIVATE])
def test_a_misaligned_word_is_einval(futex: Futex, op: int, private: int) -> None:
    for address in (futex.word + 1, TASK_SIZE + 2, (1 << 64) - 3):
        assert futex.call(op | private, 0, 0, futex.other, at=address) == -errno.EINVAL


def test_a_bad_address_is_efault(futex: Futex) -> None:
    for address in (TASK_SIZE, (1 << 64) - 4, 4096):
        assert futex.call(abi.FUTEX_WAIT, at=address) == -errno.EFAULT
        assert futex.call(abi.FUTEX_WAKE, at=address) == -errno.EFAULT
    assert futex.call(abi.FUTEX_WAIT | PRIVATE, at=4096) == -errno.EFAULT
    assert futex.call(abi.FUTEX_WAKE | PRIVATE, at=4096) == 0, "a private futex needs no memory to be woken"


def test_unknown_operations_are_enosys(futex: Futex) -> None:
    for op in (abi.FUTEX_FD, 14, 127, 1 << 9, 1 << 31):
        assert futex.call(op) == -errno.ENOSYS


def test_the_clock_flag_goes_with_three_operations(futex: Futex) -> None:
    futex.set(1)
    for op in range(14):
        wanted = -errno.ENOSYS
        if op == abi.FUTEX_WAIT_BITSET:
            wanted = -errno.EAGAIN
        elif op in (abi.FUTEX_WAIT_REQUEUE_PI, abi.FUTEX_LOCK_PI2):
            continue
        assert futex.call(op | REALTIME, 0, 0, futex.other, 1) == wanted, op


def test_a_bad_time_comes_before_all_else(futex: Futex) -> None:
    misaligned = futex.word + 1
    for op in (abi.FUTEX_WAIT, abi.FUTEX_WAIT_BITSET, abi.FUTEX_LOCK_PI, abi.FUTEX_LOCK_PI2, abi.FUTEX_WAIT_REQUEUE_PI):
        assert futex.call(op, 0, 4096, at=misaligned) == -errno.EFAULT
        for seconds, ns in ((-1, 0), (0, -1), (0, 10**9)):
            assert futex.call(op, 0, futex.timespec(seconds, ns), at=misaligned) == -errno.EINVAL
    assert futex.call(abi.FUTEX_WAIT | REALTIME, 0, 4096) == -errno.EFAULT
    assert futex.call(abi.FUTEX_WAKE, 0, 4096) == 0, "no time for this one"


# Time-outs and signals


def test_time_outs(futex: Futex) -> None:
    clock = futex.machine.kernel.clock
    before = clock.monotonic_ns()
    assert futex.call(abi.FUTEX_WAIT, 0, futex.timespec(0, 3_000_000)) == -errno.ETIMEDOUT
    assert clock.monotonic_ns() - before >= 3_000_000
    for op, now in ((0, clock.monotonic_ns()), (REALTIME, clock.realtime_ns())):
        at = futex.timespec(*divmod(now + 3_000_000, 10**9))
        assert futex.call(abi.FUTEX_WAIT_BITSET | op, 0, at, 0, 1) == -errno.ETIMEDOUT
    assert futex.call(abi.FUTEX_WAIT_BITSET, 0, futex.timespec(0), 0, 1) == -errno.ETIMEDOUT
    assert len(futex.machine.kernel.futexes) == 0


def test_the_longest_times_do_not_end_at_once(futex: Futex) -> None:
    for op in (abi.FUTEX_WAIT, abi.FUTEX_WAIT_BITSET, abi.FUTEX_WAIT_BITSET | REALTIME):
        waiting = futex.wait(op=op, timeout=futex.timespec((1 << 63) - 1, 999_999_999), bitset=1)
        assert waiting.asleep
        assert futex.call(abi.FUTEX_WAKE, 1) == 1
        assert waiting.result() == 0


@pytest.mark.parametrize("op", [abi.FUTEX_WAIT, abi.FUTEX_WAIT_BITSET])
def test_a_signal_restarts_a_wait_without_a_time(futex: Futex, op: int) -> None:
    waiting = futex.wait(op=op, bitset=1)
    futex.machine.signal(waiting.task)
    with pytest.raises(Interrupted) as caught:
        waiting.result()
    assert caught.value.restart == ERESTARTSYS
    assert waiting.task.restart_block is None
    assert futex.call(abi.FUTEX_WAKE, 1) == 0


@pytest.mark.parametrize("op", [abi.FUTEX_WAIT, abi.FUTEX_WAIT_BITSET | REALTIME])
def test_a_signal_lets_a_wait_with_a_time_go_on_through_its_block(futex: Futex, op: int) -> None:
    futex.set(5)
    waiting = futex.wait(5, op, futex.timespec(1 << 40), 1)
    futex.machine.signal(waiting.task)
    with pytest.raises(Interrupted) as caught:
        waiting.result()
    assert caught.value.restart == ERESTART_RESTARTBLOCK
    futex.machine.forget_signals(waiting.task)
    again = futex.machine.start(waiting.task, "restart_syscall")
    assert again.asleep
    assert futex.call(abi.FUTEX_WAKE, 1) == 1
    assert again.result() == 0


def test_in_place_a_call_that_waits_leaves_and_has_done_nothing(futex: Futex) -> None:
    futex.task.in_place = True
    futex.set(futex.machine.thread().tid, futex.other)
    for op in (abi.FUTEX_WAIT, abi.FUTEX_WAIT_BITSET, abi.FUTEX_WAIT_REQUEUE_PI):
        with pytest.raises(LeaveGuest):
            futex.call(op, 0, 0, futex.other, 1)
    before = futex.get(futex.other)
    with pytest.raises(LeaveGuest):
        futex.call(abi.FUTEX_LOCK_PI, at=futex.other)
    assert futex.get(futex.other) == before
    assert len(futex.machine.kernel.futexes) == 0
    assert not futex.machine.kernel.futexes.owned
    assert futex.call(abi.FUTEX_WAKE, 1) == 0
    futex.task.in_place = False


# Requeue


def test_requeue_wakes_and_moves(futex: Futex) -> None:
    waiting = [futex.wait() for _ in range(5)]
    assert futex.call(abi.FUTEX_CMP_REQUEUE | PRIVATE, 1, 2, futex.other, 0) == 3
    assert waiting[0].result() == 0
    assert futex.call(abi.FUTEX_WAKE | PRIVATE, 9, at=futex.other) == 2
    assert (waiting[1].result(), waiting[2].result()) == (0, 0)
    assert futex.call(abi.FUTEX_REQUEUE | PRIVATE, 0, 1, futex.other) == 1
    assert futex.call(abi.FUTEX_WAKE | PRIVATE, 9) == 1
    assert waiting[4].result() == 0
    assert futex.call(abi.FUTEX_WAKE | PRIVATE, 9, at=futex.other) == 1


def test_requeue_to_itself_keeps_the_order(futex: Futex) -> None:
    first, second = futex.wait(), futex.wait()
    assert futex.call(abi.FUTEX_REQUEUE | PRIVATE, 0, 1, futex.word) == 1
    assert futex.call(abi.FUTEX_WAKE | PRIVATE, 1) == 1
    assert first.result() == 0
    assert second.asleep


def test_errors_of_requeue(futex: Futex) -> None:
    futex.set(3)
    assert futex.call(abi.FUTEX_CMP_REQUEUE, 1, 1, futex.other, 4) == -errno.EAGAIN
    assert futex.call(abi.FUTEX_CMP_REQUEUE, -1, 1, futex.other, 3) == -errno.EINVAL
    assert futex.call(abi.FUTEX_CMP_REQUEUE, 1, -1, futex.other, 3) == -errno.EINVAL
    assert futex.call(abi.FUTEX_CMP_REQUEUE, 1, 1, futex.other + 2, 3) == -errno.EINVAL
    assert futex.call(abi.FUTEX_CMP_REQUEUE, 1, 1, 4096, 3) == -errno.EFAULT
    assert futex.call(abi.FUTEX_CMP_REQUEUE, 1, 1, futex.other, 3) == 0


# FUTEX_WAKE_OP


def encode(op: int, oparg: int, cmp: int, cmparg: int) -> int:
    return op << 28 | cmp << 24 | (oparg & 0xFFF) << 12 | cmparg & 0xFFF


@pytest.mark.parametrize(
    ("op", "oparg", "before", "after"),
    [
        (abi.FUTEX_OP_SET, 5, 7, 5),
        (abi.FUTEX_OP_SET, -1, 7, 0xFFFFFFFF),
        (abi.FUTEX_OP_ADD, 5, 0xFFFFFFFE, 3),
        (abi.FUTEX_OP_ADD, -8, 7, 0xFFFFFFFF),
        (abi.FUTEX_OP_OR, 0x11, 0x10000002, 0x10000013),
        (abi.FUTEX_OP_ANDN, 0x3, 0x10000007, 0x10000004),
        (abi.FUTEX_OP_XOR, 0x7FF, 0x1, 0x7FE),
        (abi.FUTEX_OP_SET | 8, 31, 0, 1 << 31),
        (abi.FUTEX_OP_OR | 8, 33, 0, 2),
        (abi.FUTEX_OP_ANDN | 8, 0, 3, 2),
    ],
)
def test_wake_op_changes_the_word(futex: Futex, op: int, oparg: int, before: int, after: int) -> None:
    futex.set(before, futex.other)
    assert futex.call(abi.FUTEX_WAKE_OP, 1, 1, futex.other, encode(op, oparg, 0, 0)) == 0
    assert futex.get(futex.other) == after


@pytest.mark.parametrize("old", [-2, -1, 0, 1, 5])
@pytest.mark.parametrize("cmparg", [-2048, -1, 0, 1, 2047])
def test_wake_op_compares_signed(futex: Futex, old: int, cmparg: int) -> None:
    wanted = [old == cmparg, old != cmparg, old < cmparg, old <= cmparg, old > cmparg, old >= cmparg]
    for cmp, met in enumerate(wanted):
        futex.set(old, futex.other)
        task = futex.machine.thread()
        waiting = futex.machine.start(task, "futex", futex.other, abi.FUTEX_WAIT, old & 0xFFFFFFFF)
        op = encode(abi.FUTEX_OP_ADD, 1, cmp, cmparg)
        assert futex.call(abi.FUTEX_WAKE_OP, 1, 1, futex.other, op) == met
        assert waiting.asleep != met
        futex.call(abi.FUTEX_WAKE, 1, at=futex.other)
        assert waiting.result() == 0


def test_wake_op_wakes_both(futex: Futex) -> None:
    first = [futex.wait() for _ in range(3)]
    second = [
        futex.machine.start(futex.machine.thread(), "futex", futex.other, abi.FUTEX_WAIT | PRIVATE, 0) for _ in range(3)
    ]
    assert futex.call(abi.FUTEX_WAKE_OP | PRIVATE, 2, 1, futex.other, encode(abi.FUTEX_OP_SET, 1, 0, 0)) == 3
    assert [call.asleep for call in first] == [False, False, True]
    assert [call.asleep for call in second] == [False, True, True]


def test_errors_of_wake_op(futex: Futex) -> None:
    futex.set(7, futex.other)
    assert futex.call(abi.FUTEX_WAKE_OP, 1, 1, futex.other, encode(5, 0, 0, 0)) == -errno.ENOSYS
    assert futex.get(futex.other) == 7
    assert futex.call(abi.FUTEX_WAKE_OP, 1, 1, futex.other, encode(0, 9, 6, 0)) == -errno.ENOSYS
    assert futex.get(futex.other) == 9, "an unknown comparison is found out too late"
    assert futex.call(abi.FUTEX_WAKE_OP, 1, 1, 4096, 0) == -errno.EFAULT
    assert futex.call(abi.FUTEX_WAKE_OP | PRIVATE, 1, 1, 4096, 0) == -errno.EFAULT


def test_sign_extension() -> None:
    assert [_sign_extend_12(v) for v in (0, 0x7FF, 0x800, 0xFFF, 0x1FFF)] == [0, 2047, -2048, -1, -1]


# futex_waitv and the calls of Linux 6.7


def waitv(futex: Futex, *entries: tuple[int, int, int, int]) -> int:
    at = futex.machine.data + 8192
    futex.memory.write(at, b"".join(struct.pack("<QQII", *entry) for entry in entries))
    return at


def call(futex: Futex, name: str, *arguments: int) -> int:
    try:
        return futex.machine.world.call(name, *arguments)
    except SysError as error:
        return -error.errno


def test_waitv_tells_who_was_woken(futex: Futex) -> None:
    entries = [(0, futex.word + 4 * i, 2 | PRIVATE, 0) for i in range(3)]
    for index in range(3):
        waiting = futex.machine.start(futex.machine.thread(), "futex_waitv", waitv(futex, *entries), 3)
        assert waiting.asleep
        assert futex.call(abi.FUTEX_WAKE | PRIVATE, 1, at=futex.word + 4 * index) == 1
        assert waiting.result() == index
        assert len(futex.machine.kernel.futexes) == 0


def test_errors_of_waitv(futex: Futex) -> None:
    good = (0, futex.word, 2, 0)
    at = waitv(futex, good)
    assert call(futex, "futex_waitv", at, 1, 1) == -errno.EINVAL
    assert call(futex, "futex_waitv", at, 0) == -errno.EINVAL
    assert call(futex, "futex_waitv", at, 129) == -errno.EINVAL
    assert call(futex, "futex_waitv", 0, 1) == -errno.EINVAL
    assert call(futex, "futex_waitv", 4096, 1) == -errno.EFAULT
    assert call(futex, "futex_waitv", at, 1, 0, futex.timespec(1), 7) == -errno.EINVAL
    assert call(futex, "futex_waitv", at, 1, 0, 4096, 1) == -errno.EFAULT
    assert call(futex, "futex_waitv", at, 1, 0, futex.timespec(0), 1) == -errno.ETIMEDOUT
    for bad in (
        (0, futex.word, 0, 0),
        (0, futex.word, 3, 0),
        (0, futex.word, 6, 0),
        (0, futex.word, 2, 1),
        (1 << 32, futex.word, 2, 0),
    ):
        assert call(futex, "futex_waitv", waitv(futex, good, bad), 2) == -errno.EINVAL
    assert call(futex, "futex_waitv", waitv(futex, good, (1, futex.other, 2, 0)), 2) == -errno.EAGAIN
    assert call(futex, "futex_waitv", waitv(futex, good, (0, futex.other + 1, 2, 0)), 2) == -errno.EINVAL


def test_the_new_calls(futex: Futex) -> None:
    flags = abi.FUTEX2_SIZE_U32 | PRIVATE
    waiting = futex.machine.start(futex.machine.thread(), "futex_wait", futex.word, 0, 2, flags)
    assert call(futex, "futex_wake", futex.word, 2, 0, flags) == 0, "none means none here"
    assert call(futex, "futex_wake", futex.word, 1, 1, flags) == 0
    assert call(futex, "futex_wake", futex.word, 3, 1, flags) == 1
    assert waiting.result() == 0
    waiting = futex.machine.start(futex.machine.thread(), "futex_wait", futex.word, 0, 1, flags)
    both = waitv(futex, (0, futex.word, flags, 0), (0, futex.other, flags, 0))
    assert call(futex, "futex_requeue", both, 0, 0, 1) == 1
    assert call(futex, "futex_wake", futex.other, 1, 1, flags) == 1
    assert waiting.result() == 0


def test_errors_of_the_new_calls(futex: Futex) -> None:
    flags = abi.FUTEX2_SIZE_U32
    for bad in (0, 1, 3, 4 | 2, 64 | 2, 1 << 31 | 2):
        assert call(futex, "futex_wake", futex.word, 1, 1, bad) == -errno.EINVAL
        assert call(futex, "futex_wait", futex.word, 1, 1, bad) == -errno.EINVAL
    assert call(futex, "futex_wake", futex.word, 0, 1, flags) == -errno.EINVAL
    assert call(futex, "futex_wake", futex.word, 1 << 32, 1, flags) == -errno.EINVAL
    assert call(futex, "futex_wait", futex.word, 1 << 32, 1, flags) == -errno.EINVAL
    assert call(futex, "futex_wait", futex.word, 0, 1 << 32, flags) == -errno.EINVAL
    assert call(futex, "futex_wait", futex.word, 0, 0, flags) == -errno.EINVAL
    assert call(futex, "futex_wait", futex.word, 1, 1, flags) == -errno.EAGAIN
    assert call(futex, "futex_wait", futex.word, 0, 1, flags, futex.timespec(0), 1) == -errno.ETIMEDOUT
    assert call(futex, "futex_wait", futex.word, 0, 1, flags, futex.timespec(0), 2) == -errno.EINVAL
    both = waitv(futex, (0, futex.word, flags, 0), (0, futex.other, flags | PRIVATE, 0))
    assert call(futex, "futex_requeue", both, 0, 0, 1) == -errno.EINVAL
    assert call(futex, "futex_requeue", both, 1, 0, 1) == -errno.EINVAL
    assert call(futex, "futex_requeue", 0, 0, 0, 1) == -errno.EINVAL


def test_a_signal_restarts_the_new_waits_from_their_start(futex: Futex) -> None:
    at = futex.timespec(1 << 40)
    for name, arguments in (
        ("futex_wait", (futex.word, 0, 1, 2, at, 1)),
        ("futex_waitv", (waitv(futex, (0, futex.word, 2, 0)), 1, 0, at, 1)),
    ):
        waiting = futex.machine.start(futex.machine.thread(), name, *arguments)
        futex.machine.signal(waiting.task)
        with pytest.raises(Interrupted) as caught:
            waiting.result()
        assert caught.value.restart == ERESTARTSYS
        assert waiting.task.restart_block is None


# clear_child_tid


def test_a_thread_that_ends_wakes_its_joiner(futex: Futex) -> None:
    ending = futex.machine.thread()
    futex.set(ending.tid)
    ending.clear_child_tid = futex.word
    joining = futex.machine.start(futex.machine.thread(), "futex", futex.word, abi.FUTEX_WAIT, ending.tid)
    ending.release_memory_locked()
    assert joining.result() == 0
    assert futex.get() == 0
    assert futex.machine.kernel.futexes.wake_address_locked(ending, 4096, 1) == 0


# Words


def test_words_are_changed_with_the_guest_held_and_its_code_forgotten(
    futex: Futex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an accelerator whose guest code is not atomic, and that keeps translations of code."""
    kernel = futex.machine.kernel
    events: list[str] = []

    @contextlib.contextmanager
    def exclusive() -> Iterator[None]:
        events.append("held")
        yield
        events.append("let go")

    monkeypatch.setattr(kernel.accelerator, "exclusive", exclusive)
    monkeypatch.setattr(kernel.memory, "code_written", lambda address, size: events.append(f"wrote {size}"))
    for op, val3 in ((abi.FUTEX_WAKE_OP, 0), (abi.FUTEX_LOCK_PI, 0), (abi.FUTEX_UNLOCK_PI, 0)):
        events.clear()
        assert futex.call(op | PRIVATE, 1, 0, futex.other, val3) == 0
        assert events == ["held", "let go", "wrote 4"], op
