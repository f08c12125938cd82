"""struct rt_sigframe: what a handler finds on its stack, and how rt_sigreturn goes back from it.

    sp before the signal
      128 bytes that the program may use below its stack pointer (the ABI's red zone)
    fpstate    the XSAVE area and its mark, 64-byte aligned
    frame      return address (sa_restorer), ucontext, siginfo; 8 below a multiple of 16, as after a CALL

arch/x86/kernel/signal.c (get_sigframe()) and signal_64.c. What comes back from the program's memory is hostile.
"""

from __future__ import annotations

import errno
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from devices.errors import SysError
from devices.signals import altstack, fpstate
from devices.signals.abi import (
    FRAME_SIZE,
    SA_ONSTACK,
    SA_RESTORER,
    SA_SIGINFO,
    SIGCONTEXT,
    SIGINFO_SIZE,
    UC_FP_XSTATE,
    UC_SIGCONTEXT_SS,
    UC_STRICT_RESTORE_SS,
    UCONTEXT,
)
from vmm.cpu import R8, RAX, RBP, RBX, RCX, RDI, RDX, RFLAGS, RIP, RSI, RSP

if TYPE_CHECKING:
    from devices.signals.info import SigInfo
    from devices.signals.queue import Action
    from devices.task.task import Task

U64 = 0xFFFF_FFFF_FFFF_FFFF
RED_ZONE = 128
ALIGNMENT = 16
USER_CS, USER_SS = 0x33, 0x2B
DF, RF, TF = 1 << 10, 1 << 16, 1 << 8
RESTORED_FLAGS = 0x5_0DD5
"""RFLAGS that rt_sigreturn takes from the frame: AC RF OF DF TF SF ZF AF PF CF (FIX_EFLAGS)."""
UC_FLAGS = UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS

ORDER = (*range(R8, R8 + 8), RDI, RSI, RBP, RBX, RDX, RAX, RCX, RSP, RIP, RFLAGS)
"""The general registers as struct sigcontext has them."""
in_order = itemgetter(*ORDER)
NO_INFO = bytes(SIGINFO_SIZE)


class Saved(NamedTuple):
    """What a frame says to go back to; `selector` is 0 or a CS or SS that the CPU would not take."""

    registers: list[int]
    mask: int
    stack: bytes
    fpstate: int
    selector: int


def minimum_stack(fpu_size: int) -> int:
    """Bytes of stack that a frame takes at most (AT_MINSIGSTKSZ), when the CPU's XSAVE area has `fpu_size`."""
    size = FRAME_SIZE + ALIGNMENT - 1 + fpu_size + fpstate.SIZE_OF_MARK + 63
    return size + ALIGNMENT - 1 & -ALIGNMENT


def push(task: Task, state: list[int], area: bytes, info: SigInfo, action: Action, mask: int) -> None:
    """Put a frame for `action`'s handler on the stack and point `state`, the program's registers, to the handler.

    `area` is the FPU state and `mask` the blocked signals that come back. SysError(EFAULT) when there is no room, or no
    SA_RESTORER, which x86-64 wants; then nothing has changed.
    """
    if not action.flags & SA_RESTORER:
        raise SysError(errno.EFAULT, "no SA_RESTORER")
    fp, frame = _place(task, state[RSP], len(area), bool(action.flags & SA_ONSTACK))
    trap, error, cr2 = task.pending.trap
    context = SIGCONTEXT.pack(*in_order(state), USER_CS, 0, 0, USER_SS, error, trap, mask, cr2, fp)
    ucontext = UCONTEXT.pack(UC_FLAGS, 0, altstack.save(task), context, mask)
    siginfo = info.pack() if action.flags & SA_SIGINFO else NO_INFO
    head = action.restorer.to_bytes(8, "little") + ucontext + siginfo
    task.memory.write(frame, head.ljust(fp - frame, b"\0") + fpstate.marked(area))
    state[RAX] = 0
    state[RDI] = info.signo
    state[RSI] = frame + 8 + UCONTEXT.size
    state[RDX] = frame + 8
    state[RSP] = frame
    state[RIP] = action.handler
    state[RFLAGS] &= ~(DF | RF | TF)


def _place(task: Task, sp: int, fpu_size: int, on_altstack: bool) -> tuple[int, int]:
    """Addresses of the FPU state and of the frame (get_sigframe()). SysError(EFAULT): beyond the alternate stack."""
    nested = altstack.in_use(task, sp)
    entering = False
    sp -= RED_ZONE
    if on_altstack and altstack.state(task, sp & U64) == 0:
        sp = task.altstack[0] + task.altstack[1]
        entering = True
    fp = sp - fpu_size - fpstate.SIZE_OF_MARK & -64
    frame = (fp - FRAME_SIZE & -ALIGNMENT) - 8
    if frame < 0 or ((nested or entering) and not altstack.within(task, frame)):
        raise SysError(errno.EFAULT, "the signal stack overflows")
    return fp, frame


def read(task: Task, state: list[int]) -> Saved:
    """The frame that the handler returned to, `state` being the registers in its rt_sigreturn. SysError(EFAULT)."""
    raw = task.memory.read(state[RSP], UCONTEXT.size)  # behind the return address, which the handler's RET took
    uc_flags, _, stack, context, mask = UCONTEXT.unpack(raw)
    values = SIGCONTEXT.unpack(context)
    registers = [0] * len(state)
    for register, value in zip(ORDER, values, strict=False):
        registers[register] = value
    registers[RFLAGS] = state[RFLAGS] & ~RESTORED_FLAGS | values[ORDER.index(RFLAGS)] & RESTORED_FLAGS
    cs, _, _, ss = values[len(ORDER) : len(ORDER) + 4]
    selector = 0
    if cs | 3 != USER_CS:
        selector = cs | 3
    elif ss | 3 != USER_SS and uc_flags & UC_STRICT_RESTORE_SS:
        selector = ss | 3
    return Saved(registers, mask, stack, values[-1], selector)
