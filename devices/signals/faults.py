"""CPU exceptions and page faults become signals that the task cannot escape (arch/x86/kernel/traps.c, mm/fault.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.signals import fpstate
from devices.signals.abi import (
    BUS_ADRALN,
    FPE_FLTDIV,
    FPE_FLTINV,
    FPE_FLTOVF,
    FPE_FLTRES,
    FPE_FLTUND,
    FPE_INTDIV,
    ILL_ILLOPN,
    SI_KERNEL,
    SIGBUS,
    SIGFPE,
    SIGILL,
    SIGSEGV,
    SIGTRAP,
    TRAP_BRKPT,
    TRAP_TRACE,
)
from devices.signals.frame import TF
from devices.signals.info import SigInfo
from devices.signals.send import force_locked
from vmm.cpu import AC, BP, BR, DB, DE, GP, MF, NP, OF, PF, PF_PRESENT, PF_USER, RFLAGS, RIP, SS, TS, UD, XM
from vmm.layout import TASK_SIZE

if TYPE_CHECKING:
    from devices.memory.faults import MemoryFault
    from devices.task.task import Task

SIGNAL_OF = {
    DE: (SIGFPE, FPE_INTDIV),
    BP: (SIGTRAP, SI_KERNEL),
    OF: (SIGSEGV, SI_KERNEL),
    BR: (SIGSEGV, SI_KERNEL),
    UD: (SIGILL, ILL_ILLOPN),
    TS: (SIGSEGV, SI_KERNEL),
    NP: (SIGBUS, SI_KERNEL),
    SS: (SIGBUS, SI_KERNEL),
    GP: (SIGSEGV, SI_KERNEL),
    AC: (SIGBUS, BUS_ADRALN),
}
"""Vector -> signal and si_code, where nothing else decides."""
WITH_ADDRESS = (DE, UD)
"""Of those, the ones whose si_addr is the instruction."""
ICEBP = b"\xf1"
"""The one-byte instruction (INT1) that raises #DB without TF."""
FLOAT_CODES = ((0x01, FPE_FLTINV), (0x04, FPE_FLTDIV), (0x08, FPE_FLTOVF), (0x12, FPE_FLTUND), (0x20, FPE_FLTRES))
"""Exception bits of the x87 status word and of MXCSR, in the order of fpu__exception_code()."""


def fault_locked(task: Task, problem: MemoryFault) -> None:
    """A page fault that means a signal."""
    error = problem.error | PF_USER
    if problem.address >= TASK_SIZE:
        error |= PF_PRESENT  # a program must not learn what is mapped there (sanitize_error_code())
    task.pending.trap = (PF, error, problem.address)
    force_locked(task, SigInfo.fault(problem.signal, problem.code, problem.address))


def exception_locked(task: Task, vector: int, error: int) -> None:
    """An exception of `vector`, its error code 0 if it has none. ValueError for one that no program can cause."""
    if vector == DB:
        info = _debug(task)
    elif vector in (MF, XM):
        code = _float_code(task, vector)
        if not code:
            return  # spurious: the instruction is tried again
        info = SigInfo.fault(SIGFPE, code, task.cpu.save()[RIP])
    elif vector in SIGNAL_OF:
        signo, code = SIGNAL_OF[vector]
        info = SigInfo.fault(signo, code, task.cpu.save()[RIP] if vector in WITH_ADDRESS else 0)
    else:
        raise ValueError(f"exception vector {vector} with error code {error:#x}")
    task.pending.trap = (vector, error, task.pending.trap[2])
    force_locked(task, info)


def _debug(task: Task) -> SigInfo:
    """#DB: a single step, or INT1. TF stays as it is: the handler starts without, the program goes on with it."""
    state = task.cpu.save()
    rip = state[RIP]
    code = TRAP_TRACE
    if not state[RFLAGS] & TF:  # INT1, or a POPF that ended the stepping
        try:
            code = TRAP_BRKPT if task.memory.read(rip - 1, 1) == ICEBP else TRAP_TRACE
        except SysError:
            code = TRAP_TRACE
    return SigInfo.fault(SIGTRAP, code, rip)


def _float_code(task: Task, vector: int) -> int:
    """si_code out of the status words (fpu__exception_code()); 0 when no exception is unmasked."""
    area = task.cpu.get_fpu()
    if vector == MF:
        control = int.from_bytes(area[fpstate.FCW : fpstate.FCW + 2], "little")
        raised = int.from_bytes(area[fpstate.FSW : fpstate.FSW + 2], "little") & ~control
    else:
        mxcsr = int.from_bytes(area[fpstate.MXCSR : fpstate.MXCSR + 4], "little")
        raised = mxcsr & ~(mxcsr >> 7)
    return next((code for bits, code in FLOAT_CODES if raised & bits), 0)
