"""What every accelerator offers: a virtual CPU that runs ring-3 code until something needs the monitor.

The protocol is small on purpose: vmm/kvm and vmm/emulator implement it, devices/ use nothing else of a CPU.
A `Cpu` belongs to one host thread; only `kick()` may be called from another one.

Registers. `cpu.regs` is a live `memoryview` of 18 unsigned 64-bit values in the order of `struct kvm_regs`; the
constants RAX...RFLAGS index it. What it holds depends on the exit that `run()` returned:

* after `SYSCALL`: RAX is the call's number, RDI RSI RDX R10 R8 R9 its arguments. The handler stores the result in
  `regs[RAX]` and calls `run()` again; nothing else may be changed this way (the return to the guest is the cheapest
  that the host has). RIP, RSP, RFLAGS, RCX and R11 of the program are to be had from `save()`.
* after every other exit: the program's registers at the instruction that was not completed.

Whoever needs the whole state (clone, exec, signals) uses `save()` and `load()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP = range(8)
R8, R9, R10, R11, R12, R13, R14, R15, RIP, RFLAGS = range(8, 18)
REGISTERS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip

USER_RFLAGS = 0x24_0DD5
"""Bits of RFLAGS that ring 3 may choose: CF PF AF ZF SF TF DF OF AC ID."""
FIXED_RFLAGS = 0x202
"""Bits that are always set in ring 3: the reserved bit 1, and IF."""

# Vectors (Intel SDM volume 3, table 6-1) and bits of a page fault's error code (section 4.7).
DE, DB, NMI, BP, OF, BR, UD, NM, DF = range(9)
TS, NP, SS, GP, PF = range(10, 15)
MF, AC, MC, XM = range(16, 20)
PF_PRESENT, PF_WRITE, PF_USER, PF_RESERVED, PF_FETCH = 1, 2, 4, 8, 16


class Exit:
    """Why `Cpu.run()` returned; one subclass a reason. An instance is valid until the same CPU runs again."""

    __slots__ = ()


class Syscall(Exit):
    """The program executed SYSCALL."""

    __slots__ = ()


class Interrupted(Exit):
    """`kick()` was called; the program is between two instructions."""

    __slots__ = ()


class PageFault(Exit):
    """#PF: `address` is CR2, `error` the error code (PF_* bits)."""

    __slots__ = ("address", "error")

    def __init__(self, address: int = 0, error: int = 0) -> None:
        self.address = address
        self.error = error


class CpuException(Exit):
    """Any other exception of the program: its `vector`, and its `error` code (0 for vectors that have none)."""

    __slots__ = ("error", "vector")

    def __init__(self, vector: int = 0, error: int = 0) -> None:
        self.vector = vector
        self.error = error


class Shutdown(Exit):
    """The virtual CPU is beyond help (triple fault); `dump` shows every register, for the log."""

    __slots__ = ("dump",)

    def __init__(self, dump: str) -> None:
        self.dump = dump


class InternalError(Exit):
    """The accelerator could not go on (KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_FAIL_ENTRY, an emulator's own error)."""

    __slots__ = ("dump", "reason")

    def __init__(self, reason: str, dump: str) -> None:
        self.reason = reason
        self.dump = dump


SYSCALL = Syscall()
INTERRUPTED = Interrupted()


