"""Generation: who is told, what is dropped, what is kept, who may send."""

from __future__ import annotations

import errno

import pytest

from devices.errors import SysError
from devices.signals import send
from devices.signals.abi import (
    CAP_KILL,
    SI_KERNEL,
    SI_QUEUE,
    SI_TKILL,
    SIG_IGN,
    SIGABRT,
    SIGCHLD,
    SIGCONT,
    SIGINT,
    SIGKILL,
    SIGRTMIN,
    SIGSEGV,
    SIGSTOP,
    SIGTERM,
    SIGTSTP,
    SIGTTIN,
    SIGUSR1,
    SIGUSR2,
)
from devices.signals.info import SigInfo
from devices.signals.queue import Action
from devices.task.process import Credentials
from devices.task.rlimits import RLIMIT_SIGPENDING
from tests.unit.devices.signals.support import FakeTracer, World, catch, pending, signals


@pytest.fixture
def world() -> World:
    return World()


def test_a_standard_signal_is_pending_once(world: World) -> None:
    task = world.task()
    catch(task.process, SIGUSR1)
    for pid in (1, 2, 3):
        send.send_locked(task, SIGUSR1, SigInfo(SIGUSR1, 0, bytes(4) + bytes([pid])))
    send.send_locked(task.process, SIGUSR1)
    assert [(i.code, i.pid) for i in pending(task)] == [(0, 1), (SI_KERNEL, 0)]


def test_ignored_signals_are_dropped_unless_blocked(world: World) -> None:
    task = world.task()
    task.process.actions[SIGUSR1] = Action(SIG_IGN)
    send.send_locked(task, SIGUSR1)
    send.send_locked(task.process, SIGCHLD)
    assert not pending(task)
    assert not task.work
    task.sigmask = signals(SIGUSR1, SIGCHLD)
    send.send_locked(task, SIGUSR1)
    send.send_locked(task.process, SIGCHLD)
    assert [i.signo for i in pending(task)] == [SIGUSR1, SIGCHLD]
    assert not task.work


def test_the_leader_is_told_first(world: World) -> None:
    process = world.process(threads=3)
    catch(process, SIGUSR1)
    send.send_locked(process, SIGUSR1)
    assert [t.work for t in process.tasks.values()] == [True, False, False]


def test_threads_that_do_not_block_it_take_turns(world: World) -> None:
    process = world.process(threads=4)
    tasks = list(process.tasks.values())
    for signo in (SIGUSR1, SIGUSR2, SIGRTMIN, SIGRTMIN + 1):
        catch(process, signo)
    tasks[0].sigmask = tasks[2].sigmask = signals(SIGUSR1, SIGUSR2, SIGRTMIN, SIGRTMIN + 1)
    send.send_locked(process, SIGUSR1)
    assert [t.work for t in tasks] == [False, True, False, False]
    send.send_locked(process, SIGUSR2)
    assert [t.work for t in tasks] == [False, True, False, True]
    send.send_locked(process, SIGRTMIN)  # all that could take it will look anyway; somebody is told all the same
    assert [t.work for t in tasks] == [False, True, False, True]


def test_a_leader_that_is_to_look_anyway_leaves_it_to_another(world: World) -> None:
    process = world.process(threads=2)
    catch(process, SIGUSR1)
    catch(process, SIGUSR2)
    first, second = process.tasks.values()
    send.send_locked(first, SIGUSR2)
    send.send_locked(process, SIGUSR1)
    assert second.work
    second.sigmask = signals(SIGUSR1)
    second.work = first.work = False
    send.send_locked(first, SIGUSR2)
    first.work = True
    process.pending.take(signals(SIGUSR1))
    send.send_locked(process, SIGUSR1)  # nobody else takes it
    assert not second.work


def test_nobody_is_told_of_what_all_block(world: World) -> None:
    process = world.process(threads=2)
    catch(process, SIGUSR1)
    for task in process.tasks.values():
        task.sigmask = signals(SIGUSR1)
    send.send_locked(process, SIGUSR1)
    assert not any(t.work for t in process.tasks.values())
    assert process.pending.bits == signals(SIGUSR1)


def test_a_directed_signal_stays_with_its_task(world: World) -> None:
    process = world.process(threads=2)
    catch(process, SIGUSR1)
    first, second = process.tasks.values()
    second.sigmask = signals(SIGUSR1)
    send.send_locked(second, SIGUSR1)
    assert not first.work
    assert not second.work
    assert second.pending.bits == signals(SIGUSR1)


