"""/dev/kvm itself: is it there, what can it do, make a VM."""

from __future__ import annotations

import errno
import os
from fcntl import ioctl

from vmm.kvm import abi

_REQUIRED = (
    (abi.KVM_CAP_USER_MEMORY, 1, "KVM_CAP_USER_MEMORY"),
    (abi.KVM_CAP_EXT_CPUID, 1, "KVM_CAP_EXT_CPUID"),
    (abi.KVM_CAP_XSAVE, 1, "KVM_CAP_XSAVE (Linux 2.6.36)"),
    (abi.KVM_CAP_XCRS, 1, "KVM_CAP_XCRS (Linux 2.6.36)"),
    (abi.KVM_CAP_SYNC_REGS, 7, "KVM_CAP_SYNC_REGS (Linux 4.17)"),
    (abi.KVM_CAP_IMMEDIATE_EXIT, 1, "KVM_CAP_IMMEDIATE_EXIT (Linux 4.11)"),
)
"""Capabilities that pyvmm cannot do without: number, the bits that are needed, what a user is told."""
_CPUID_ENTRIES = 256


class KvmUnavailable(Exception):
    """KVM cannot be used here; the text is one line that says why."""


class System:
    """The descriptor of /dev/kvm. Raises KvmUnavailable."""

    __slots__ = ("fd", "run_size")

    def __init__(self) -> None:
        try:
            self.fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise KvmUnavailable(_why_not_open(error)) from error
        try:
            self._check()
            self.run_size = ioctl(self.fd, abi.KVM_GET_VCPU_MMAP_SIZE, 0)
            """Bytes of the mapping of a vCPU descriptor."""
        except OSError as error:
            self.close()
            raise KvmUnavailable(f"/dev/kvm does not answer as KVM does: {error.strerror}") from error
        except KvmUnavailable:
            self.close()
            raise

    def _check(self) -> None:
        version = ioctl(self.fd, abi.KVM_GET_API_VERSION, 0)
        if version != abi.KVM_API_VERSION:
            raise KvmUnavailable(f"/dev/kvm speaks API version {version}, not {abi.KVM_API_VERSION}")
        for number, bits, name in _REQUIRED:
            if self.check_extension(number) & bits != bits:
                raise KvmUnavailable(f"this KVM lacks {name}")

    def check_extension(self, number: int) -> int:
        """KVM_CHECK_EXTENSION: 0 if the capability is not there, else 1 or a value of its own."""
        return ioctl(self.fd, abi.KVM_CHECK_EXTENSION, number)

    @property
    def max_cpus(self) -> int:
        """How many vCPUs a VM may have, with ids from 0 on."""
        count = self.check_extension(abi.KVM_CAP_MAX_VCPUS) or 4  # api.rst: 4 when the capability is not there
        return min(count, self.check_extension(abi.KVM_CAP_MAX_VCPU_ID) or count)

    def supported_cpuid(self) -> bytearray:
        """KVM_GET_SUPPORTED_CPUID: a struct kvm_cpuid2 with its entries, `nent` being their number."""
        table = bytearray(8 + 40 * _CPUID_ENTRIES)
        table[0:4] = _CPUID_ENTRIES.to_bytes(4, "little")
        ioctl(self.fd, abi.KVM_GET_SUPPORTED_CPUID, table, True)
        return table

    def create_vm(self) -> int:
        """KVM_CREATE_VM: the descriptor. Raises KvmUnavailable."""
        while True:
            try:
                return ioctl(self.fd, abi.KVM_CREATE_VM, 0)
            except InterruptedError:  # a signal came while it waited for memory
                continue
            except OSError as error:
                raise KvmUnavailable(f"KVM makes no VM: {error.strerror}") from error

    def close(self) -> None:
        os.close(self.fd)


def _why_not_open(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "there is no /dev/kvm (is virtualization switched on, and the module kvm_intel or kvm_amd loaded?)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "/dev/kvm may not be opened by this user (usually the group kvm may: `adduser USER kvm`)"
    return f"/dev/kvm cannot be opened: {error.strerror}"
