"""A KVM virtual machine over guest RAM: the accelerator that runs programs on the CPU itself.

Guest-physical memory: the RAM is slot 0; behind it slot 1 holds the monitor's own pages (IDT, exception entries, stub,
a system page for each vCPU), so that they take none of the guest's frames; then, without memory, the doorbell's page;
then a page for the slot that `revoke_all` adds and deletes.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from _thread import allocate_lock
from fcntl import ioctl
from typing import TYPE_CHECKING

from vmm.kvm import abi
from vmm.kvm.cpu import KvmCpu, Ring0StubCpu, Ring3StubCpu
from vmm.kvm.probe import probe
from vmm.kvm.segments import CR4_FSGSBASE, interrupt_table, system_page
from vmm.kvm.system import KvmUnavailable, System
from vmm.layout import DOORBELL, EXCEPTION_STUBS, IDT, PAGE_SIZE, STUB, SYSTEM_CPUS
from vmm.memory.atomics import read_tsc
from vmm.memory.pagetable import NX, USER, WRITE

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from vmm.cpu import Cpu
    from vmm.memory.frames import Frames
    from vmm.memory.pagetable import KernelHalf
    from vmm.memory.physical import GuestRam

_RAM_SLOT, _OWN_SLOT, _DUMMY_SLOT = range(3)
_IDT_PAGE, _EXCEPTIONS_PAGE, _STUB_PAGE, _FIRST_CPU_PAGE = (n * PAGE_SIZE for n in range(4))
_HWCAP2_FSGSBASE = 1 << 1
_TABLE_REACH = 1 << 21
"""Bytes of addresses that one page table maps."""


class _Nothing:
    """A context manager that does nothing."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        pass


_NOTHING = _Nothing()


class KvmTsc:
    """See vmm.cpu.Tsc. The host's counter, read directly (0.1 us), where the guest's is the same (Linux 5.16)."""

    def __init__(self, khz: int, host_tsc: bool) -> None:
        self.khz = khz
        self._host_tsc = host_tsc

    def read(self, cpu: Cpu) -> int:
        if self._host_tsc:
            return read_tsc()
        assert isinstance(cpu, KvmCpu)
        return cpu.tsc()


