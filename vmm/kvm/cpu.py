"""A virtual CPU on KVM: running a program, and telling why it stopped.

One exit is hot, the system call, and `run()` looks for it first. It differs by the ring that the stub runs in, so
there is a class for each (vmm/kvm/probe.py decides). The return to the program is prepared when the exit is decoded;
the next KVM_RUN needs nothing more, whatever the exit was.

All other exits end with the program's own registers in the shared page, at the instruction that was not completed:

* exceptions arrive as OUT from the entries of guest/stub.S; the CPU's frame on the vCPU's system page has the rest.
* an access to the doorbell by other code than the stub is a page fault, as on Linux, where that address is the
  kernel's. KVM has emulated the access half when it tells, so the emulation is brought to its end and its effect on
  the registers undone. RIP of a store is behind it then, for KVM does not tell its length. An instruction that KVM
  cannot emulate (AVX...) shows up as KVM_INTERNAL_ERROR_EMULATION: only the doorbell makes KVM emulate ring-3 code.

Kicks. `immediate_exit` in the shared page makes KVM_RUN return EINTR; it is set before the signal that ends a KVM_RUN
which is under way already, and stays until `run()` returns INTERRUPTED, so a kick is never lost and `run()` pays
nothing for it. A kick that finds the CPU inside the monitor's own code (stub, exception entries) waits for the exit to
which that leads, within a few instructions. A signal that is no kick restarts KVM_RUN.
"""

from __future__ import annotations

import errno
from _thread import allocate_lock
from fcntl import ioctl
from typing import TYPE_CHECKING

from vmm.cpu import (
    FIXED_RFLAGS,
    GP,
    INTERRUPTED,
    PF,
    PF_FETCH,
    PF_USER,
    PF_WRITE,
    R11,
    RCX,
    RFLAGS,
    RIP,
    RSP,
    SYSCALL,
    UD,
    USER_RFLAGS,
    CpuException,
    Exit,
    InternalError,
    PageFault,
    Shutdown,
)
from vmm.kvm import abi
from vmm.kvm.abi import KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_RUN, offsetof
from vmm.kvm.insn import interrupt_number
from vmm.kvm.kick import kicker, me
from vmm.kvm.segments import FRAME, USER_CS
from vmm.kvm.state import CR2, LOWER_HALF, REGS_DIRTY, SREGS_DIRTY, Vcpu
from vmm.kvm.stub import vector_of
from vmm.layout import DOORBELL, PAGE_SIZE, STUB, SYSTEM_CPUS

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.kvm.probe import Host
    from vmm.memory.physical import GuestRam

# Indices into the shared page: as 32-bit words, and as bytes.
_REASON = offsetof(abi.kvm_run, "exit_reason") // 4
_IO = offsetof(abi.kvm_run, "exit.io") // 4
"""The first four bytes of `io`: direction, size, port."""
_IMMEDIATE_EXIT = offsetof(abi.kvm_run, "immediate_exit")

_ERROR_CODE = frozenset((8, 10, 11, 12, 13, 14, 17, 21, 29, 30))
"""Vectors that push an error code (SDM volume 3, table 6-1; AMD APM volume 2, 8.2)."""
_TF = 1 << 8
_SETTLE_LIMIT = 1024
"""How often KVM may exit while it completes one instruction: 8 bytes an exit, 512 bytes at most (FXSAVE), twice."""


