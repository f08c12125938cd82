"""The calls, as the bus makes them: results, errors and what they copy in and out."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest

from devices.bus import DECLARED
from devices.errors import ERESTARTNOHAND, Interrupted, LeaveGuest, SysError
from devices.signals import syscalls
from devices.signals.abi import (
    KERNEL_SIGINFO_SIZE,
    SA_FLAGS,
    SI_QUEUE,
    SI_TKILL,
    SI_USER,
    SIG_BLOCK,
    SIG_IGN,
    SIG_SETMASK,
    SIG_UNBLOCK,
    SIGACTION,
    SIGCHLD,
    SIGKILL,
    SIGRTMIN,
    SIGSTOP,
    SIGUSR1,
    SIGUSR2,
    SS_AUTODISARM,
    SS_DISABLE,
    SS_ONSTACK,
    STACK,
)
from devices.signals.info import SigInfo
from devices.signals.send import send_locked
from devices.task.process import Credentials
from devices.task.task import Task
from tests.unit.devices.signals.support import (
    DATA,
    HANDLER,
    RESTORER,
    STACK_TOP,
    U64,
    Blocked,
    World,
    catch,
    cpu_of,
    pending,
    signals,
)
from vmm.cpu import RSP

IN, OUT, BAD = DATA, DATA + 0x200, 0x10
SECOND_NS = 10**9


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def task(world: World) -> Task:
    return world.task()


def fails(number: int, call: Any, *arguments: Any) -> None:
    with pytest.raises(SysError) as raised:
        call(*arguments)
    assert raised.value.errno == number, raised.value


def test_every_call_of_the_table_is_declared() -> None:
    from devices.table import TABLE

    ours = {entry.name for entry in TABLE.values() if entry.module == "devices.signals.syscalls"}
    assert ours <= set(DECLARED)
    assert len(ours) == 14


# sigaction


def test_sigaction_sets_and_tells(task: Task) -> None:
    task.memory.write(IN, SIGACTION.pack(HANDLER, U64, RESTORER, U64))
    assert syscalls.rt_sigaction(task, SIGUSR1, IN, OUT, 8) == 0
    assert task.memory.read(OUT, 32) == bytes(32)
    assert syscalls.rt_sigaction(task, SIGUSR1, 0, OUT, 8) == 0
    everything = U64 & ~signals(SIGKILL, SIGSTOP)
    assert SIGACTION.unpack(task.memory.read(OUT, 32)) == (HANDLER, SA_FLAGS, RESTORER, everything)
    assert SA_FLAGS == 0xDC00_0807


def test_sigaction_errors(task: Task) -> None:
    call = syscalls.rt_sigaction
    for signum in (0, -1, 65, SIGKILL, SIGSTOP):
        fails(errno.EINVAL, call, task, signum, IN, 0, 8)
    for size in (0, 4, 16, U64):
        fails(errno.EINVAL, call, task, SIGUSR1, IN, 0, size)
    fails(errno.EFAULT, call, task, 99, BAD, 0, 8)
    fails(errno.EINVAL, call, task, 99, 0, BAD, 8)
    assert call(task, SIGKILL, 0, OUT, 8) == 0
    task.memory.write(IN, SIGACTION.pack(HANDLER, 0, 0, 0))
    fails(errno.EFAULT, call, task, SIGUSR1, IN, BAD, 8)
    assert task.process.actions[SIGUSR1].handler == HANDLER  # as the kernel: the change stays


@pytest.mark.parametrize(("signo", "handler"), [(SIGUSR1, SIG_IGN), (SIGCHLD, 0)])
def test_ignoring_discards_what_is_pending(world: World, signo: int, handler: int) -> None:
    process = world.process(threads=2)
    first, second = process.tasks.values()
    catch(process, signo)
    second.sigmask = first.sigmask = signals(signo)
    for target in (first, second, process):
        send_locked(target, signo)
    first.memory.write(IN, SIGACTION.pack(handler, 0, 0, 0))
    syscalls.rt_sigaction(first, signo, IN, 0, 8)
    assert [first.pending.bits, second.pending.bits, process.pending.bits] == [0, 0, 0]


# Masks


def test_sigprocmask(task: Task) -> None:
    def mask(how: int, value: int) -> int:
        task.memory.write_u64(IN, value)
        assert syscalls.rt_sigprocmask(task, how, IN, OUT, 8) == 0
        return task.memory.read_u64(OUT)

    assert mask(SIG_BLOCK, signals(1, 2, 9)) == 0
    assert mask(SIG_UNBLOCK, signals(2, 3)) == signals(1, 2)
    assert mask(SIG_SETMASK, U64) == signals(1)
    assert task.sigmask == U64 & ~signals(SIGKILL, SIGSTOP)
    assert syscalls.rt_sigprocmask(task, 77, 0, OUT, 8) == 0
    assert task.memory.read_u64(OUT) == task.sigmask


def test_sigprocmask_errors(task: Task) -> None:
    call = syscalls.rt_sigprocmask
    fails(errno.EINVAL, call, task, SIG_BLOCK, IN, OUT, 16)
    fails(errno.EFAULT, call, task, 77, BAD, 0, 8)
    fails(errno.EINVAL, call, task, 3, IN, 0, 8)
    fails(errno.EINVAL, call, task, -1, IN, 0, 8)
    task.memory.write_u64(IN, signals(1))
    fails(errno.EFAULT, call, task, SIG_BLOCK, IN, BAD, 8)
    assert task.sigmask == signals(1)


def test_unblocking_in_place_leaves_first(task: Task) -> None:
    catch(task.process, SIGUSR1)
    task.sigmask = signals(SIGUSR1, SIGUSR2)
    send_locked(task, SIGUSR1)
    task.in_place = True
    task.memory.write_u64(IN, signals(SIGUSR1))
    syscalls.rt_sigprocmask(task, SIG_SETMASK, IN, 0, 8)  # it stays blocked
    with pytest.raises(LeaveGuest):
        syscalls.rt_sigprocmask(task, SIG_UNBLOCK, IN, 0, 8)
    assert task.sigmask == signals(SIGUSR1)
    task.in_place = False
    syscalls.rt_sigprocmask(task, SIG_UNBLOCK, IN, 0, 8)
    assert task.work


def test_sigpending(task: Task) -> None:
    catch(task.process, SIGUSR1)
    task.sigmask = signals(SIGUSR1, SIGUSR2, SIGRTMIN)
    send_locked(task, SIGUSR1)
    send_locked(task.process, SIGRTMIN)
    task.memory.write_u64(OUT, U64)
    assert syscalls.rt_sigpending(task, OUT, 8) == 0
    assert task.memory.read_u64(OUT) == signals(SIGUSR1, SIGRTMIN)
    task.memory.write_u64(OUT, U64)
    syscalls.rt_sigpending(task, OUT, 2)
    assert task.memory.read_u64(OUT) == U64 & ~0xFFFF | signals(SIGUSR1)
    fails(errno.EINVAL, syscalls.rt_sigpending, task, OUT, 9)
    fails(errno.EFAULT, syscalls.rt_sigpending, task, BAD, 8)


# sigaltstack


def stack(task: Task, address: int, flags: int, size: int) -> int:
    task.memory.write(IN, STACK.pack(address, flags, size))
    return syscalls.sigaltstack(task, IN, OUT)


def current(task: Task) -> tuple[int, int, int]:
    syscalls.sigaltstack(task, 0, OUT)
    address, flags, size = STACK.unpack(task.memory.read(OUT, 24))
    return address, flags & 0xFFFF_FFFF, size


def test_sigaltstack(task: Task) -> None:
    assert current(task) == (0, SS_DISABLE, 0)
    assert stack(task, 0x1000, 0, 2048) == 0
    assert current(task) == (0x1000, 0, 2048)
    assert stack(task, 0x1000, SS_ONSTACK, 4096) == 0
    assert current(task) == (0x1000, 0, 4096)
    assert stack(task, 0x1000, SS_AUTODISARM - (1 << 32), 4096) == 0
    assert current(task) == (0x1000, SS_AUTODISARM, 4096)
    assert stack(task, 0x1000, SS_DISABLE | SS_AUTODISARM - (1 << 32), 4096) == 0
    assert current(task) == (0, SS_DISABLE | SS_AUTODISARM, 0)


def test_sigaltstack_errors(task: Task) -> None:
    fails(errno.ENOMEM, stack, task, 0x1000, 0, 2047)
    for flags in (3, 4, 1 << 30):
        fails(errno.EINVAL, stack, task, 0x1000, flags, 4096)
    fails(errno.EFAULT, syscalls.sigaltstack, task, BAD, 0)
    fails(errno.EFAULT, syscalls.sigaltstack, task, 0, BAD)


def test_sigaltstack_while_on_it(task: Task) -> None:
    stack(task, STACK_TOP - 0x4000, 0, 0x4000)
    assert cpu_of(task).regs[RSP] == STACK_TOP - 0x1000
    assert current(task)[1] == SS_ONSTACK
    fails(errno.EPERM, stack, task, 0x1000, 0, 4096)
    fails(errno.EPERM, stack, task, 0, SS_DISABLE, 0)
    cpu_of(task).regs[RSP] = STACK_TOP - 0x4000  # the lowest byte is not on it
    assert current(task)[1] == 0


# kill and its kin


def test_kill_to_the_own_process(task: Task) -> None:
    catch(task.process, SIGUSR1)
    assert syscalls.kill(task, 100, SIGUSR1) == 0
    assert syscalls.kill(task, 0, SIGRTMIN) == 0
    found = [(i.signo, i.code, i.pid, i.uid) for i in pending(task)]
    assert found == [(SIGUSR1, SI_USER, 100, 0), (SIGRTMIN, SI_USER, 100, 0)]
    assert task.process.exiting  # SIGRTMIN's default action


def test_kill_errors(world: World, task: Task) -> None:
    kill = syscalls.kill
    assert kill(task, 100, 0) == 0
    fails(errno.ESRCH, kill, task, 4000, 0)
    fails(errno.ESRCH, kill, task, 4000, 999)
    fails(errno.EINVAL, kill, task, 100, 65)
    fails(errno.EINVAL, kill, task, 100, -1)
    fails(errno.EINVAL, kill, task, 0, 65)
    fails(errno.ESRCH, kill, task, -1, 0)
    fails(errno.ESRCH, kill, task, -(1 << 31), 0)
    fails(errno.ESRCH, kill, task, -4000, 0)
    fails(errno.ESRCH, kill, task, -101, 0)


def test_kill_finds_the_process_of_a_thread(world: World) -> None:
    process = world.process(threads=2)
    first, second = process.tasks.values()
    catch(process, SIGUSR1)
    syscalls.kill(first, second.tid, SIGUSR1)
    assert process.pending.bits
    assert [first.work, second.work] == [False, True]


def test_kill_init(task: Task) -> None:
    assert syscalls.kill(task, 1, 0) == 0
    assert syscalls.kill(task, 1, SIGKILL) == 0
    fails(errno.EINVAL, syscalls.kill, task, 1, 65)
    task.credentials = Credentials(5)
    fails(errno.EPERM, syscalls.kill, task, 1, 0)


def test_kill_all_and_groups(world: World) -> None:
    one, two, three, four = (world.process(pid, pgid=pgid) for pid, pgid in ((10, 10), (20, 10), (30, 30), (40, 30)))
    for process in (one, two, three, four):
        catch(process, SIGUSR1)
    sender = one.tasks[10]
    syscalls.kill(sender, 0, SIGUSR1)
    assert [bool(p.pending.bits) for p in (one, two, three, four)] == [True, True, False, False]
    syscalls.kill(sender, -30, SIGUSR1)
    assert all(p.pending.bits for p in (three, four))
    for process in (one, two, three, four):
        process.pending.take(U64)
    syscalls.kill(sender, -1, SIGUSR1)
    assert [bool(p.pending.bits) for p in (one, two, three, four)] == [False, True, True, True]


def test_kill_a_group_needs_one_that_may_be_sent_to(world: World) -> None:
    ours, theirs = world.process(10, pgid=7), world.process(20, pgid=7)
    catch(ours, SIGUSR1)
    ours.tasks[10].credentials = Credentials(5)
    assert syscalls.kill(ours.tasks[10], -7, SIGUSR1) == 0
    assert not theirs.pending.bits
    theirs.pgid = 8
    fails(errno.EPERM, syscalls.kill, ours.tasks[10], -8, SIGUSR1)
    assert syscalls.kill(ours.tasks[10], -1, SIGUSR1) == 0  # EPERM does not count


def test_tgkill(world: World) -> None:
    process = world.process(threads=2)
    first, second = process.tasks.values()
    catch(process, SIGUSR1)
    assert syscalls.tgkill(first, 100, 101, SIGUSR1) == 0
    assert syscalls.tkill(first, 101, 0) == 0
    assert [(i.code, i.pid) for i in pending(second)] == [(SI_TKILL, 100)]
    for tgid, tid in ((0, 101), (-1, 101), (100, 0), (100, -1)):
        fails(errno.EINVAL, syscalls.tgkill, first, tgid, tid, 0)
    fails(errno.ESRCH, syscalls.tgkill, first, 101, 101, 0)
    fails(errno.ESRCH, syscalls.tgkill, first, 100, 999, 0)
    fails(errno.EINVAL, syscalls.tgkill, first, 100, 101, 65)
    fails(errno.EINVAL, syscalls.tkill, first, 0, 0)
    fails(errno.ESRCH, syscalls.tkill, first, 999, 0)


def siginfo(code: int, value: int = 0x1234_5678_9ABC_DEF0, tail: bytes = b"") -> bytes:
    return (struct.pack("<iiiiiiQ", 99, 0, code, 0, 42, 43, value) + bytes(16) + tail).ljust(128, b"\0")


def test_sigqueue(task: Task) -> None:
    task.sigmask = signals(SIGRTMIN)
    task.memory.write(IN, siginfo(SI_QUEUE))
    assert syscalls.rt_sigqueueinfo(task, 100, SIGRTMIN, IN) == 0
    assert syscalls.rt_tgsigqueueinfo(task, 100, 100, SIGRTMIN, IN) == 0
    for info in pending(task):
        assert (info.signo, info.code, info.pid, info.uid) == (SIGRTMIN, SI_QUEUE, 42, 43)
        assert info.value == 0x1234_5678_9ABC_DEF0


def test_sigqueue_errors(world: World, task: Task) -> None:
    other = world.process(200)
    queue, directed = syscalls.rt_sigqueueinfo, syscalls.rt_tgsigqueueinfo
    fails(errno.EFAULT, queue, task, 4000, SIGUSR1, BAD)
    for code in (SI_USER, SI_TKILL, 1, 0x80):
        task.memory.write(IN, siginfo(code))
        fails(errno.EPERM, queue, task, 200, SIGUSR1, IN)
        fails(errno.EPERM, directed, task, 200, 200, SIGUSR1, IN)
        assert queue(task, 100, 0, IN) == 0  # to itself a program may say anything
    task.memory.write(IN, siginfo(SI_QUEUE))
    assert queue(task, 200, 0, IN) == 0
    fails(errno.ESRCH, queue, task, 4000, 0, IN)
    fails(errno.EINVAL, queue, task, 200, 65, IN)
    fails(errno.ESRCH, queue, task, -5, 0, IN)
    for tgid, tid in ((0, 200), (200, 0), (-1, 200)):
        fails(errno.EINVAL, directed, task, tgid, tid, 0, IN)
    assert not other.pending.bits


def test_a_siginfo_with_more_than_the_kernel_keeps(task: Task) -> None:
    task.sigmask = signals(SIGUSR1)
    task.memory.write(IN, siginfo(-100, tail=b"\0" * 60 + b"\1"))
    fails(errno.E2BIG, syscalls.rt_sigqueueinfo, task, 100, SIGUSR1, IN)
    task.memory.write(IN, siginfo(-100))
    assert syscalls.rt_sigqueueinfo(task, 100, SIGUSR1, IN) == 0
    end = DATA + 4 * 4096 - KERNEL_SIGINFO_SIZE
    task.memory.write(end, siginfo(SI_QUEUE)[:KERNEL_SIGINFO_SIZE])
    assert syscalls.rt_sigqueueinfo(task, 100, SIGUSR1, end) == 0
    task.memory.write(end, siginfo(-100)[:KERNEL_SIGINFO_SIZE])
    fails(errno.EFAULT, syscalls.rt_sigqueueinfo, task, 100, SIGUSR1, end)


# Waiting


def test_pause_and_sigsuspend_see_what_is_pending(task: Task) -> None:
    catch(task.process, SIGUSR1)
    task.sigmask = signals(SIGUSR1)
    send_locked(task, SIGUSR1)
    task.memory.write_u64(IN, U64 & ~signals(SIGUSR1))
    with pytest.raises(Interrupted) as raised:
        syscalls.rt_sigsuspend(task, IN, 8)
    assert raised.value.restart == ERESTARTNOHAND
    assert task.saved_sigmask == signals(SIGUSR1)
    assert task.sigmask == U64 & ~signals(SIGUSR1, SIGKILL, SIGSTOP)
    with pytest.raises(Interrupted):
        syscalls.pause(task)
    fails(errno.EINVAL, syscalls.rt_sigsuspend, task, IN, 4)
    fails(errno.EFAULT, syscalls.rt_sigsuspend, task, BAD, 8)


def test_pause_sleeps_until_a_signal(world: World, task: Task) -> None:
    catch(task.process, SIGUSR1)
    waiting = Blocked(world, task, lambda: syscalls.pause(task))
    send_locked(task.process, SIGUSR1)
    with pytest.raises(Interrupted):
        waiting.finish()


def test_restart_syscall(task: Task) -> None:
    fails(errno.EINTR, syscalls.restart_syscall, task)
    task.restart_block = lambda task: task.tid
    assert syscalls.restart_syscall(task) == 100
    fails(errno.EINTR, syscalls.restart_syscall, task)


def wait(task: Task, *numbers: int, timeout: int | None = None) -> int:
    task.memory.write_u64(IN, signals(*numbers))
    if timeout is not None:
        task.memory.write(IN + 8, struct.pack("<qq", *divmod(timeout, SECOND_NS)))
    return syscalls.rt_sigtimedwait(task, IN, OUT, IN + 8 if timeout is not None else 0, 8)


def test_sigtimedwait_takes_what_is_pending(task: Task) -> None:
    task.sigmask = signals(SIGUSR1, SIGRTMIN)
    send_locked(task.process, SIGRTMIN, SigInfo(SIGRTMIN, SI_QUEUE, b"abcd" * 9))
    send_locked(task, SIGUSR1)
    task.in_place = True
    assert wait(task, SIGUSR1, SIGRTMIN) == SIGUSR1
    assert wait(task, SIGRTMIN) == SIGRTMIN
    assert task.memory.read(OUT, 128) == SigInfo(SIGRTMIN, SI_QUEUE, b"abcd" * 9).pack()
    with pytest.raises(LeaveGuest):
        wait(task, SIGRTMIN)
    task.in_place = False
    with pytest.raises(SysError) as raised:
        wait(task, SIGRTMIN, timeout=0)
    assert raised.value.errno == errno.EAGAIN


def test_sigtimedwait_errors(task: Task) -> None:
    call = syscalls.rt_sigtimedwait
    fails(errno.EINVAL, call, task, IN, 0, 0, 4)
    fails(errno.EFAULT, call, task, BAD, 0, 0, 8)
    fails(errno.EFAULT, call, task, IN, 0, BAD, 8)
    for seconds, nanoseconds in ((-1, 0), (0, SECOND_NS), (0, -1)):
        task.memory.write(IN + 8, struct.pack("<qq", seconds, nanoseconds))
        fails(errno.EINVAL, call, task, IN, 0, IN + 8, 8)


def test_sigtimedwait_sleeps(world: World, task: Task) -> None:
    task.sigmask = signals(SIGUSR1)
    waiting = Blocked(world, task, lambda: wait(task, SIGUSR1))
    send_locked(task.process, SIGUSR1)
    assert waiting.finish() == SIGUSR1
    assert not task.process.pending.waiters


def test_sigtimedwait_times_out(world: World, task: Task) -> None:
    with pytest.raises(SysError) as raised:
        wait(task, SIGUSR1, timeout=1)
    assert raised.value.errno == errno.EAGAIN


def test_sigtimedwait_is_ended_by_another_signal(world: World, task: Task) -> None:
    catch(task.process, SIGUSR2)
    waiting = Blocked(world, task, lambda: wait(task, SIGUSR1, timeout=60 * SECOND_NS))
    send_locked(task, SIGUSR2)
    with pytest.raises(SysError) as raised:
        waiting.finish()
    assert raised.value.errno == errno.EINTR
    assert task.work


def test_who_waits_is_chosen_before_who_blocks(world: World) -> None:
    process = world.process(threads=3)
    first, second, third = process.tasks.values()
    for task in process.tasks.values():
        task.sigmask = signals(SIGUSR1)
    waiting = Blocked(world, second, lambda: wait(second, SIGUSR1))
    send_locked(process, SIGUSR1)
    assert not first.work
    assert not third.work
    assert waiting.finish() == SIGUSR1


def test_a_thread_that_waits_gets_what_its_sender_directed_to_it(world: World) -> None:
    process = world.process(threads=2)
    first, second = process.tasks.values()
    second.sigmask = signals(SIGUSR1)
    waiting = Blocked(world, second, lambda: wait(second, SIGUSR1))
    syscalls.tgkill(first, 100, second.tid, SIGUSR1)
    assert waiting.finish() == SIGUSR1


def test_waiting_for_a_signal_that_is_not_blocked_does_not_save_from_it(world: World, task: Task) -> None:
    waiting = Blocked(world, task, lambda: wait(task, SIGUSR1))
    send_locked(task.process, SIGUSR1)
    assert task.process.exiting
    waiting.finish()


def test_each_waiter_gets_one(world: World) -> None:
    process = world.process(threads=3)
    first, second, third = process.tasks.values()
    for task in process.tasks.values():
        task.sigmask = signals(SIGRTMIN)
    one = Blocked(world, second, lambda: wait(second, SIGRTMIN))
    two = Blocked(world, third, lambda: wait(third, SIGRTMIN))
    send_locked(process, SIGRTMIN)
    send_locked(process, SIGRTMIN)
    assert [one.finish(), two.finish()] == [SIGRTMIN, SIGRTMIN]
    assert not process.pending.bits
    assert not first.work