class KvmAccelerator:
    """A virtual machine; see vmm.cpu.Accelerator. `frames` is not used: nothing of this is in the guest's memory but a
    few page tables of `half`. Raises KvmUnavailable, and guest.NotBuilt when the guest code was not built."""

    name = "kvm"
    populates = True
    discard_revokes = True

    def __init__(self, ram: GuestRam, frames: Frames, half: KernelHalf) -> None:
        self._ram = ram
        self._half = half
        self._system = System()
        self._vm = -1
        try:
            self._host = host = probe(self._system)
            self.max_cpus = self._system.max_cpus
            self._make_vm()
        except BaseException:
            self._close_descriptors()
            raise
        self.cpuid_features = host.features
        self.hwcap2 = _HWCAP2_FSGSBASE if host.cr4 & CR4_FSGSBASE else 0
        """AT_HWCAP2 of Linux: programs may use RDFSBASE and its like."""
        self.large_pages = host.ring == 0
        """Software KVM shadows page tables: it maps 4 KiB at a time whatever the guest's tables say."""
        self.fpu_size = host.cpuid.xsave_size
        self.tsc = KvmTsc(host.tsc_khz, host.host_tsc) if host.tsc_khz else None
        """The guest's time-stamp counters, which all show the same; None when KVM does not tell their frequency."""
        self.stub_ring = host.ring
        """0 on hardware KVM, 3 on software KVM."""
        self._cpu_class: type[KvmCpu] = Ring0StubCpu if host.ring == 0 else Ring3StubCpu
        self._lock = allocate_lock()
        """Guards what follows; a leaf."""
        self._cpus: list[KvmCpu] = []
        self._idle: list[KvmCpu] = []
        self._next = 0
        self._revoke_lock = allocate_lock()

    # The VM

    def _make_vm(self) -> None:
        ram, host = self._ram, self._host
        self._own = mmap.mmap(-1, _FIRST_CPU_PAGE + self.max_cpus * PAGE_SIZE)
        self._own_words = memoryview(self._own).cast("Q")
        own = ctypes.addressof(ctypes.c_char.from_buffer(self._own))
        self._own_at = ram.size
        self._doorbell = ram.size + len(self._own)
        dummy = self._doorbell + PAGE_SIZE
        if dummy + PAGE_SIZE > 1 << host.cpuid.address_bits:
            raise KvmUnavailable(
                f"{ram.size >> 20} MiB of guest memory do not fit into {host.cpuid.address_bits}-bit physical addresses"
            )
        self._add_dummy = _region(_DUMMY_SLOT, dummy, PAGE_SIZE, ram.address)
        self._delete_dummy = _region(_DUMMY_SLOT, dummy, 0, ram.address)
        self._vm = self._system.create_vm()
        try:
            for region in (
                _region(_RAM_SLOT, 0, ram.size, ram.address),
                _region(_OWN_SLOT, self._own_at, len(self._own), own),
            ):
                ioctl(self._vm, abi.KVM_SET_USER_MEMORY_REGION, region)
            self._report_emulation_failures()
        except OSError as error:
            raise KvmUnavailable(f"KVM does not take the guest's memory: {error.strerror}") from error
        self._place_monitor_pages()

    def _report_emulation_failures(self) -> None:
        """Without it, KVM injects #UD when ring-3 code accesses the doorbell in a way that it cannot emulate."""
        if self._system.check_extension(abi.KVM_CAP_EXIT_ON_EMULATION_FAILURE):
            enable = abi.kvm_enable_cap(cap=abi.KVM_CAP_EXIT_ON_EMULATION_FAILURE)
            enable.args[0] = 1
            ioctl(self._vm, abi.KVM_ENABLE_CAP, enable)

    def _place_monitor_pages(self) -> None:
        stub = self._host.stub
        pages = (
            (IDT, _IDT_PAGE, interrupt_table(stub.vectors, stub.exception_size), NX),
            (EXCEPTION_STUBS, _EXCEPTIONS_PAGE, stub.exceptions, 0),
            (STUB, _STUB_PAGE, stub.page, USER),
        )
        for va, at, contents, flags in pages:
            self._own[at : at + len(contents)] = contents
            self._half.map(va, self._own_at + at, flags)
        self._half.map(DOORBELL, self._doorbell, USER | WRITE | NX)
        # One page in every page table that vCPUs will need: mapping the others allocates no frame, on any thread.
        self._mapped = {0}
        self._mapped.update(n for n in range(self.max_cpus) if not (SYSTEM_CPUS + n * PAGE_SIZE) % _TABLE_REACH)
        for index in sorted(self._mapped):
            self._map_system_page(index)

    def _map_system_page(self, index: int) -> None:
        at = _FIRST_CPU_PAGE + index * PAGE_SIZE
        va = SYSTEM_CPUS + index * PAGE_SIZE
        self._own[at : at + PAGE_SIZE] = system_page(va)
        self._half.map(va, self._own_at + at, WRITE | NX)

    # vCPUs

    def create_cpu(self) -> KvmCpu:
        """A new CPU, reset, or one that was closed; see vmm.cpu.Accelerator."""
        with self._lock:
            cpu = self._idle.pop() if self._idle else None
            if cpu is None:
                index = self._next
                if index >= self.max_cpus:
                    raise OSError(errno.EAGAIN, f"KVM gives a VM no more than {self.max_cpus} vCPUs")
                self._next += 1
                if index not in self._mapped:
                    self._map_system_page(index)
        if cpu is not None:
            cpu.reset()
            return cpu
        cpu = self._new_cpu(index)
        with self._lock:
            self._cpus.append(cpu)
        return cpu

    def _new_cpu(self, index: int) -> KvmCpu:
        fd = ioctl(self._vm, abi.KVM_CREATE_VCPU, index)
        try:
            return self._cpu_class(
                self._host, fd, self._system.run_size, index, self._ram, self._own_words,
                _FIRST_CPU_PAGE + index * PAGE_SIZE, self._doorbell, self._take_back,
            )  # fmt: skip
        except BaseException:
            os.close(fd)
            raise

    def _take_back(self, cpu: KvmCpu) -> None:
        with self._lock:
            self._idle.append(cpu)

    # Translations

    def revoke(self, address: int, length: int) -> None:
        """See vmm.cpu.Accelerator: the MMU notifier drops every translation of the frames."""
        self._ram.revoke(address, length)

    def revoke_all(self) -> None:
        """See vmm.cpu.Accelerator: KVM drops all translations when a memory slot is deleted."""
        with self._revoke_lock:
            ioctl(self._vm, abi.KVM_SET_USER_MEMORY_REGION, self._add_dummy)
            ioctl(self._vm, abi.KVM_SET_USER_MEMORY_REGION, self._delete_dummy)

    def forget_code(self, address: int, length: int) -> None:
        """Nothing to do: x86 keeps its instruction caches coherent."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Nothing to do: the guest's atomics are the host's."""
        return _NOTHING

    # End

    def close(self) -> None:
        """Release all that the host gave. Every CPU must have been closed: RuntimeError if one has not."""
        with self._lock:
            if len(self._idle) != len(self._cpus):
                raise RuntimeError(f"{len(self._cpus) - len(self._idle)} vCPUs are still open")
            for cpu in self._cpus:
                cpu.release()
            self._cpus.clear()
            self._idle.clear()
            self._next = self.max_cpus
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        """The VM before its memory: the kernel unmaps the guest first."""
        if self._vm >= 0:
            os.close(self._vm)
            self._vm = -1
            self._own_words.release()
        self._system.close()


def _region(slot: int, address: int, size: int, host: int) -> abi.kvm_userspace_memory_region:
    return abi.kvm_userspace_memory_region(slot=slot, guest_phys_addr=address, memory_size=size, userspace_addr=host)