def test_a_fatal_signal_ends_the_process_at_once(world: World) -> None:
    world.kernel.tracer = FakeTracer()
    process = world.process(threads=2)
    send.send_locked(process, SIGTERM)
    assert (process.exiting, process.status) == (True, SIGTERM)
    assert [line[1:3] for line in world.kernel.tracer.lines] == [(SIGTERM, "SI_KERNEL")]


def test_a_signal_that_dumps_core_waits_for_its_task(world: World) -> None:
    task = world.task()
    send.send_locked(task, SIGABRT)
    assert not task.process.exiting
    assert task.work


def test_sigkill_ends_a_process_that_blocks_everything(world: World) -> None:
    task = world.task()
    task.sigmask = (1 << 64) - 1
    send.kill_process_locked(task.process)
    assert (task.process.exiting, task.process.status) == (True, SIGKILL)
    send.send_locked(task.process, SIGTERM)
    assert task.process.status == SIGKILL


def test_a_blocked_fatal_signal_is_not_fatal(world: World) -> None:
    task = world.task()
    task.sigmask = signals(SIGTERM)
    send.send_locked(task.process, SIGTERM)
    assert not task.process.exiting
    send.set_mask_locked(task, 0)
    assert task.work


def test_stop_and_continue_cancel_each_other(world: World) -> None:
    process = world.process(threads=2)
    catch(process, SIGCONT)
    first, second = process.tasks.values()
    for signo in (SIGTSTP, SIGTTIN, SIGSTOP):
        send.send_locked(second, signo)
    send.send_locked(process, SIGTSTP)
    send.send_locked(process, SIGCONT)
    assert not second.pending.bits
    assert process.pending.bits == signals(SIGCONT)
    assert first.work
    send.send_locked(second, SIGSTOP)
    assert not process.pending.bits
    assert second.pending.bits == signals(SIGSTOP)


def test_sigcont_that_is_ignored_still_takes_back_the_stop(world: World) -> None:
    task = world.task()
    task.process.actions[SIGCONT] = Action(SIG_IGN)
    send.send_locked(task, SIGSTOP)
    send.send_locked(task.process, SIGCONT)
    assert not pending(task)


def test_rlimit_sigpending(world: World) -> None:
    process = world.process(threads=2)
    task, other = process.tasks.values()
    process.rlimits[RLIMIT_SIGPENDING] = (2, 2)
    catch(process, SIGRTMIN)
    catch(process, SIGUSR1)
    task.sigmask = other.sigmask = signals(SIGRTMIN, SIGUSR1)
    send.send_locked(task, SIGRTMIN, SigInfo(SIGRTMIN, SI_QUEUE))
    send.send_locked(other, SIGRTMIN, SigInfo(SIGRTMIN, SI_QUEUE))
    for target in (task, process):
        with pytest.raises(SysError) as raised:
            send.send_locked(target, SIGRTMIN, SigInfo(SIGRTMIN, SI_QUEUE))
        assert raised.value.errno == errno.EAGAIN
    # kill() and tgkill() do not fail, they lose what the signal says about itself
    send.send_locked(process, SIGRTMIN, SigInfo(SIGRTMIN, 0, bytes(4) + bytes([9])))
    send.send_locked(process, SIGUSR1, SigInfo(SIGUSR1, SI_TKILL, bytes(4) + bytes([9])))
    assert [(i.signo, i.code, i.pid) for i in pending(task)] == [
        (SIGRTMIN, SI_QUEUE, 0),
        (SIGUSR1, 0, 0),
        (SIGRTMIN, 0, 0),
    ]
    # a fault's siginfo is kept whatever the limit
    process.rlimits[RLIMIT_SIGPENDING] = (0, 0)
    send.force_locked(task, SigInfo.fault(SIGSEGV, 1, 0x1234))
    assert [i.address for i in pending(task)] == [0x1234]


