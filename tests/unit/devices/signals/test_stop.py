"""Job control: a process stops as a whole, SIGCONT and the end wake it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devices.errors import TaskExit
from devices.signals.abi import (
    SIGCONT,
    SIGKILL,
    SIGRTMIN,
    SIGSTOP,
    SIGTERM,
    SIGTSTP,
    SIGTTIN,
    SIGTTOU,
    SIGUSR1,
)
from devices.signals.delivery import deliver_locked, pending_locked
from devices.signals.send import send_locked
from devices.signals.stop import orphaned_locked
from tests.unit.devices.signals.support import HANDLER, Blocked, World, catch, cpu_of
from vmm.cpu import RIP

if TYPE_CHECKING:
    from devices.task.task import Task


@pytest.fixture
def world() -> World:
    return World()


def stopped(world: World, task: Task) -> Blocked:
    waiting = Blocked(world, task, lambda: deliver_locked(task))
    assert waiting.alive
    return waiting


def test_all_tasks_stop_and_go_on(world: World) -> None:
    process = world.process(threads=3)
    first, second, third = process.tasks.values()
    send_locked(process, SIGSTOP)
    one = stopped(world, first)
    assert second.work
    assert third.work
    assert pending_locked(second)
    two, three = stopped(world, second), stopped(world, third)
    assert process.pending.stop_signal == SIGSTOP
    assert not pending_locked(first)
    send_locked(process, SIGCONT)
    for waiting in (one, two, three):
        waiting.finish()
    assert not process.pending.stop_signal
    assert not any(pending_locked(t) for t in process.tasks.values())


def test_other_signals_wait_while_it_is_stopped(world: World) -> None:
    task = world.task()
    catch(task.process, SIGUSR1)
    send_locked(task, SIGSTOP)
    waiting = stopped(world, task)
    send_locked(task, SIGUSR1)
    send_locked(task.process, SIGTERM)  # fatal, but only once it goes on
    assert waiting.alive
    assert not task.process.exiting
    catch(task.process, SIGTERM)
    send_locked(task.process, SIGCONT)
    waiting.finish()
    assert cpu_of(task).regs[RIP] == HANDLER
    assert not pending_locked(task)


def test_a_notice_alone_does_not_wake_it(world: World) -> None:
    task = world.task()
    catch(task.process, SIGRTMIN)
    send_locked(task, SIGSTOP)
    waiting = stopped(world, task)
    send_locked(task, SIGRTMIN)
    task.notify_locked()
    waiting = again(world, waiting, task)
    send_locked(task.process, SIGCONT)
    waiting.finish()
    assert cpu_of(task).regs[RIP] == HANDLER


def again(world: World, waiting: Blocked, task: Task) -> Blocked:
    """Wait until the task has looked and sleeps again."""
    import time

    while task.work:
        world.kernel.lock.release()
        time.sleep(0)
        world.kernel.lock.acquire()
    assert waiting.alive
    return waiting


def test_sigkill_ends_a_stopped_process(world: World) -> None:
    process = world.process(threads=2)
    send_locked(process, SIGSTOP)
    waiting = [stopped(world, task) for task in process.tasks.values()]
    send_locked(process, SIGKILL)
    for one in waiting:
        with pytest.raises(TaskExit):
            one.finish()
    assert process.status == SIGKILL


def test_sigcont_with_a_handler_runs_it(world: World) -> None:
    task = world.task()
    catch(task.process, SIGCONT)
    send_locked(task, SIGSTOP)
    waiting = stopped(world, task)
    send_locked(task.process, SIGCONT)
    waiting.finish()
    assert cpu_of(task).regs[RIP] == HANDLER


def test_a_stop_may_be_followed_by_another(world: World) -> None:
    task = world.task()
    send_locked(task, SIGSTOP)
    waiting = stopped(world, task)
    send_locked(task.process, SIGCONT)
    send_locked(task, SIGSTOP)
    assert waiting.alive
    send_locked(task.process, SIGCONT)
    waiting.finish()


@pytest.mark.parametrize("signo", [SIGTSTP, SIGTTIN, SIGTTOU])
def test_terminal_stops_do_nothing_in_an_orphaned_group(world: World, signo: int) -> None:
    task = world.task()
    assert orphaned_locked(task.process)
    send_locked(task, signo)
    deliver_locked(task)
    assert not task.process.pending.stop_signal


def test_terminal_stops_stop_where_a_shell_could_continue(world: World) -> None:
    world.process(50, sid=50)
    process = world.process(100, parent_pid=50, sid=50)
    assert not orphaned_locked(process)
    send_locked(process, SIGTSTP)
    waiting = stopped(world, process.tasks[100])
    assert process.pending.stop_signal == SIGTSTP
    send_locked(process, SIGCONT)
    waiting.finish()


def test_a_parent_of_another_session_or_of_the_group_does_not_count(world: World) -> None:
    world.process(50)
    assert orphaned_locked(world.process(100, parent_pid=50))
    world.process(60, sid=50, pgid=100)
    assert orphaned_locked(world.process(101, parent_pid=60, sid=50, pgid=100))
