"""The guest's 32-bit words, as the futex calls read and change them.

Guest threads change the same words at the same moment on other cores. Reading one aligned word is a single load;
every change is a LOCK instruction of the host on the word's place in guest RAM (vmm/memory/atomics.py), inside the
accelerator's `exclusive()` for guest code that is not atomic itself.
"""

from __future__ import annotations

import errno
import operator
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.futex.abi import FUTEX_OP_ANDN, FUTEX_OP_OPARG_SHIFT
from vmm.layout import TASK_SIZE

if TYPE_CHECKING:
    from collections.abc import Hashable

    from devices.kernel import Kernel
    from devices.task.task import Task
    from vmm.memory.atomics import Atomics

TRIES = 16
"""How often a compare-and-exchange is tried again before the kernel lock is given up for a moment."""
COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)
"""By FUTEX_OP_CMP_*."""


def key_of(task: Task, address: int, shared: bool, write: bool = False) -> Hashable:
    """get_futex_key(): what two tasks must agree on to mean the same futex.

    EINVAL for an address that is not a multiple of 4; EFAULT outside of the program's half, and for a shared futex also
    where nothing is mapped, or (`write`) mapped read-only. A private futex is never the same as a shared one, not even
    in private memory: Linux tells the two apart.
    """
    if address & 3:
        raise SysError(errno.EINVAL, "futex word not aligned")
    if address > TASK_SIZE - 4:
        raise SysError(errno.EFAULT)
    memory = task.memory
    if shared and write:
        memory.frame_of(address, True)
    return (memory.futex_key(address, shared), shared)


def read(task: Task, address: int) -> int:
    """The word at `address`. EFAULT."""
    return task.memory.read_u32(address)


def atomics_of(kernel: Kernel) -> Atomics:
    """The machine's atomic operations, made when first needed."""
    atomics = kernel.futexes.atomics
    if atomics is None:
        from vmm.memory.atomics import Atomics

        atomics = kernel.futexes.atomics = Atomics(kernel.memory.ram)
    return atomics


def compare_exchange(task: Task, address: int, expected: int, new: int) -> bool:
    """Store `new` if the word at `address` in the task's memory is `expected`; was it? EFAULT."""
    kernel = task.kernel
    memory = task.memory
    cmpxchg = atomics_of(kernel).cmpxchg_u32
    physical = memory.frame_of(address, True)
    with kernel.accelerator.exclusive():
        old = cmpxchg(physical, expected, new)
    memory.machine.code_written(physical, 4)
    return old == expected


def breathe(task: Task, tries: int, restart: int) -> None:
    """Between two tries of a change that the guest keeps spoiling: every TRIES of them let others have the kernel lock.

    Raises Interrupted when a signal waits and LeaveGuest in place, so that no guest can hold the monitor this way.
    """
    if tries % TRIES == TRIES - 1:
        task.check_may_wait_locked(restart)
        with task.unlocked():
            pass


# FUTEX_WAKE_OP


def operate(task: Task, address: int, encoded: int) -> bool:
    """futex_atomic_op_inuser(): change the word as `encoded` says and compare what it was; does the comparison hold?

    ENOSYS for an unknown operation, and for an unknown comparison when the word has been changed; EFAULT.
    """
    operation = encoded >> 28 & 7
    argument = _sign_extend_12(encoded >> 12)
    if encoded >> 28 & FUTEX_OP_OPARG_SHIFT:
        argument = 1 << (argument & 31)
    kernel = task.kernel
    atomics = atomics_of(kernel)
    operations = (
        atomics.xchg_u32,
        atomics.fetch_add_u32,
        atomics.fetch_or_u32,
        atomics.fetch_and_u32,
        atomics.fetch_xor_u32,
    )
    if operation >= len(operations):
        raise SysError(errno.ENOSYS, "unknown FUTEX_OP")
    if operation == FUTEX_OP_ANDN:
        argument = ~argument
    physical = task.memory.frame_of(address, True)
    with kernel.accelerator.exclusive():
        old = operations[operation](physical, argument & 0xFFFF_FFFF)
    task.memory.machine.code_written(physical, 4)
    comparison = encoded >> 24 & 15
    if comparison >= len(COMPARISONS):
        raise SysError(errno.ENOSYS, "unknown FUTEX_OP_CMP")
    return bool(COMPARISONS[comparison]((old ^ 0x8000_0000) - 0x8000_0000, _sign_extend_12(encoded)))


def _sign_extend_12(value: int) -> int:
    return (value & 0xFFF ^ 0x800) - 0x800
