"""How this host's KVM treats a program: learnt once a process by running a few instructions in a VM of their own.

* The ring that the stub runs in. Hardware KVM enters ring 0 on SYSCALL; software KVM (no VMX or SVM) jumps to MSR_LSTAR
  and stays in ring 3. That decides which entry of the stub serves (guest/stub.S) and how the monitor returns.
* The bits of CR4 that KVM lets us set. FSGSBASE is not always in the CPUID that KVM says it supports, and works.
* CPUID leaf 1 as a program sees it: software KVM lets ring 3 execute CPUID natively.

The VM has six pages of memory and lives for a millisecond.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from _thread import allocate_lock
from fcntl import ioctl
from typing import NamedTuple

from vmm.kvm import abi
from vmm.kvm.cpuid import CpuidTable
from vmm.kvm.segments import CR4, CR4_FSGSBASE, CR4_OSXSAVE, SYSCALL_MASK, enter_ring3
from vmm.kvm.segments import STAR as STAR_VALUE
from vmm.kvm.state import set_msrs, set_xcr0, use_host_tsc
from vmm.kvm.stub import Stub, load
from vmm.kvm.system import KvmUnavailable, System
from vmm.layout import DOORBELL, PAGE_SIZE, STUB, SYSTEM_CPUS
from vmm.tsc import host_trusts_tsc

_RDX, _R8 = 3, 10
_PAGES = 6
_PML4, _PDPT, _PD, _PT, _STUB, _CODE = (n * PAGE_SIZE for n in range(_PAGES))
_PROBE_CODE = STUB + PAGE_SIZE
"""Where the probe's code runs: in the same page table as the stub."""
_PRESENT, _WRITE, _USER, _USED = 1, 2, 4, 0x60


class Host(NamedTuple):
    """What was learnt; the same for every VM of the process."""

    stub: Stub
    cpuid: CpuidTable
    ring: int
    """0 or 3: the ring in which the stub runs."""
    cr4: int
    xcr0: int
    """0 where CR4.OSXSAVE cannot be set."""
    features: int
    """CPUID leaf 1 EDX and..."""
    features_ecx: int
    """...ECX as a program sees them."""
    tsc_khz: int
    """Frequency of the guest's time-stamp counter; 0 when KVM does not tell or the host does not trust its own."""
    host_tsc: bool
    """The guest's time-stamp counter is the host's, without an offset."""
    mxcsr_mask: int
    """Bits of MXCSR that may be set."""


_host: Host | None = None
_lock = allocate_lock()


def probe(system: System) -> Host:
    """The facts about this host, from the first call on a cached one. Raises KvmUnavailable."""
    global _host
    with _lock:
        if _host is None:
            _host = _run_probe(system, load())
        return _host


def _run_probe(system: System, stub: Stub) -> Host:
    memory = mmap.mmap(-1, _PAGES * PAGE_SIZE)
    vm = system.create_vm()
    vcpu = -1
    try:
        _fill(memory, stub)
        region = abi.kvm_userspace_memory_region(
            memory_size=len(memory), userspace_addr=ctypes.addressof(ctypes.c_char.from_buffer(memory))
        )
        ioctl(vm, abi.KVM_SET_USER_MEMORY_REGION, region)
        vcpu = ioctl(vm, abi.KVM_CREATE_VCPU, 0)
        return _ask(system, vcpu, stub)
    except OSError as error:
        raise KvmUnavailable(f"KVM does not run a program of ours: {error.strerror}") from error
    finally:
        if vcpu >= 0:
            os.close(vcpu)
        os.close(vm)


def _fill(memory: mmap.mmap, stub: Stub) -> None:
    """Page tables, the stub, and the probe's code behind it."""
    rights = _PRESENT | _WRITE | _USER | _USED
    path = ((_PML4, STUB >> 39, _PDPT), (_PDPT, STUB >> 30, _PD), (_PD, STUB >> 21, _PT))
    for table, index, entry in path:
        struct.pack_into("<Q", memory, table + (index & 511) * 8, entry | rights)
    leaves = (
        (STUB, _STUB | rights & ~_WRITE),
        (_PROBE_CODE, _CODE | rights & ~_WRITE),
        (DOORBELL, len(memory) | rights),
    )
    for va, entry in leaves:
        struct.pack_into("<Q", memory, _PT + (va >> 12 & 511) * 8, entry)
    memory[_STUB : _STUB + len(stub.page)] = stub.page
    memory[_CODE : _CODE + len(stub.probe)] = stub.probe