class KvmCpu(Vcpu):
    """What both kinds of hosts share; see vmm.cpu.Cpu.

    own: the monitor's own pages as 64-bit words; system_page: offset in them, in bytes, of the vCPU's; doorbell:
    guest-physical address of the doorbell's page; home: takes the CPU back when it is closed.
    """

    __slots__ = ("_doorbell", "_exception", "_fault", "_head", "_home", "_interrupt", "_kicked", "_lock",
                 "_owner", "_ram", "serve")  # fmt: skip

    ring = 3
    """In which ring the stub runs."""

    def __init__(
        self, host: Host, fd: int, run_size: int, index: int, ram: GuestRam, own: memoryview, system_page: int,
        doorbell: int, home: Callable[[KvmCpu], None],
    ) -> None:  # fmt: skip
        entry = host.stub.doorbell_entry if self.ring == 3 else host.stub.port_entry
        super().__init__(host, fd, run_size, index, entry, own, system_page)
        self._head = self._bytes.cast("I")
        self._ram = ram
        self._doorbell = doorbell
        self._home = home
        self._fault = PageFault()
        self._exception = CpuException()
        self._lock = allocate_lock()
        """Guards _kicked, _interrupt and immediate_exit; a leaf."""
        self._kicked = False
        self._interrupt: Callable[[], object] | None = None
        """Sends the signal to the CPU's thread; None while the CPU is closed."""
        self._owner: object = None
        """The thread for which _interrupt was made."""
        self.serve: Callable[[], bool] | None = None
        self._prepare()
        self.reset()

    def _prepare(self) -> None:
        """Gather what `run` needs."""
        raise NotImplementedError

    def run(self) -> Exit:
        raise NotImplementedError

    # Exits that are not system calls

    def _other_exit(self) -> Exit:
        reason = self._head[_REASON]
        if reason == KVM_EXIT_IO:
            return self._exception_exit()
        if reason == KVM_EXIT_MMIO:
            return self._doorbell_exit()
        if reason == abi.KVM_EXIT_INTERNAL_ERROR:
            return self._internal_error()
        if reason == abi.KVM_EXIT_SHUTDOWN:
            self._broken = True
            return Shutdown(self.dump())
        if reason == abi.KVM_EXIT_FAIL_ENTRY:
            failure = self._page.exit.fail_entry.hardware_entry_failure_reason
            return self._error(f"the CPU refused to enter the guest (KVM_EXIT_FAIL_ENTRY, {failure:#x})")
        return self._error(f"KVM exit {reason}, hardware reason {self._page.exit.hw.hardware_exit_reason:#x}")

    def _error(self, reason: str) -> InternalError:
        return InternalError(reason, self.dump())

    def _exception_exit(self) -> Exit:
        regs = self.regs
        stub = self._host.stub
        vector = vector_of(regs[RIP], stub)
        error, rip, cs, rflags, rsp, _ = self._frame.tolist()
        frame = SYSTEM_CPUS + self.index * PAGE_SIZE + FRAME
        if vector not in _ERROR_CODE:
            error = 0
            frame += 8
        # The stack is empty when ring 3 is left; an exception of ring 0 itself would have pushed on some other one.
        if vector < 0 or self._head[_IO] >> 16 != stub.exception_port or regs[RSP] != frame or cs != USER_CS:
            return self._error(f"an OUT that no exception of a program explains, vector {vector}")
        regs[RIP] = rip
        regs[RFLAGS] = rflags & USER_RFLAGS | FIXED_RFLAGS
        regs[RSP] = rsp
        self._to_ring3()
        self._dirty[0] = REGS_DIRTY | SREGS_DIRTY
        if vector == PF:
            fault = self._fault
            fault.address = self._words[CR2]
            fault.error = error
            return fault
        if STUB <= rip < STUB + PAGE_SIZE:
            return self._stub_fault(rip)
        if vector == UD:
            return self._undefined(rip)
        return self._exception_of(vector, error)

    def _exception_of(self, vector: int, error: int) -> CpuException:
        exception = self._exception
        exception.vector = vector
        exception.error = error
        return exception

    def _stub_fault(self, rip: int) -> PageFault:
        """The program jumped into the middle of the stub. For a program there is nothing at that address."""
        self._fault.address = rip
        self._fault.error = PF_USER | PF_FETCH
        return self._fault

    def _undefined(self, rip: int) -> Exit:
        return self._exception_of(UD, 0)

    def _bad_return(self) -> Exit:
        """A system call that would return to no address of the program: its code has jumped into the stub."""
        self.regs[RIP] = self._lstar
        self.regs[RFLAGS] = self.regs[R11] & USER_RFLAGS | FIXED_RFLAGS
        if self._ring() != 3:
            self._to_ring3()
        self._dirty[0] |= REGS_DIRTY
        return self._stub_fault(self._lstar)

    def _doorbell_exit(self) -> Exit:
        mmio = self._page.exit.mmio
        offset, write = mmio.phys_addr - self._doorbell, bool(mmio.is_write)
        if not 0 <= offset < PAGE_SIZE or self._ring() != 3:
            return self._error(f"an access to guest-physical {mmio.phys_addr:#x}, where nothing is")
        registers = self._registers()
        if not self._settle():
            return self._error("KVM does not complete an access to the doorbell")
        self._put_back(registers)
        return self._doorbell_fault(offset, write)

    def _doorbell_fault(self, offset: int, write: bool) -> PageFault:
        self._fault.address = DOORBELL + offset
        self._fault.error = PF_USER | (PF_WRITE if write else 0)
        return self._fault

    def _settle(self) -> bool:
        """Let KVM complete the instruction that it emulates, without running the guest; False if it has no end."""
        settled = False
        with self._lock:
            self._bytes[_IMMEDIATE_EXIT] = 1
        for _ in range(_SETTLE_LIMIT):
            try:
                ioctl(self._fd, KVM_RUN, 0)
            except OSError as error:
                settled = error.errno == errno.EINTR
                break
        with self._lock:
            self._bytes[_IMMEDIATE_EXIT] = self._kicked
        return settled

    def _internal_error(self) -> Exit:
        internal = self._page.exit.internal
        if internal.suberror == abi.KVM_INTERNAL_ERROR_EMULATION and self._ring() == 3:
            return self._doorbell_fault(0, False)
        data = " ".join(f"{word:#x}" for word in internal.data[: min(internal.ndata, 16)])
        return self._error(f"KVM_EXIT_INTERNAL_ERROR {internal.suberror}, data {data or 'none'}")

    # Kicks

    def kick(self) -> None:
        """Make `run()` return INTERRUPTED; see vmm.cpu.Cpu."""
        with self._lock:
            interrupt = self._interrupt
            if self._kicked or interrupt is None:
                return  # the kick before this one has not been answered, and is answered for both
            self._kicked = True
            self._bytes[_IMMEDIATE_EXIT] = 1
        try:
            interrupt()
        except BaseException:
            with self._lock:
                self._kicked = False
            raise

    def _not_run(self, error: OSError) -> Exit | None:
        """What a failed KVM_RUN means; None: run again."""
        if error.errno != errno.EINTR:
            return self._error(f"KVM_RUN: {error.strerror}")
        if not self._bytes[_IMMEDIATE_EXIT]:
            return None
        if self.regs[RIP] >= LOWER_HALF and not self._leave_stub():
            return self._run_on()
        with self._lock:
            self._bytes[_IMMEDIATE_EXIT] = 0
            self._kicked = False
        return INTERRUPTED

    def _leave_stub(self) -> bool:
        """Complete the return from a system call, if that is where the CPU is."""
        return False

    def _run_on(self) -> Exit:
        """The CPU is in the monitor's own code in the guest: run to the exit that follows, and keep the kick."""
        with self._lock:
            self._bytes[_IMMEDIATE_EXIT] = 0
        try:
            return self.run()
        finally:
            with self._lock:
                self._kicked = True
                self._bytes[_IMMEDIATE_EXIT] = 1

    # Life

    def reset(self) -> None:
        """The state of a new process; see vmm.cpu.Cpu. The address space stays. The caller's thread is the CPU's."""
        self._restart()
        self.serve = None
        owner, interrupt = me(), self._interrupt
        if owner != self._owner or interrupt is None:
            self._owner, interrupt = owner, kicker()
        with self._lock:
            self._interrupt = interrupt
            self._kicked = False
            self._bytes[_IMMEDIATE_EXIT] = 0

    def close(self) -> None:
        """Give the CPU back; KVM keeps it for the next one that is asked for, since it cannot delete a vCPU."""
        with self._lock:
            if self._interrupt is None:
                return
            self._interrupt = None
        self.serve = None
        self.set_address_space(0)
        self._home(self)

    def release(self) -> None:
        self._head.release()
        super().release()


