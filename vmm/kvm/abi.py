"""The part of <linux/kvm.h> and <asm/kvm.h> (x86) that pyvmm uses: structs, ioctl numbers, constants.

Names are the header's. tests/host/test_kvm_abi.py compares every one of them with the header through a C compiler.
Source: include/uapi/linux/kvm.h, arch/x86/include/uapi/asm/kvm.h; Documentation/virt/kvm/api.rst says what they mean.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, Union, sizeof
from ctypes import c_uint8 as u8
from ctypes import c_uint16 as u16
from ctypes import c_uint32 as u32
from ctypes import c_uint64 as u64
from typing import TYPE_CHECKING, Any, TypeVar

from vmm.cpu import REGISTERS

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T", bound="type[Structure]")


def _size(expected: int) -> Callable[[_T], _T]:
    """Assert the size in bytes of a struct."""

    def check(struct: _T) -> _T:
        assert sizeof(struct) == expected, f"{struct.__name__} has {sizeof(struct)} bytes, not {expected}"
        return struct

    return check


def offsetof(struct: type[Structure | Union], path: str) -> int:
    """Offset in bytes of a field; a path such as "s.regs.sregs" goes through nested structs."""
    at = 0
    for name in path.split("."):
        field: Any = getattr(struct, name)
        at += field.offset
        struct = next(kind for known, kind, *_ in struct._fields_ if known == name)  # type: ignore[assignment]
    return at


# Registers


@_size(144)
class kvm_regs(Structure):
    """General registers."""

    _fields_ = tuple((name, u64) for name in REGISTERS)


@_size(24)
class kvm_segment(Structure):
    """A segment register with its hidden part; `type`, `dpl` and so on are the descriptor's (SDM vol. 3, 3.4.5)."""

    _fields_ = (
        ("base", u64),
        ("limit", u32),
        ("selector", u16),
        ("type", u8),
        ("present", u8),
        ("dpl", u8),
        ("db", u8),
        ("s", u8),
        ("l", u8),
        ("g", u8),
        ("avl", u8),
        ("unusable", u8),
        ("padding", u8),
    )


@_size(16)
class kvm_dtable(Structure):
    _fields_ = (("base", u64), ("limit", u16), ("padding", u16 * 3))


