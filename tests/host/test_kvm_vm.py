"""The accelerator: making and reusing vCPUs, giving everything back, and saying why KVM cannot be used."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.host.kvm_support import CODE, DATA, Box, Code, Thread, assemble, start, told
from vmm.cpu import RAX, SYSCALL
from vmm.kvm import KvmAccelerator, KvmUnavailable, abi, probe, stub, system
from vmm.kvm import vm as vm_module
from vmm.layout import DOORBELL, STUB, SYSTEM, SYSTEM_CPUS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.kvm.cpu import KvmCpu

needs_kvm = pytest.mark.kvm


@functools.cache
def codes() -> dict[str, Code]:
    return assemble(
        {
            "call": "mov $39, %eax; syscall",
            "fault": "mov 0x10000, %eax",
            "sgdt": "sgdt (%rbx); mov 2(%rbx), %rax; syscall",
        }
    )


@pytest.fixture
def box() -> Iterator[Box]:
    with Box() as box:
        yield box


def descriptors() -> set[str]:
    """What this process has open that has to do with KVM."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue
        if "kvm" in target or "pyvmm-ram" in target:
            found.add(f"{number} {target}")
    return found


def kvm_mappings() -> int:
    """How many mappings of vCPUs and guest RAM this process has."""
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        return sum("kvm" in line or "pyvmm-ram" in line for line in maps)


@needs_kvm
def test_everything_is_given_back() -> None:
    with Box():
        pass  # the first one fills the caches of the process
    before, mapped = descriptors(), kvm_mappings()
    with Box() as box:
        cpu, _ = box.program(codes()["call"])
        assert cpu.run() is SYSCALL
        assert len(descriptors()) > len(before)
        for entry in descriptors():
            assert fcntl.fcntl(int(entry.split()[0]), fcntl.F_GETFD) & fcntl.FD_CLOEXEC, entry
    assert (descriptors(), kvm_mappings()) == (before, mapped)


@needs_kvm
def test_a_vm_with_open_vcpus_is_not_closed(box: Box) -> None:
    cpu, _ = box.program(codes()["call"])
    with pytest.raises(RuntimeError, match="1 vCPUs are still open"):
        box.kvm.close()
    assert cpu.run() is SYSCALL


@needs_kvm
def test_closed_vcpus_are_used_again(box: Box) -> None:
    space = box.space(codes()["call"])
    first, second = box.kvm.create_cpu(), box.kvm.create_cpu()
    assert (first.index, second.index) == (0, 1)
    first.set_address_space(space.root)
    first.fs_base = DATA
    first.kick()
    first.close()
    third = box.cpu(space)
    assert third.index == 0
    assert third.fs_base == 0
    assert third.run() is SYSCALL
    second.close()


@needs_kvm
def test_a_vcpu_is_used_again_by_another_thread(box: Box) -> None:
    space = box.space(codes()["call"])

    def body() -> tuple[int, object]:
        cpu = box.kvm.create_cpu()
        cpu.set_address_space(space.root)
        start(cpu)
        cpu.kick()
        assert told(cpu.run()) == ("Interrupted",)
        exit = told(cpu.run())
        cpu.close()
        return cpu.index, exit

    assert [Thread(body).end() for _ in range(3)] == [(0, ("Syscall",))] * 3


@needs_kvm
def test_a_closed_vcpu_has_no_address_space(box: Box) -> None:
    cpu, _ = box.program(codes()["call"])
    cpu.close()
    again = box.kvm.create_cpu()
    assert again is cpu
    assert again.address_space == 0
    again.close()


@needs_kvm
def test_there_are_no_more_vcpus_than_the_host_gives(box: Box) -> None:
    box.kvm.max_cpus = 2
    cpus = [box.kvm.create_cpu() for _ in range(2)]
    with pytest.raises(OSError, match="no more than 2 vCPUs") as caught:
        box.kvm.create_cpu()
    assert caught.value.errno == errno.EAGAIN
    for cpu in cpus:
        cpu.close()
    box.kvm.create_cpu().close()