class Ring3StubCpu(KvmCpu):
    """On software KVM: the stub rings the doorbell in ring 3. CS and SS are the program's all along."""

    __slots__ = ("_hot",)

    def _prepare(self) -> None:
        self._hot = (self._fd, self._head, self.regs, self._dirty, self._host.stub.doorbell_return)

    def run(self) -> Exit:
        """Run the program until something needs the monitor; see vmm.cpu.Cpu."""
        fd, head, regs, dirty, doorbell_return = self._hot
        while True:
            try:
                ioctl(fd, KVM_RUN, 0)
            except OSError as error:
                exit = self._not_run(error)
                if exit is None:
                    continue
                return exit
            if regs[RIP] == doorbell_return and head[_REASON] == KVM_EXIT_MMIO:
                rip = regs[RCX]
                if rip >= LOWER_HALF:
                    return self._bad_return()
                regs[RIP] = rip
                regs[RFLAGS] = regs[R11] & USER_RFLAGS | FIXED_RFLAGS
                dirty[0] = REGS_DIRTY
                return SYSCALL
            return self._other_exit()

    def _undefined(self, rip: int) -> Exit:
        # Software KVM delivers #UD for INT n where the CPU delivers #GP(n * 8 + 2), the gate being for ring 0 only.
        number = interrupt_number(self._ram.words, self._ram.view, self.address_space, rip)
        return self._exception_of(UD, 0) if number < 0 else self._exception_of(GP, number * 8 + 2)


