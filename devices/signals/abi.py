"""Constants, layouts and argument types of <asm/signal.h>, <asm/siginfo.h>, <asm/ucontext.h>; the kernel's names."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Annotated, Any

from devices.args import EnumSet, FlagSet, HexArg, StructArg, peek

if TYPE_CHECKING:
    from devices.args import Call
    from devices.task.task import Task

SIGNAMES = (
    "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL", "SIGUSR1", "SIGSEGV",
    "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN",
    "SIGTTOU", "SIGURG", "SIGXCPU", "SIGXFSZ", "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO", "SIGPWR", "SIGSYS",
)  # fmt: skip
"""Names of the standard signals, from 1 on."""
SIGHUP, SIGINT, SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGKILL, SIGUSR1, SIGSEGV = range(1, 12)
SIGUSR2, SIGPIPE, SIGALRM, SIGTERM, SIGSTKFLT, SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU = range(12, 23)
SIGURG, SIGXCPU, SIGXFSZ, SIGVTALRM, SIGPROF, SIGWINCH, SIGIO, SIGPWR, SIGSYS = range(23, 32)
SIGRTMIN, NSIG = 32, 64
SIGSET_SIZE = 8
"""Bytes of the kernel's sigset_t: the only size that the calls take."""


def sigmask(*signals: int) -> int:
    """The signal set with these members: bit 0 is signal 1."""
    mask = 0
    for signo in signals:
        mask |= 1 << signo - 1
    return mask


UNBLOCKABLE = sigmask(SIGKILL, SIGSTOP)
STOP_SIGNALS = sigmask(SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU)
IGNORED_BY_DEFAULT = sigmask(SIGCONT, SIGCHLD, SIGWINCH, SIGURG)
DUMPS_CORE = sigmask(
    SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGFPE, SIGSEGV, SIGBUS, SIGSYS, SIGXCPU, SIGXFSZ
)  # SIG_KERNEL_COREDUMP_MASK
SYNCHRONOUS = sigmask(SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGSYS)

SIG_DFL, SIG_IGN = 0, 1
SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK = range(3)

SA_NOCLDSTOP, SA_NOCLDWAIT, SA_SIGINFO, SA_EXPOSE_TAGBITS = 1, 2, 4, 0x800
SA_RESTORER, SA_ONSTACK, SA_RESTART, SA_NODEFER, SA_RESETHAND = (
    0x400_0000, 0x800_0000, 0x1000_0000, 0x4000_0000, 0x8000_0000,
)  # fmt: skip
SA_FLAGS = (
    SA_NOCLDSTOP | SA_NOCLDWAIT | SA_SIGINFO | SA_EXPOSE_TAGBITS
    | SA_RESTORER | SA_ONSTACK | SA_RESTART | SA_NODEFER | SA_RESETHAND
)  # fmt: skip
"""What rt_sigaction keeps (UAPI_SA_FLAGS): other bits are cleared, so that a program can see what is supported."""

SS_ONSTACK, SS_DISABLE, SS_AUTODISARM = 1, 2, 1 << 31
MINSIGSTKSZ = 2048
"""Bytes that sigaltstack asks for at least."""

SI_USER, SI_KERNEL = 0, 0x80
SI_QUEUE, SI_TIMER, SI_MESGQ, SI_ASYNCIO, SI_SIGIO, SI_TKILL, SI_DETHREAD = -1, -2, -3, -4, -5, -6, -7
SI_ASYNCNL = -60
ILL_ILLOPN = 2
FPE_INTDIV, FPE_FLTDIV, FPE_FLTOVF, FPE_FLTUND, FPE_FLTRES, FPE_FLTINV = 1, 3, 4, 5, 6, 7
SEGV_MAPERR, SEGV_ACCERR = 1, 2
BUS_ADRALN, BUS_ADRERR = 1, 2
TRAP_BRKPT, TRAP_TRACE = 1, 2
CODES_OF = {SIGILL: 11, SIGFPE: 15, SIGSEGV: 10, SIGBUS: 5, SIGTRAP: 6, SIGCHLD: 6, SIGIO: 6, SIGSYS: 2}
"""NSIGILL, NSIGFPE...: how many positive codes a signal with codes of its own has."""
NSIGPOLL = 6

SIGINFO_SIZE = 128
KERNEL_SIGINFO_SIZE = 48
"""Bytes of siginfo_t that the kernel keeps; the rest is zero."""

CAP_KILL = 5
RLIMIT_SIGPENDING = 11
NR_RESTART_SYSCALL = 219
SYSCALL_LENGTH = 2
"""Bytes of the SYSCALL instruction: how far RIP goes back for another go."""

SIGACTION = struct.Struct("<4Q")
"""struct sigaction as the kernel has it: sa_handler, sa_flags, sa_restorer, sa_mask."""
STACK = struct.Struct("<Qi4xQ")
"""stack_t: ss_sp, ss_flags, ss_size."""

UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS = 1, 2, 4
SIGCONTEXT = struct.Struct("<18Q4H5Q64x")
"""struct sigcontext: the registers as frame.py has them in ORDER, cs gs fs ss, err trapno oldmask cr2 fpstate."""
UCONTEXT = struct.Struct(f"<QQ{STACK.size}s{SIGCONTEXT.size}sQ")
"""struct ucontext: uc_flags, uc_link, uc_stack, uc_mcontext, uc_sigmask."""
FRAME_SIZE = 8 + UCONTEXT.size + SIGINFO_SIZE
"""struct rt_sigframe: the return address, the ucontext, the siginfo."""

FXSAVE_SIZE = 512
XSAVE_HEADER_SIZE = 64
SW_RESERVED = 464
"""Where in the FXSAVE area struct _fpx_sw_bytes lies."""
FPX_SW_BYTES = struct.Struct("<IIQI28x")
"""magic1, extended_size, xfeatures, xstate_size."""
FP_XSTATE_MAGIC1, FP_XSTATE_MAGIC2 = 0x4650_5853, 0x4650_5845
XFEATURE_FP, XFEATURE_SSE, XFEATURE_YMM, XFEATURE_AVX512 = 1, 2, 4, 0xE0

# Argument types

SIGNALS = {name: number for number, name in enumerate(SIGNAMES, 1)} | {
    f"SIGRT_{n - SIGRTMIN}": n for n in range(SIGRTMIN, NSIG + 1)
}
Signal = Annotated[int, EnumSet(SIGNALS)]
SigHow = Annotated[int, EnumSet({"SIG_BLOCK": SIG_BLOCK, "SIG_UNBLOCK": SIG_UNBLOCK, "SIG_SETMASK": SIG_SETMASK})]


SHOW_FLAGS = FlagSet(
    {
        "SA_NOCLDSTOP": SA_NOCLDSTOP,
        "SA_NOCLDWAIT": SA_NOCLDWAIT,
        "SA_SIGINFO": SA_SIGINFO,
        "SA_EXPOSE_TAGBITS": SA_EXPOSE_TAGBITS,
        "SA_RESTORER": SA_RESTORER,
        "SA_ONSTACK": SA_ONSTACK,
        "SA_RESTART": SA_RESTART,
        "SA_NODEFER": SA_NODEFER,
        "SA_RESETHAND": SA_RESETHAND,
    },
    code="{r}",
)


def show_set(mask: int) -> str:
    """A signal set as strace prints it: [HUP INT], ~[] for a full one."""
    names = [name.removeprefix("SIG") for name, number in SIGNALS.items()]
    inverted = mask.bit_count() >= NSIG * 2 // 3
    if inverted:
        mask ^= (1 << NSIG) - 1
    members = " ".join(name for bit, name in enumerate(names) if mask >> bit & 1)
    return f"{'~' if inverted else ''}[{members}]"


class SigsetArg(HexArg):
    """A pointer to a sigset_t."""

    __slots__ = ()

    def show(self, task: Task, register: int, call: Call) -> str:
        failed = self.late and call.result is not None and call.result < 0
        raw = peek(task, register, SIGSET_SIZE) if register and not failed else None
        return super().show(task, register, call) if raw is None else show_set(int.from_bytes(raw, "little"))


class SigsetOutArg(SigsetArg):
    __slots__ = ()
    late = True


class SigactionArg(HexArg):
    """A pointer to a struct sigaction: {handler, mask, flags, restorer}."""

    __slots__ = ()

    def show(self, task: Task, register: int, call: Call) -> str:
        failed = self.late and call.result is not None and call.result < 0
        raw = peek(task, register, SIGACTION.size) if register and not failed else None
        if raw is None:
            return super().show(task, register, call)
        handler, flags, restorer, mask = SIGACTION.unpack(raw)
        name = {SIG_DFL: "SIG_DFL", SIG_IGN: "SIG_IGN"}.get(handler) or hex(handler)
        shown = SHOW_FLAGS.show(task, flags, call)
        return f"{{sa_handler={name}, sa_mask={show_set(mask)}, sa_flags={shown}, sa_restorer={restorer:#x}}}"


class SigactionOutArg(SigactionArg):
    __slots__ = ()
    late = True


STACK_FIELDS: Any = ("stack_t", "<Qi4xQ", ("ss_sp", "ss_flags", "ss_size"))
SigsetPtr = Annotated[int, SigsetArg("const sigset_t *")]
SigsetOut = Annotated[int, SigsetOutArg("sigset_t *")]
SigactionPtr = Annotated[int, SigactionArg("const struct sigaction *")]
SigactionOut = Annotated[int, SigactionOutArg("struct sigaction *")]
StackPtr = Annotated[int, StructArg(*STACK_FIELDS)]
StackOut = Annotated[int, StructArg(*STACK_FIELDS, late=True)]