@needs_kvm
def test_a_vcpu_that_the_host_refuses(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.ioctl

    def refuse(fd: int, request: int, *argument: Any) -> int:
        if request == abi.KVM_CREATE_VCPU:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return int(real(fd, request, *argument))

    with monkeypatch.context() as patch:
        patch.setattr(vm_module, "ioctl", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            box.kvm.create_cpu()
    cpu, _ = box.program(codes()["call"])
    assert cpu.run() is SYSCALL


@needs_kvm
def test_system_pages_of_many_vcpus(box: Box) -> None:
    """Each vCPU has a GDT and a stack of its own, in whatever page table; making one takes no frame of the guest's."""
    boundary = (0x20_0000 - (SYSTEM_CPUS - SYSTEM)) // 0x1000
    assert boundary < box.kvm.max_cpus, "no vCPU has its page in the second page table"
    space = box.space()
    free = box.frames.free
    cpus: list[KvmCpu] = []
    for index in (0, 1, boundary - 1, boundary, boundary + 1, box.kvm.max_cpus - 1):
        box.kvm._next = index
        cpus.append(box.cpu(space))
        assert cpus[-1].index == index
    assert box.frames.free == free
    space.put(CODE, codes()["fault"].text)
    for cpu in cpus:
        assert told(cpu.run()) == ("PageFault", 0x1_0000, 4)
    space.put(CODE, codes()["sgdt"].text)
    for cpu in cpus:
        start(cpu, rbx=DATA)
        assert cpu.run() is SYSCALL
        state = cpu.save()
        assert state[RAX] == SYSTEM_CPUS + cpu.index * 0x1000


@needs_kvm
def test_two_machines(box: Box) -> None:
    with Box() as other:
        spaces = [one.space(codes()["call"]) for one in (box, other)]
        cpus = [one.cpu(space) for one, space in zip((box, other), spaces, strict=True)]
        assert [cpu.run() for cpu in cpus] == [SYSCALL] * 2
        assert [cpu.index for cpu in cpus] == [0, 0]
        other.kvm.revoke_all()


@needs_kvm
def test_what_an_accelerator_says(box: Box) -> None:
    kvm = box.kvm
    assert (kvm.name, kvm.stub_ring in (0, 3)) == ("kvm", True)
    assert kvm.max_cpus >= 4
    assert kvm.cpuid_features >> 25 & 3 == 3, "no SSE"
    with kvm.exclusive():
        kvm.forget_code(0, 0x1000)


@needs_kvm
def test_memory_must_fit(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    host = box.kvm._host
    narrow = type(host.cpuid).__new__(type(host.cpuid))
    narrow.address_bits = 24
    monkeypatch.setattr(vm_module, "probe", lambda system: host._replace(cpuid=narrow))
    before = descriptors()
    with pytest.raises(KvmUnavailable, match="16 MiB of guest memory do not fit into 24-bit"):
        KvmAccelerator(box.ram, box.frames, box.half)
    assert descriptors() == before


# Why KVM cannot be used


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.ENOENT, "there is no /dev/kvm"), (errno.EACCES, "group kvm"), (errno.EBUSY, "cannot be opened: Device")],
)
def test_no_device(monkeypatch: pytest.MonkeyPatch, number: int, text: str) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(KvmUnavailable, match=text) as caught:
        system.System()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("request_number", "argument", "answer", "text"),
    [
        (abi.KVM_GET_API_VERSION, 0, 11, "API version 11, not 12"),
        (abi.KVM_CHECK_EXTENSION, abi.KVM_CAP_SYNC_REGS, 3, "lacks KVM_CAP_SYNC_REGS"),
        (abi.KVM_CHECK_EXTENSION, abi.KVM_CAP_IMMEDIATE_EXIT, 0, "lacks KVM_CAP_IMMEDIATE_EXIT"),
        (abi.KVM_GET_API_VERSION, 0, OSError(errno.ENOTTY, "not this"), "does not answer as KVM does: not this"),
    ],
)
def test_a_kvm_that_will_not_do(
    monkeypatch: pytest.MonkeyPatch, request_number: int, argument: int, answer: int | OSError, text: str
) -> None:
    def ioctl(fd: int, request: int, value: int) -> int:
        if (request, value) == (request_number, argument):
            if isinstance(answer, OSError):
                raise answer
            return answer
        return abi.KVM_API_VERSION if request == abi.KVM_GET_API_VERSION else 7

    monkeypatch.setattr(os, "open", lambda path, flags: os.dup(0))
    monkeypatch.setattr(system, "ioctl", ioctl)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KvmUnavailable, match=text):
        system.System()
    assert len(os.listdir("/proc/self/fd")) == before


@needs_kvm
def test_no_vm_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    device = system.System()

    def refuse(fd: int, request: int, value: int) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(system, "ioctl", refuse)
    with pytest.raises(KvmUnavailable, match="makes no VM: Cannot allocate memory"):
        device.create_vm()
    device.close()


@needs_kvm
def test_probe_is_run_once(box: Box) -> None:
    device = system.System()
    first = probe.probe(device)
    assert first is probe.probe(device) is box.kvm._host
    device.close()


@needs_kvm
def test_probe_of_a_host_that_does_something_else(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe program that does not call is no reason to hang or to guess."""
    device = system.System()
    other = box.kvm._host.stub._replace(probe=b"\xcd\x03")
    before = descriptors()
    with pytest.raises(KvmUnavailable, match="does not run SYSCALL as expected"):
        probe._run_probe(device, other)
    assert descriptors() == before
    device.close()


# The stub


def test_stub() -> None:
    parts = stub.load()
    assert parts.doorbell_entry == STUB
    assert parts.page[1:9] == DOORBELL.to_bytes(8, "little")
    assert (parts.port_entry - STUB) % 64 == 0
    assert parts.page[parts.port_return - STUB :][:3] == b"\x48\x0f\x07"  # sysretq
    assert parts.vectors == 32
    assert len({parts.syscall_port, parts.exception_port}) == 2
    for vector in range(32):
        entry = 0xFFFF_8080_0000_1000 + vector * parts.exception_size
        assert [stub.vector_of(entry + n, parts) for n in (0, 2, 3)] == [vector] * 3
    assert stub.vector_of(0xFFFF_8080_0000_0FFF, parts) == stub.vector_of(0xFFFF_8080_0000_1100, parts) == -1


@pytest.mark.parametrize("data", [b"", b"PVMS", b"x" * 500, b"PVMS" + b"\xff" * 100])
def test_a_stub_that_is_none(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(stub, "built", lambda name: data)
    with pytest.raises(ValueError, match=r"stub\.bin"):
        stub.load()