class Ring0StubCpu(KvmCpu):
    """On hardware KVM: the stub does OUT in ring 0, and SYSRETQ when the monitor lets it go on."""

    __slots__ = ("_hot",)
    ring = 0

    def _prepare(self) -> None:
        stub = self._host.stub
        io = abi.KVM_EXIT_IO_OUT | 1 << 8 | stub.syscall_port << 16
        self._hot = (self._fd, self._head, self.regs, self._dirty, io, stub.port_return)

    def run(self) -> Exit:
        """Run the program until something needs the monitor; see vmm.cpu.Cpu."""
        fd, head, regs, dirty, io, port_return = self._hot
        while True:
            try:
                ioctl(fd, KVM_RUN, 0)
            except OSError as error:
                exit = self._not_run(error)
                if exit is None:
                    continue
                return exit
            if head[_IO] == io and head[_REASON] == KVM_EXIT_IO:
                if regs[RCX] >= LOWER_HALF:  # SYSRETQ would fault in ring 0, or return to the monitor's pages
                    return self._bad_return()
                regs[RIP] = port_return  # after OUT, RIP may be behind it or not yet
                dirty[0] = REGS_DIRTY
                if regs[R11] & _TF:  # SYSRETQ would trap at once, Linux's IRET only after the next instruction
                    self._leave_stub()
                return SYSCALL
            return self._other_exit()

    def save(self) -> list[int]:
        """The program's 18 registers; see vmm.cpu.Cpu."""
        state = self.regs.tolist()
        if self._ring() == 0:  # in the stub, before SYSRETQ
            state[RIP] = state[RCX]
            state[RFLAGS] = state[R11] & USER_RFLAGS | FIXED_RFLAGS
        return state

    def _leave_stub(self) -> bool:
        regs = self.regs
        if self._ring() != 0 or regs[RIP] != self._hot[-1]:
            return False
        regs[RIP] = regs[RCX]
        regs[RFLAGS] = regs[R11] & USER_RFLAGS | FIXED_RFLAGS
        self._to_ring3()
        self._dirty[0] |= REGS_DIRTY
        return True
