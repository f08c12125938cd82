"""devices/task/exit.py, wait.py, fork.py: families of processes, without a CPU that runs them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from devices.errors import SysError
from devices.signals.abi import SA_NOCLDSTOP, SA_NOCLDWAIT, SIG_IGN, SIGCHLD, SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGUSR1
from devices.signals.queue import STOP_PENDING, Action
from devices.signals.send import send_locked
from devices.signals.stop import progress_locked, stop_locked
from devices.task.fork import CLONE_FILES, CLONE_FS, CLONE_PARENT, CLONE_THREAD, CLONE_VFORK, CLONE_VM
from devices.task.parent import CHILD, CLD_CONTINUED, CLD_EXITED, CLD_KILLED, CLD_STOPPED
from devices.task.rlimits import RLIMIT_NPROC
from devices.task.wait import P_ALL, P_PGID, P_PID, WALL, WCLONE, WCONTINUED, WEXITED, WNOHANG, WNOTHREAD, WNOWAIT
from tests.unit.devices.running import machine
from tests.unit.devices.support import World, world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.task.process import Process
    from devices.task.task import Task

WUNTRACED = WSTOPPED = 2
HANDLER = 0x1000


@pytest.fixture(name="world")
def _world() -> Iterator[World]:
    with world() as made:
        made.task.process.actions[SIGCHLD] = Action(HANDLER)
        yield made


def fork(world: World, parent: Task | None = None, flags: int = SIGCHLD) -> Task:
    tid = call(world, "clone", flags, task=parent)
    assert tid > 0
    return world.kernel.tasks[tid]


def call(world: World, name: str, *arguments: int, task: Task | None = None) -> int:
    try:
        return world.call(name, *arguments, task=task)
    except SysError as error:
        return -error.errno


def end(task: Task, status: int = 0) -> None:
    """The process ends with one exit_group."""
    process = task.process
    process.exit_group_locked(status)
    for each in list(process.tasks.values()):
        each.gone_locked()


def wait(world: World, pid: int, options: int = WNOHANG, task: Task | None = None) -> tuple[int, int]:
    """wait4: result, status."""
    caller = task or world.task
    caller.memory.write_u32(world.data, 0x5555)
    got = call(world, "wait4", pid, world.data, options, 0, task=caller)
    return got, caller.memory.read_u32(world.data)


def told(process: Process) -> tuple[int, int, int]:
    """The pending SIGCHLD: si_code, si_pid, si_status."""
    info = process.pending.take(1 << SIGCHLD - 1)
    assert info is not None, "no SIGCHLD"
    pid, _, status, _, _ = CHILD.unpack(info.tail)
    return info.code, pid, status


def stop(task: Task) -> None:
    """All tasks of the process have stopped."""
    process = task.process
    stop_locked(process, SIGSTOP)
    for each in process.tasks.values():
        each.pending.bits &= ~STOP_PENDING
    progress_locked(process)


def test_a_zombie_waits_for_its_parent(world: World) -> None:
    child = fork(world)
    pid = child.process.pid
    assert wait(world, pid) == (0, 0x5555)
    end(child, 7 << 8)
    assert child.process.zombie
    assert told(world.task.process) == (CLD_EXITED, pid, 7)
    assert call(world, "kill", pid, 0) == 0
    assert call(world, "getpgid", pid) == world.task.process.pgid
    assert wait(world, -1) == (pid, 7 << 8)
    assert pid not in world.kernel.processes
    assert not world.task.process.children
    assert wait(world, -1)[0] == -errno.ECHILD


def test_who_is_waited_for(world: World) -> None:
    first, second, clone = fork(world), fork(world), fork(world, flags=0)
    second.process.pgid = second.tid
    for task in (first, second, clone):
        end(task, SIGKILL)
    assert told(world.task.process)[0] == CLD_KILLED
    assert wait(world, clone.tid)[0] == -errno.ECHILD, "not without __WCLONE or __WALL"
    assert wait(world, first.tid, WNOHANG | WCLONE)[0] == -errno.ECHILD
    assert wait(world, -second.tid) == (second.tid, SIGKILL)
    assert wait(world, 0) == (first.tid, SIGKILL)
    assert wait(world, -1)[0] == -errno.ECHILD
    assert wait(world, -1, WNOHANG | WALL) == (clone.tid, SIGKILL)


def test_children_are_found_in_the_order_in_which_they_came(world: World) -> None:
    children = [fork(world) for _ in range(5)]
    for child in reversed(children):
        end(child)
    assert [wait(world, -1)[0] for _ in children] == [child.tid for child in children]


def test_waitid_peeks(world: World) -> None:
    child = fork(world)
    end(child, 3 << 8)
    data = world.data
    for options in (WEXITED | WNOWAIT, WEXITED):
        assert call(world, "waitid", P_PID, child.tid, data, options, 0) == 0
        assert [world.task.memory.read_i32(data + at) for at in (0, 8, 12, 24 - 8, 24)] == [
            SIGCHLD, CLD_EXITED, 0, child.tid, 3,
        ]  # fmt: skip
    assert call(world, "waitid", P_PID, child.tid, data, WEXITED, 0) == -errno.ECHILD
    assert world.task.memory.read_i32(data) == 0, "written also when it fails"
    assert call(world, "waitid", P_ALL, 0, 0, WNOHANG, 0) == -errno.EINVAL
    assert call(world, "waitid", P_PGID, -1, 0, WEXITED, 0) == -errno.EINVAL


def test_stop_and_continue_are_told_once(world: World) -> None:
    child = fork(world)
    thread = fork(world, child, CLONE_THREAD | 0x800 | CLONE_VM | CLONE_FS | CLONE_FILES)
    assert thread.process is child.process
    stop_locked(child.process, SIGSTOP)
    child.pending.bits &= ~STOP_PENDING
    progress_locked(child.process)
    assert wait(world, -1, WNOHANG | WUNTRACED) == (0, 0x5555), "one of its tasks runs on"
    thread.pending.bits &= ~STOP_PENDING
    progress_locked(child.process)
    assert told(world.task.process) == (CLD_STOPPED, child.tid, SIGSTOP)
    assert wait(world, -1) == (0, 0x5555), "not asked for"
    assert wait(world, -1, WNOHANG | WUNTRACED) == (child.tid, SIGSTOP << 8 | 0x7F)
    assert wait(world, -1, WNOHANG | WUNTRACED) == (0, 0x5555)
    send_locked(child.process, SIGCONT)
    assert told(world.task.process) == (CLD_CONTINUED, child.tid, SIGCONT)
    assert wait(world, -1, WNOHANG | WCONTINUED) == (child.tid, 0xFFFF)
    assert wait(world, -1, WNOHANG | WCONTINUED) == (0, 0x5555)
    world.task.process.actions[SIGCHLD] = Action(HANDLER, SA_NOCLDSTOP)
    stop(child)
    assert not world.task.process.pending.bits
    assert wait(world, -1, WNOHANG | WUNTRACED)[0] == child.tid


@pytest.mark.parametrize("action", [Action(SIG_IGN), Action(HANDLER, SA_NOCLDWAIT)])
def test_nobody_cares(world: World, action: Action) -> None:
    world.task.process.actions[SIGCHLD] = action
    child = fork(world)
    end(child)
    assert child.tid not in world.kernel.processes
    assert bool(world.task.process.pending.bits) == (action.handler != SIG_IGN)
    assert wait(world, -1)[0] == -errno.ECHILD


def test_orphans_go_to_the_subreaper_or_to_init(world: World) -> None:
    top = world.task
    top.process.actions.set_default(SIGCHLD)
    middle = fork(world)
    low = fork(world, middle)
    lowest, dead = fork(world, low), fork(world, low, 0)
    lowest.pdeath_signal = SIGUSR1
    end(dead, 5 << 8)
    top.process.child_subreaper = True
    end(low)
    assert lowest.process.parent is top.process
    assert lowest.process.parent_pid == top.process.pid
    assert lowest.pending.bits | lowest.process.pending.bits or lowest.process.exiting, "PR_SET_PDEATHSIG"
    assert dead.process.zombie
    assert dead.process.exit_signal == SIGCHLD
    assert wait(world, dead.tid) == (dead.tid, 5 << 8)
    top.process.child_subreaper = False
    other = fork(world, middle)
    end(middle)
    assert other.process.parent is None
    assert other.process.parent_pid == 1
    assert low.tid not in world.kernel.processes, "process 1 reaps at once"
    end(other)
    assert other.tid not in world.kernel.processes


def test_a_thread_s_children_stay_in_the_family(world: World) -> None:
    thread = fork(world, flags=CLONE_THREAD | 0x800 | CLONE_VM | CLONE_FS | CLONE_FILES)
    child = fork(world, thread)
    assert wait(world, -1, WNOHANG | WNOTHREAD)[0] == -errno.ECHILD
    assert wait(world, -1, WNOHANG | WNOTHREAD, task=thread)[0] == 0
    thread.gone_locked()
    assert child.process.parent_task is world.task
    assert wait(world, -1, WNOHANG | WNOTHREAD)[0] == 0


def test_an_orphaned_group_with_stopped_members_is_hung_up(world: World) -> None:
    middle = fork(world)
    call(world, "setpgid", 0, 0, task=middle)
    low = fork(world, middle)
    assert call(world, "setpgid", low.tid, low.tid, task=middle) == 0
    low.process.actions[SIGHUP] = low.process.actions[SIGCONT] = Action(HANDLER)
    stop(low)
    end(middle)
    assert low.process.pending.bits == 1 << SIGHUP - 1 | 1 << SIGCONT - 1
    assert not low.process.pending.stop_signal


def test_what_a_fork_shares(world: World) -> None:
    own = world.task.process
    own.actions.set_default(SIGCHLD)
    world.task.memory.write_u32(world.data, 1)
    free = world.kernel.memory.frames.free
    plain = fork(world).process
    assert plain.memory is not own.memory
    assert plain.files is not own.files
    assert plain.fs is not own.fs
    assert plain.actions is not own.actions
    assert plain.rlimits is not own.rlimits
    assert plain.memory.rlimits is plain.rlimits
    shared = fork(world, flags=CLONE_VM | CLONE_FS | CLONE_FILES | SIGCHLD).process
    assert shared.memory is own.memory
    assert shared.files is own.files
    assert shared.fs is own.fs
    sibling = fork(world, shared.leader, CLONE_PARENT | SIGCHLD).process
    assert sibling.parent is own
    for process in (shared, sibling, plain):
        assert process.leader is not None
        end(process.leader)
        assert wait(world, process.pid)[0] == process.pid
    assert world.kernel.memory.frames.free == free


def test_limits(world: World) -> None:
    task = world.task
    task.process.actions.set_default(SIGCHLD)
    kernel = world.kernel
    task.credentials = task.credentials.copy()
    task.credentials.uid = task.credentials.euid = 1000
    task.credentials.effective = 0
    task.process.rlimits[RLIMIT_NPROC] = (2, 2)
    child = fork(world)
    assert call(world, "fork") == -errno.EAGAIN
    end(child)
    assert call(world, "fork") == -errno.EAGAIN, "a zombie counts"
    wait(world, -1)
    assert call(world, "fork") > 0
    task.process.rlimits[RLIMIT_NPROC] = (1000, 1000)
    kernel.max_tasks = len(kernel.tasks)
    assert call(world, "fork") == -errno.EAGAIN


def test_vfork_waits() -> None:
    with machine() as many:
        world = many.world
        waiting = many.start(many.first, "clone", CLONE_VFORK | CLONE_VM | SIGCHLD)
        assert waiting.asleep
        child = next(iter(many.first.process.children))
        assert child.leader is not None
        many.signal(many.first)
        many.until(lambda: waiting.asleep)
        assert waiting.is_alive(), "a signal waits"
        pid = child.pid
        end(child.leader)
        assert waiting.result() == pid
        assert many.first.work
        assert wait(world, pid)[0] == pid


def test_wait_sleeps_until_a_child_ends() -> None:
    with machine() as many:
        world = many.world
        child = fork(world)
        waiting = many.start(many.first, "wait4", -1 & 0xFFFF_FFFF, 0, 0, 0)
        assert waiting.asleep
        other = fork(world)
        stop(other)
        many.until(lambda: waiting.asleep)
        end(child, 1)
        assert waiting.result() == child.tid


def test_the_end_of_a_job_takes_all_with_it(world: World) -> None:
    ended: list[Process] = []
    world.kernel.on_process_gone = ended.append
    middle = fork(world)
    low = fork(world, middle)
    end(middle)
    assert not ended
    job = world.task.process
    end(world.task)
    assert ended == [job]
    assert low.process.exiting
    assert low.process.status == SIGKILL
    low.gone_locked()
    assert not world.kernel.processes
