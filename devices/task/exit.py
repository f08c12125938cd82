"""The end of tasks and processes: who takes in the children, who is told, and what stays until it is waited for.

kernel/exit.c: exit_notify(), forget_original_parent(), kill_orphaned_pgrp(). Process 1 is the monitor's: it reaps what
becomes its child and ends at once.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.signals.abi import SIGCHLD, SIGCONT, SIGHUP
from devices.signals.info import SigInfo
from devices.signals.send import check_permission, kill_process_locked, send_locked
from devices.signals.stop import orphaned_locked, progress_locked
from devices.task.parent import tell_end_locked

if TYPE_CHECKING:
    from devices.task.process import Process
    from devices.task.task import Task


def thread_ends_locked(task: Task) -> None:
    """A task has left its process, which goes on."""
    process = task.process
    heir = next(iter(process.tasks.values()))
    for child in process.children:
        if child.parent_task is task:
            child.parent_task = heir
            _parent_died_locked(task, child)
    if process.exec_task is not None and len(process.tasks) == 1:
        process.exec_task.wake()
    progress_locked(process)


def process_ends_locked(process: Process, last: Task) -> None:
    """The last task of a process has ended: it gives back what it has and becomes a zombie, if its parent cares."""
    if process.real_timer is not None:
        process.real_timer.disarm()
    process.note_resident()
    process.files.release_locked()
    process.fs.release_locked()
    process.memory.leave()
    if process.executable is not None:
        process.executable.release_locked()
        process.executable = None
    process.exiting = True
    _forget_children_locked(process, last)
    if process.parent is not None:
        _check_orphaned_locked(process, process.parent)
    process.zombie = True
    if tell_end_locked(process):
        reap_locked(process)
    if process.job is process:
        _job_ends_locked(process)


def reap_locked(process: Process) -> None:
    """Nothing is left of a process (release_task())."""
    process.set_parent_locked(None)
    process.zombie = False
    process.leader = None
    process.kernel.process_gone_locked(process)


def _job_ends_locked(job: Process) -> None:
    """A program that the monitor has started takes all with it that came from it."""
    kernel = job.kernel
    for process in list(kernel.processes.values()):
        if process.job is job:
            kill_process_locked(process)
    kernel.on_process_gone(job)


# Children


def _forget_children_locked(process: Process, last: Task) -> None:
    reaper = _reaper_locked(process)
    for child in list(process.children):
        child.set_parent_locked(reaper)
        _parent_died_locked(last, child)
        child.exit_signal = SIGCHLD
        if child.zombie:
            if tell_end_locked(child):
                reap_locked(child)
        else:
            _check_orphaned_locked(child, process)


def _reaper_locked(process: Process) -> Task | None:
    """Who takes in its children: the next ancestor that has asked for it (PR_SET_CHILD_SUBREAPER), or process 1."""
    ancestor = process.parent
    while ancestor is not None:
        if ancestor.child_subreaper and ancestor.tasks and not ancestor.exiting:
            return next(iter(ancestor.tasks.values()))
        ancestor = ancestor.parent
    return None


def _parent_died_locked(parent: Task, child: Process) -> None:
    """PR_SET_PDEATHSIG: each task of the child may have asked for a signal."""
    for task in list(child.tasks.values()):
        if task.pdeath_signal:
            info = SigInfo.sent_by(parent, task.pdeath_signal)
            with suppress(SysError):
                check_permission(parent, task, task.pdeath_signal, info)
                send_locked(child, task.pdeath_signal, info, first=task)


def _check_orphaned_locked(member: Process, parent: Process) -> None:
    """`parent`, or `member` itself, ends: if that was all that tied the member's group to the rest of the session and
    something in it has stopped, nobody could continue it (kill_orphaned_pgrp())."""
    if parent.pgid == member.pgid or parent.sid != member.sid or not orphaned_locked(member):
        return
    group = [p for p in member.kernel.processes.values() if p.pgid == member.pgid]
    if any(p.stop_told and not p.exiting for p in group):
        for signo in (SIGHUP, SIGCONT):
            for process in group:
                send_locked(process, signo)
