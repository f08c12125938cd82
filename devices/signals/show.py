"""How strace prints a siginfo_t: the name of si_code, and the fields that such a signal has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.signals.abi import (
    SI_ASYNCIO,
    SI_ASYNCNL,
    SI_DETHREAD,
    SI_KERNEL,
    SI_MESGQ,
    SI_QUEUE,
    SI_SIGIO,
    SI_TIMER,
    SI_TKILL,
    SI_USER,
    SIGBUS,
    SIGFPE,
    SIGILL,
    SIGSEGV,
    SIGTRAP,
)

if TYPE_CHECKING:
    from devices.signals.info import SigInfo

GENERAL = {
    SI_USER: "SI_USER", SI_KERNEL: "SI_KERNEL", SI_QUEUE: "SI_QUEUE", SI_TIMER: "SI_TIMER", SI_MESGQ: "SI_MESGQ",
    SI_ASYNCIO: "SI_ASYNCIO", SI_SIGIO: "SI_SIGIO", SI_TKILL: "SI_TKILL", SI_DETHREAD: "SI_DETHREAD",
    SI_ASYNCNL: "SI_ASYNCNL",
}  # fmt: skip
FAULTS = {
    SIGILL: (
        "ILL_ILLOPC", "ILL_ILLOPN", "ILL_ILLADR", "ILL_ILLTRP", "ILL_PRVOPC", "ILL_PRVREG", "ILL_COPROC", "ILL_BADSTK",
    ),
    SIGFPE: (
        "FPE_INTDIV", "FPE_INTOVF", "FPE_FLTDIV", "FPE_FLTOVF", "FPE_FLTUND", "FPE_FLTRES", "FPE_FLTINV", "FPE_FLTSUB",
    ),
    SIGSEGV: ("SEGV_MAPERR", "SEGV_ACCERR", "SEGV_BNDERR", "SEGV_PKUERR"),
    SIGBUS: ("BUS_ADRALN", "BUS_ADRERR", "BUS_OBJERR", "BUS_MCEERR_AR", "BUS_MCEERR_AO"),
    SIGTRAP: ("TRAP_BRKPT", "TRAP_TRACE", "TRAP_BRANCH", "TRAP_HWBKPT", "TRAP_UNK"),
}  # fmt: skip


def describe(info: SigInfo) -> tuple[str, str]:
    """The name of si_code, and what else there is to say (`si_addr=0x10`)."""
    names = FAULTS.get(info.signo)
    if names and 0 < info.code < SI_KERNEL:
        name = names[info.code - 1] if info.code <= len(names) else hex(info.code)
        return name, f"si_addr={info.address:#x}" if info.address else "si_addr=NULL"
    name = GENERAL.get(info.code) or hex(info.code & 0xFFFF_FFFF)
    if info.code == SI_KERNEL:
        return name, ""
    if info.code == SI_TIMER:
        return name, f"si_timerid={info.pid:#x}, si_overrun={info.uid}, {value(info)}"
    detail = f"si_pid={info.pid}, si_uid={info.uid}"
    return name, detail if info.code in (SI_USER, SI_TKILL) else f"{detail}, {value(info)}"


def value(info: SigInfo) -> str:
    number = (info.value & 0xFFFF_FFFF ^ 1 << 31) - (1 << 31)
    return f"si_value={{int={number}, ptr={hex(info.value) if info.value else 'NULL'}}}"