def _ask(system: System, vcpu: int, stub: Stub) -> Host:
    cpuid = CpuidTable(system.supported_cpuid())
    ioctl(vcpu, abi.KVM_SET_CPUID2, cpuid.of_vcpu(0))
    sregs = abi.kvm_sregs()
    ioctl(vcpu, abi.KVM_GET_SREGS, sregs)
    enter_ring3(sregs, SYSTEM_CPUS, stub.vectors, CR4)
    sregs.cr3 = _PML4
    _set_cr4(vcpu, sregs, CR4_FSGSBASE)
    xcr0 = cpuid.xcr0 if cpuid.xcr0 and _set_cr4(vcpu, sregs, CR4_OSXSAVE) else 0
    if xcr0:
        set_xcr0(vcpu, xcr0)
    values = ((abi.MSR_STAR, STAR_VALUE), (abi.MSR_LSTAR, stub.doorbell_entry), (abi.MSR_SYSCALL_MASK, SYSCALL_MASK))
    if set_msrs(vcpu, values) != len(values):
        raise KvmUnavailable("this KVM does not take the SYSCALL registers (MSR_STAR, MSR_LSTAR, MSR_SYSCALL_MASK)")
    cr4 = sregs.cr4
    page = mmap.mmap(vcpu, system.run_size)
    ring, features, features_ecx = _run(vcpu, abi.kvm_run.from_buffer(page), sregs, stub)
    xsave = bytearray(4096)
    ioctl(vcpu, abi.KVM_GET_XSAVE, xsave, True)
    mxcsr_mask = struct.unpack_from("<I", xsave, 28)[0] or 0xFFBF  # SDM volume 1, 11.6.6
    khz = 0
    if system.check_extension(abi.KVM_CAP_GET_TSC_KHZ) and host_trusts_tsc():
        khz = ioctl(vcpu, abi.KVM_GET_TSC_KHZ, 0)
    return Host(stub, cpuid, ring, cr4, xcr0, features, features_ecx, khz, use_host_tsc(vcpu), mxcsr_mask)


def _set_cr4(vcpu: int, sregs: abi.kvm_sregs, bit: int) -> bool:
    """Set a bit of CR4 as well, if KVM takes it."""
    sregs.cr4 |= bit
    try:
        ioctl(vcpu, abi.KVM_SET_SREGS, sregs)
    except OSError:  # EINVAL: not with this CPUID
        sregs.cr4 &= ~bit
        ioctl(vcpu, abi.KVM_SET_SREGS, sregs)
        return False
    return True


def _run(vcpu: int, run: abi.kvm_run, sregs: abi.kvm_sregs, stub: Stub) -> tuple[int, int, int]:
    """Run the probe's code up to the doorbell: the ring it is rung in, CPUID leaf 1 EDX, and ECX."""
    state = run.s.regs
    run.kvm_valid_regs = abi.KVM_SYNC_X86_REGS | abi.KVM_SYNC_X86_SREGS
    run.kvm_dirty_regs = abi.KVM_SYNC_X86_REGS
    state.regs.rip, state.regs.rflags = _PROBE_CODE, 0x202
    while True:
        try:
            ioctl(vcpu, abi.KVM_RUN, 0)
            break
        except InterruptedError:  # by a signal; the guest goes on
            run.kvm_dirty_regs = 0
    if run.exit_reason != abi.KVM_EXIT_MMIO or state.regs.rip != stub.doorbell_return:
        raise KvmUnavailable(
            f"this KVM does not run SYSCALL as expected (exit {run.exit_reason} at {state.regs.rip:#x} "
            f"instead of {abi.KVM_EXIT_MMIO} at {stub.doorbell_return:#x})"
        )
    return state.sregs.cs.selector & 3, state.regs.rdx, state.regs.r8