@_size(312)
class kvm_sregs(Structure):
    _fields_ = (
        *((name, kvm_segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", kvm_dtable),
        ("idt", kvm_dtable),
        *((name, u64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", u64 * 4),
    )


@_size(64)
class kvm_vcpu_events(Structure):
    """Events that wait to be injected. All zeros (`flags` 0 too): no exception or interrupt waits, the rest stays."""

    _fields_ = (("waiting", u8 * 20), ("flags", u32), ("more", u8 * 40))


@_size(520)
class kvm_sync_regs(Structure):
    _fields_ = (("regs", kvm_regs), ("sregs", kvm_sregs), ("events", kvm_vcpu_events))


# The page that is shared with the kernel


class _hw(Structure):
    _fields_ = (("hardware_exit_reason", u64),)


class _fail_entry(Structure):
    _fields_ = (("hardware_entry_failure_reason", u64), ("cpu", u32))


class _io(Structure):
    _fields_ = (("direction", u8), ("size", u8), ("port", u16), ("count", u32), ("data_offset", u64))


class _mmio(Structure):
    _fields_ = (("phys_addr", u64), ("data", u8 * 8), ("len", u32), ("is_write", u8))


class _internal(Structure):
    _fields_ = (("suberror", u32), ("ndata", u32), ("data", u64 * 16))


class _exit_union(Union):
    _fields_ = (
        ("hw", _hw),
        ("fail_entry", _fail_entry),
        ("io", _io),
        ("mmio", _mmio),
        ("internal", _internal),
        ("padding", u8 * 256),
    )


class _sync_union(Union):
    _fields_ = (("regs", kvm_sync_regs), ("padding", u8 * 2048))


@_size(2352)
class kvm_run(Structure):
    """The start of the mapping of a vCPU descriptor. The union of exits, nameless in C, is `exit` here."""

    _fields_ = (
        ("request_interrupt_window", u8),
        ("immediate_exit", u8),
        ("padding1", u8 * 6),
        ("exit_reason", u32),
        ("ready_for_interrupt_injection", u8),
        ("if_flag", u8),
        ("flags", u16),
        ("cr8", u64),
        ("apic_base", u64),
        ("exit", _exit_union),
        ("kvm_valid_regs", u64),
        ("kvm_dirty_regs", u64),
        ("s", _sync_union),
    )


# Arguments of ioctls


@_size(32)
class kvm_userspace_memory_region(Structure):
    _fields_ = (
        ("slot", u32),
        ("flags", u32),
        ("guest_phys_addr", u64),
        ("memory_size", u64),
        ("userspace_addr", u64),
    )


@_size(40)
class kvm_cpuid_entry2(Structure):
    _fields_ = (
        ("function", u32),
        ("index", u32),
        ("flags", u32),
        ("eax", u32),
        ("ebx", u32),
        ("ecx", u32),
        ("edx", u32),
        ("padding", u32 * 3),
    )


@_size(8)
class kvm_cpuid2(Structure):
    """Followed by `nent` of kvm_cpuid_entry2."""

    _fields_ = (("nent", u32), ("padding", u32))


@_size(16)
class kvm_msr_entry(Structure):
    _fields_ = (("index", u32), ("reserved", u32), ("data", u64))


@_size(8)
class kvm_msrs(Structure):
    """Followed by `nmsrs` of kvm_msr_entry."""

    _fields_ = (("nmsrs", u32), ("pad", u32))


@_size(16)
class kvm_xcr(Structure):
    _fields_ = (("xcr", u32), ("reserved", u32), ("value", u64))


@_size(392)
class kvm_xcrs(Structure):
    _fields_ = (("nr_xcrs", u32), ("flags", u32), ("xcrs", kvm_xcr * 16), ("padding", u64 * 16))


@_size(4096)
class kvm_xsave(Structure):
    """An XSAVE area in standard format."""

    _fields_ = (("region", u32 * 1024),)


@_size(104)
class kvm_enable_cap(Structure):
    _fields_ = (("cap", u32), ("flags", u32), ("args", u64 * 4), ("pad", u8 * 64))


@_size(24)
class kvm_device_attr(Structure):
    """`addr` is the address of the attribute's value."""

    _fields_ = (("flags", u32), ("group", u32), ("attr", u64), ("addr", u64))


# ioctl numbers (include/uapi/asm-generic/ioctl.h)

_KVMIO = 0xAE


def _io_(number: int) -> int:
    return _KVMIO << 8 | number


def _iow(number: int, argument: type[ctypes._CData]) -> int:
    return 1 << 30 | sizeof(argument) << 16 | _io_(number)


def _ior(number: int, argument: type[ctypes._CData]) -> int:
    return 2 << 30 | sizeof(argument) << 16 | _io_(number)


def _iowr(number: int, argument: type[ctypes._CData]) -> int:
    return 3 << 30 | sizeof(argument) << 16 | _io_(number)


# On /dev/kvm
KVM_GET_API_VERSION = _io_(0x00)  # basic
KVM_CREATE_VM = _io_(0x01)  # basic
KVM_CHECK_EXTENSION = _io_(0x03)  # basic
KVM_GET_VCPU_MMAP_SIZE = _io_(0x04)  # basic
KVM_GET_SUPPORTED_CPUID = _iowr(0x05, kvm_cpuid2)  # KVM_CAP_EXT_CPUID
# On a VM
KVM_CREATE_VCPU = _io_(0x41)  # basic
KVM_SET_USER_MEMORY_REGION = _iow(0x46, kvm_userspace_memory_region)  # KVM_CAP_USER_MEMORY
KVM_ENABLE_CAP = _iow(0xA3, kvm_enable_cap)  # KVM_CAP_ENABLE_CAP_VM
# On a vCPU
KVM_RUN = _io_(0x80)  # basic; KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_SYNC_REGS
KVM_GET_SREGS = _ior(0x83, kvm_sregs)  # basic
KVM_SET_SREGS = _iow(0x84, kvm_sregs)  # basic
KVM_GET_MSRS = _iowr(0x88, kvm_msrs)  # basic
KVM_SET_MSRS = _iow(0x89, kvm_msrs)  # basic
KVM_SET_CPUID2 = _iow(0x90, kvm_cpuid2)  # KVM_CAP_EXT_CPUID
KVM_GET_TSC_KHZ = _io_(0xA3)  # KVM_CAP_GET_TSC_KHZ
KVM_GET_XSAVE = _ior(0xA4, kvm_xsave)  # KVM_CAP_XSAVE
KVM_SET_XSAVE = _iow(0xA5, kvm_xsave)  # KVM_CAP_XSAVE
KVM_SET_XCRS = _iow(0xA7, kvm_xcrs)  # KVM_CAP_XCRS
KVM_SET_DEVICE_ATTR = _iow(0xE1, kvm_device_attr)  # KVM_CAP_VCPU_ATTRIBUTES

# Capabilities
KVM_CAP_USER_MEMORY = 3
KVM_CAP_EXT_CPUID = 7
KVM_CAP_XSAVE = 55
KVM_CAP_XCRS = 56
KVM_CAP_GET_TSC_KHZ = 61
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_SYNC_REGS = 74  # a mask of KVM_SYNC_X86_*
KVM_CAP_ENABLE_CAP_VM = 98
KVM_CAP_MAX_VCPU_ID = 128
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_EXIT_ON_EMULATION_FAILURE = 204

KVM_API_VERSION = 12

# kvm_valid_regs, kvm_dirty_regs
KVM_SYNC_X86_REGS = 1 << 0
KVM_SYNC_X86_SREGS = 1 << 1
KVM_SYNC_X86_EVENTS = 1 << 2

# exit_reason
KVM_EXIT_UNKNOWN = 0
KVM_EXIT_IO = 2
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_IO_OUT = 1
KVM_INTERNAL_ERROR_EMULATION = 1
KVM_INTERNAL_ERROR_SIMUL_EX = 2
KVM_INTERNAL_ERROR_DELIVERY_EV = 3
KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4

# Attributes of a vCPU: group, attribute
KVM_VCPU_TSC_CTRL = 0
KVM_VCPU_TSC_OFFSET = 0

KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0

# Model-specific registers (arch/x86/include/asm/msr-index.h; not part of the uapi)
MSR_IA32_TSC = 0x0000_0010
MSR_STAR = 0xC000_0081
MSR_LSTAR = 0xC000_0082
MSR_SYSCALL_MASK = 0xC000_0084
MSR_TSC_AUX = 0xC000_0103