def test_the_limit_is_the_users(world: World) -> None:
    ours, theirs = world.process(100), world.process(200)
    world.thread(theirs, 201, uid=7)
    catch(ours, SIGRTMIN)
    catch(theirs, SIGRTMIN)
    for task in (*ours.tasks.values(), *theirs.tasks.values()):
        task.sigmask = signals(SIGRTMIN)
        send.send_locked(task, SIGRTMIN, SigInfo(SIGRTMIN, SI_QUEUE))
    send.send_locked(ours, SIGRTMIN, SigInfo(SIGRTMIN, SI_QUEUE))
    kernel = ours.kernel
    assert send.queued_for_user_locked(kernel, 0) == 3
    assert send.queued_for_user_locked(kernel, 7) == 1


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("handler", [0, SIG_IGN, 0x1000])
def test_forced_signals_cannot_be_escaped(world: World, blocked: bool, handler: int) -> None:
    task = world.task()
    task.process.actions[SIGSEGV] = Action(handler)
    task.sigmask = signals(SIGSEGV) if blocked else 0
    send.force_locked(task, SigInfo.fault(SIGSEGV, 1, 0))
    assert task.sigmask == 0
    assert task.pending.bits == signals(SIGSEGV)
    assert task.work
    kept = handler == 0x1000 and not blocked
    assert task.process.actions[SIGSEGV].handler == (handler if kept else 0)


def test_blocking_hands_a_signal_on(world: World) -> None:
    process = world.process(threads=3)
    first, second, third = process.tasks.values()
    catch(process, SIGUSR1)
    second.sigmask = signals(SIGUSR1)
    send.send_locked(process, SIGUSR1)
    assert [first.work, second.work, third.work] == [True, False, False]
    send.set_mask_locked(first, signals(SIGUSR1))
    assert [second.work, third.work] == [False, True]


def test_exit_hands_a_signal_on(world: World) -> None:
    process = world.process(threads=2)
    first, second = process.tasks.values()
    catch(process, SIGUSR1)
    send.send_locked(process, SIGUSR1)
    send.task_exits_locked(first)
    assert second.work


def test_the_mask_cannot_hold_kill_and_stop(world: World) -> None:
    task = world.task()
    send.set_mask_locked(task, (1 << 64) - 1)
    assert task.sigmask == (1 << 64) - 1 & ~signals(SIGKILL, SIGSTOP)


def test_signals_from_the_host(world: World) -> None:
    task = world.task()
    catch(task.process, SIGINT)
    catch(task.process, SIGTERM)
    send.send_from_host_locked(task.process, SIGINT)
    send.send_from_host_locked(task.process, SIGTERM)
    assert [(i.signo, i.code, i.pid) for i in pending(task)] == [(SIGINT, SI_KERNEL, 0), (SIGTERM, 0, 0)]
    with pytest.raises(ValueError, match="65"):
        send.send_from_host_locked(task.process, 65)


def permitted(world: World, sender: Credentials, target: Credentials, signo: int = SIGUSR1, *, sid: int = 100) -> bool:
    one, two = world.process(100), world.process(200, sid=sid)
    one.tasks[100].credentials = sender
    two.tasks[200].credentials = target
    try:
        send.check_permission(one.tasks[100], two, signo, SigInfo(signo, 0))
    except SysError as error:
        return error.errno != errno.EPERM
    return True


def ids(uid: int, euid: int, suid: int) -> Credentials:
    credentials = Credentials(uid)
    credentials.euid, credentials.suid = euid, suid
    return credentials


@pytest.mark.parametrize(
    ("sender", "target", "allowed"),
    [
        (ids(0, 0, 0), ids(5, 5, 5), True),
        (ids(5, 5, 5), ids(0, 0, 0), False),
        (ids(5, 5, 5), ids(5, 0, 0), True),
        (ids(5, 5, 5), ids(0, 0, 5), True),
        (ids(5, 5, 5), ids(0, 5, 0), False),  # the effective id of the target does not count
        (ids(6, 5, 6), ids(5, 0, 0), True),
        (ids(6, 7, 5), ids(5, 5, 5), False),  # nor the saved one of the sender
    ],
)
def test_who_may_send(world: World, sender: Credentials, target: Credentials, allowed: bool) -> None:
    assert permitted(world, sender, target) == allowed


def test_sigcont_may_go_to_the_own_session(world: World) -> None:
    assert permitted(World(), ids(5, 5, 5), ids(6, 6, 6), SIGCONT)
    assert not permitted(World(), ids(5, 5, 5), ids(6, 6, 6), SIGCONT, sid=9)


def test_cap_kill(world: World) -> None:
    sender = ids(5, 5, 5)
    sender.effective = 1 << CAP_KILL
    assert permitted(world, sender, ids(0, 0, 0))


@pytest.mark.parametrize("signo", [-1, 65, 1 << 30])
def test_no_such_signal(world: World, signo: int) -> None:
    task = world.task()
    with pytest.raises(SysError) as raised:
        send.check_permission(task, task.process, signo, SigInfo(signo, 0))
    assert raised.value.errno == errno.EINVAL