class Cpu(Protocol):
    """A virtual CPU in ring 3 of an address space; owned by the host thread that runs it."""

    index: int
    """Number of the vCPU, from 0; a closed or pooled CPU's number may be used again."""
    regs: memoryview
    """18 unsigned 64-bit registers; see the module's text for what they hold when."""
    serve: Callable[[], bool] | None
    """Called by accelerators that can serve a system call without leaving the guest (the emulator; KVM ignores it),
    on the CPU's thread, with the registers as after `SYSCALL`. True: the result is in regs[RAX], the program goes on.
    False: `run()` returns SYSCALL. `save()` and fs_base may be read in it, no other state may be changed."""

    def run(self) -> Exit:
        """Run the program until something needs the monitor, and say what."""

    def save(self) -> list[int]:
        """The program's 18 registers, whatever the last exit was (after SYSCALL: RIP behind the instruction,
        RFLAGS as before it, RAX still what `regs` holds)."""

    def load(self, state: Sequence[int]) -> None:
        """Set all 18 registers. RIP must be canonical; RFLAGS is reduced to what ring 3 may choose.

        Raises ValueError for a RIP that is not canonical."""

    @property
    def fs_base(self) -> int: ...
    @fs_base.setter
    def fs_base(self, value: int) -> None: ...
    @property
    def gs_base(self) -> int: ...
    @gs_base.setter
    def gs_base(self, value: int) -> None: ...

    def get_fpu(self) -> bytes:
        """The x87, SSE and (where the CPU has it) AVX state as an XSAVE area in standard format (SDM vol. 1, 13.4)."""

    def set_fpu(self, area: bytes) -> None:
        """Set the state from an XSAVE area made by `get_fpu()` of a CPU of the same accelerator, or edited by a guest:
        reserved bits (MXCSR, XSTATE_BV, the header's) are masked, not trusted."""

    def set_address_space(self, root: int) -> None:
        """Run with the page tables whose PML4 is at guest-physical address `root` from the next `run()` on."""

    def reset(self) -> None:
        """The state of a new process: registers, FS and GS base 0, FPU initial, no pending kick, no `serve`."""

    def kick(self) -> None:
        """From any thread: make `run()` return INTERRUPTED soon; the next `run()` does if none is under way.
        Never lost; several before a return count as one. A call that has completed an exit is not undone."""

    def close(self) -> None: ...


class Tsc(Protocol):
    """The time-stamp counter of a machine's CPUs."""

    khz: int
    """Its nominal frequency."""

    def read(self, cpu: Cpu) -> int:
        """What RDTSC would give on `cpu` now; called on that CPU's own thread."""


class Accelerator(Protocol):
    """Makes CPUs over one machine's guest memory, and takes back translations that they may still hold."""

    name: str
    """`kvm` or `emulator`."""
    max_cpus: int
    populates: bool
    """True where pages that a fault maps should be populated on the host first (fact 12)."""
    large_pages: bool
    """True where 2 MiB pages make the guest faster, and revoke() suffices when one is split or a table takes its
    place."""
    discard_revokes: bool
    """True where GuestRam.discard() alone has the effect of revoke()."""
    hwcap2: int
    """AT_HWCAP2: bit 1, programs may use RDFSBASE and its like."""
    fpu_size: int
    """Length in bytes of what Cpu.get_fpu() gives."""

    @property
    def cpuid_features(self) -> int:
        """CPUID leaf 1 EDX as the guest sees it (AT_HWCAP)."""

    @property
    def tsc(self) -> Tsc | None:
        """The time-stamp counter, where all CPUs show the same one and its frequency is known."""

    def create_cpu(self) -> Cpu:
        """A new CPU, reset, for the calling thread. Raises OSError when the host refuses another one."""

    def revoke(self, address: int, length: int) -> None:
        """Page table *leaf* entries that pointed into this run of guest-physical memory were changed or cleared: when
        this returns, no CPU uses the old ones. The memory keeps its contents."""

    def revoke_all(self) -> None:
        """The same for every translation, and for entries above the leaves (dear; after fork, exec, reuse
        of a page-table frame)."""

    def forget_code(self, address: int, length: int) -> None:
        """Guest-physical memory that may have been executed was given new contents by the monitor."""

    def exclusive(self) -> AbstractContextManager[None]:
        """While it is entered, a host atomic on guest memory is atomic for the guest too. Nothing to do on KVM; the
        emulator, whose guest code is not atomic, is held between two instructions."""

    def close(self) -> None:
        """Release all that the host gave. Every CPU must have been closed."""
