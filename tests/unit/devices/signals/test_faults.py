"""CPU exceptions and page faults: signal, si_code, si_addr and what the frame says about them.

The expectations were seen on Linux, with a handler that shows its siginfo_t and sigcontext.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from devices.errors import TaskExit
from devices.memory.faults import MemoryFault
from devices.signals import fpstate
from devices.signals.abi import (
    BUS_ADRALN,
    BUS_ADRERR,
    FPE_FLTDIV,
    FPE_FLTINV,
    FPE_FLTOVF,
    FPE_FLTRES,
    FPE_FLTUND,
    FPE_INTDIV,
    ILL_ILLOPN,
    SEGV_ACCERR,
    SEGV_MAPERR,
    SI_KERNEL,
    SIG_IGN,
    SIGBUS,
    SIGFPE,
    SIGILL,
    SIGSEGV,
    SIGTRAP,
    TRAP_BRKPT,
    TRAP_TRACE,
)
from devices.signals.delivery import deliver_locked
from devices.signals.faults import exception_locked, fault_locked
from devices.signals.queue import Action
from tests.unit.devices.signals.support import CODE, World, catch, cpu_of, pending, signals
from vmm import cpu
from vmm.cpu import FIXED_RFLAGS, RFLAGS, RIP

if TYPE_CHECKING:
    from devices.task.task import Task

AT = CODE + 0x40
TABLE = [
    (cpu.DE, 0, SIGFPE, FPE_INTDIV, AT),
    (cpu.BP, 0, SIGTRAP, SI_KERNEL, 0),
    (cpu.OF, 0, SIGSEGV, SI_KERNEL, 0),
    (cpu.BR, 0, SIGSEGV, SI_KERNEL, 0),
    (cpu.UD, 0, SIGILL, ILL_ILLOPN, AT),
    (cpu.TS, 0x18, SIGSEGV, SI_KERNEL, 0),
    (cpu.NP, 0x18, SIGBUS, SI_KERNEL, 0),
    (cpu.SS, 0, SIGBUS, SI_KERNEL, 0),
    (cpu.GP, 0x102, SIGSEGV, SI_KERNEL, 0),
    (cpu.AC, 0, SIGBUS, BUS_ADRALN, 0),
]


@pytest.fixture
def task() -> Task:
    task = World().task()
    cpu_of(task).regs[RIP] = AT
    for signo in (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP):
        catch(task.process, signo)
    task.pending.trap = (14, 7, 0xABCD)
    return task


@pytest.mark.parametrize(("vector", "error", "signo", "code", "address"), TABLE)
def test_exceptions(task: Task, vector: int, error: int, signo: int, code: int, address: int) -> None:
    exception_locked(task, vector, error)
    assert [(i.signo, i.code, i.address) for i in pending(task)] == [(signo, code, address)]
    assert task.pending.trap == (vector, error, 0xABCD)
    assert task.work


@pytest.mark.parametrize("vector", [cpu.NMI, cpu.NM, cpu.DF, cpu.MC, 32, 255])
def test_what_no_program_can_cause(task: Task, vector: int) -> None:
    with pytest.raises(ValueError, match="vector"):
        exception_locked(task, vector, 0)


@pytest.mark.parametrize(
    ("flags", "before", "code"),
    [
        (0x100, 0x90, TRAP_TRACE),
        (0, 0xF1, TRAP_BRKPT),
        (0, 0x9D, TRAP_TRACE),  # POPF that clears TF
        (0x100, 0xF1, TRAP_TRACE),
    ],
)
def test_debug(task: Task, flags: int, before: int, code: int) -> None:
    cpu_of(task).regs[RFLAGS] = FIXED_RFLAGS | flags
    task.memory.write(AT - 1, bytes([before]))
    exception_locked(task, cpu.DB, 0)
    assert [(i.signo, i.code, i.address) for i in pending(task)] == [(SIGTRAP, code, AT)]
    assert cpu_of(task).regs[RFLAGS] == FIXED_RFLAGS | flags


def test_debug_at_the_start_of_nothing(task: Task) -> None:
    cpu_of(task).regs[RIP] = 0
    exception_locked(task, cpu.DB, 0)
    assert [i.code for i in pending(task)] == [TRAP_TRACE]


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (0x01, FPE_FLTINV),
        (0x04, FPE_FLTDIV),
        (0x08, FPE_FLTOVF),
        (0x02, FPE_FLTUND),
        (0x10, FPE_FLTUND),
        (0x20, FPE_FLTRES),
    ],
)
def test_floating_point(task: Task, raised: int, code: int) -> None:
    area = bytearray(cpu_of(task).area)
    # everything is raised, one thing is unmasked
    struct.pack_into("<HH", area, fpstate.FCW, 0x37F & ~raised, 0x3F)
    struct.pack_into("<I", area, fpstate.MXCSR, 0x1F80 & ~(raised << 7) | 0x3F)
    cpu_of(task).area = bytes(area)
    for vector in (cpu.MF, cpu.XM):
        exception_locked(task, vector, 0)
        assert [(i.signo, i.code, i.address) for i in pending(task)] == [(SIGFPE, code, AT)]
        assert task.pending.trap[0] == vector


def test_a_spurious_floating_point_exception(task: Task) -> None:
    for vector in (cpu.MF, cpu.XM):
        exception_locked(task, vector, 0)
    assert not pending(task)
    assert not task.work


@pytest.mark.parametrize(
    ("signo", "code", "address", "error", "shown"),
    [
        (SIGSEGV, SEGV_MAPERR, 0x10, 6, 6),
        (SIGSEGV, SEGV_MAPERR, 0x10, 2, 6),  # the monitor's own access counts as the program's
        (SIGSEGV, SEGV_ACCERR, CODE, 7, 7),
        (SIGBUS, BUS_ADRERR, 0x1000, 4, 4),
        (SIGSEGV, SEGV_MAPERR, 0xFFFF_8880_0000_0000, 6, 7),  # not what is mapped there
    ],
)
def test_page_faults(task: Task, signo: int, code: int, address: int, error: int, shown: int) -> None:
    fault_locked(task, MemoryFault(signo, code, address, error))
    assert [(i.signo, i.code, i.address) for i in pending(task)] == [(signo, code, address)]
    assert task.pending.trap == (cpu.PF, shown, address)


def test_a_fault_in_its_own_handler_is_the_end(task: Task) -> None:
    fault_locked(task, MemoryFault(SIGSEGV, SEGV_MAPERR, 0, 4))
    deliver_locked(task)
    assert task.sigmask == signals(SIGSEGV)
    fault_locked(task, MemoryFault(SIGSEGV, SEGV_MAPERR, 0, 4))
    with pytest.raises(TaskExit):
        deliver_locked(task)
    assert task.process.status == SIGSEGV


def test_an_ignored_fault_is_the_end(task: Task) -> None:
    task.process.actions[SIGSEGV] = Action(SIG_IGN)
    fault_locked(task, MemoryFault(SIGSEGV, SEGV_MAPERR, 0, 4))
    with pytest.raises(TaskExit):
        deliver_locked(task)
    assert task.process.status == SIGSEGV
