"""What a dying task leaves behind: robust lists, and locks with waiters (kernel/futex/core.c, futex_cleanup()).

A program links the robust locks that it holds into a list of its own and tells the kernel its head. When a task
dies, the kernel walks the list, marks each lock that still names the task as FUTEX_OWNER_DIED, and wakes a waiter.
The list is the program's memory: it may be circular, endless or point anywhere, and any problem quietly ends the
walk.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.futex import words
from devices.futex.abi import (
    FUTEX_OWNER_DIED,
    FUTEX_TID_MASK,
    FUTEX_WAITERS,
    ROBUST_LIST_LIMIT,
)

if TYPE_CHECKING:
    from devices.memory.space import AddressSpace
    from devices.task.task import Task

U64 = 0xFFFF_FFFF_FFFF_FFFF
HEAD = Struct("<QqQ")
DEATH_TRIES = 100
"""How often a word that the program keeps changing is tried."""


def exit_robust_list_locked(task: Task) -> None:
    """futex_exit_release(): walk the task's robust list, then pass on the PI locks that others wait for.

    To be called once, on the task's end, while its memory is still there and its tid is still its own.
    """
    head, task.robust_list = task.robust_list, 0
    if head:
        _walk(task, head)
    if task in task.kernel.futexes.owned:
        from devices.futex.pi import exit_pi_states_locked

        exit_pi_states_locked(task)


def _walk(task: Task, head: int) -> None:
    memory = task.memory
    try:
        entry, offset, pending = memory.read_struct(head, HEAD)
    except SysError:
        return
    for _ in range(ROBUST_LIST_LIMIT):
        if entry & ~1 == head:
            break
        following = _following(memory, entry & ~1)  # before the lock is released: its memory may be freed right after
        # A pending lock may be in the list already: not twice.
        if entry & ~1 != pending & ~1 and not _owner_died(task, (entry & ~1) + offset & U64, entry & 1, False):
            return
        if following is None:
            return
        entry = following
    if pending & ~1:
        _owner_died(task, (pending & ~1) + offset & U64, pending & 1, True)


def _following(memory: AddressSpace, entry: int) -> int | None:
    """The link in a list entry; None where it cannot be read."""
    try:
        return memory.read_u64(entry)
    except SysError:
        return None


def _owner_died(task: Task, address: int, pi: int, pending: bool) -> bool:
    """handle_futex_death(): mark one lock, if it is the task's. False ends the walk."""
    if address & 3:
        return False
    futexes = task.kernel.futexes
    try:
        for _ in range(DEATH_TRIES):
            value = words.read(task, address)
            owner = value & FUTEX_TID_MASK
            if owner != task.tid:
                # Between unlock and wake, or between wake and lock: the wake-up must not die with the task.
                if pending and not pi and (not owner or not value & FUTEX_WAITERS):
                    futexes.wake_address_locked(task, address, 1)
                return True
            if words.compare_exchange(task, address, value, value & FUTEX_WAITERS | FUTEX_OWNER_DIED):
                if not pi and value & FUTEX_WAITERS:
                    futexes.wake_address_locked(task, address, 1)
                return True
    except SysError:
        return False
    return False
