"""What the tests of devices.memory share: an address space over a model machine, and a program that touches it."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from devices.errors import SysError
from devices.memory.faults import MemoryFault, Problem
from devices.memory.space import AddressSpace, MachineMemory
from devices.random import Random
from tests.unit.vmm.memory_support import ModelMachine
from vmm.cpu import PF_FETCH, PF_USER, PF_WRITE

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
KIB = 1 << 10
MIB = 1 << 20
REGION = 2 * MIB
TASK_SIZE = 0x7FFF_FFFF_F000
NONE, READ, WRITE, EXEC = 0, 1, 2, 4
RW = READ | WRITE
SHARED, PRIVATE, FIXED, ANON = 1, 2, 0x10, 0x20
INFINITY = 0xFFFF_FFFF_FFFF_FFFF
BASE = 0x4000_0000


class NoRandom(Random):
    """Always 0, so that addresses are the same in each run."""

    def below(self, limit: int) -> int:
        return 0


class Bytes:
    """A file in memory, for private mappings; counts how often it is read."""

    path = b"/file"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads = 0
        self.broken = False

    def read_into(self, view: memoryview, offset: int) -> int:
        self.reads += 1
        if self.broken:
            raise OSError(errno.EIO, "broken")
        part = self.data[offset : offset + len(view)]
        view[: len(part)] = part
        return len(part)


class Space(AddressSpace):
    """An address space with a CPU that runs in it: it uses what its TLB holds, stale or not, and faults."""

    def __init__(self, machine: MachineMemory) -> None:
        super().__init__(machine)
        self.cpu = machine.model.accelerator  # type: ignore[attr-defined]
        self.faults = 0

    def access(self, va: int, kind: int = READ) -> int | Problem:
        """Guest-physical address that an access reaches, or what the kernel is told when it cannot be served."""
        write, fetch = kind == WRITE, kind == EXEC
        for _ in range(3):
            pa: int = self.cpu.translate(self.root, va, write, fetch)
            if pa >= 0:
                return pa
            self.faults += 1
            error = PF_USER | (PF_WRITE if write else 0) | (PF_FETCH if fetch else 0)
            problem = self.fault(va, error)
            if problem is not None:
                return problem
        raise AssertionError(f"the fault at {va:#x} comes again and again")

    def load(self, va: int) -> int:
        """The byte that the program reads."""
        pa = self.access(va)
        assert isinstance(pa, int), pa
        return self.machine.ram.view[pa]

    def store(self, va: int, value: int) -> None:
        pa = self.access(va, WRITE)
        assert isinstance(pa, int), pa
        self.machine.ram.view[pa] = value

    def settle(self, *others: AddressSpace) -> None:
        """Nothing stale is cached; from here on everything that can be is."""
        self.cpu.check({self.root, *(o.root for o in others)})
        for space in (self, *others):
            self.cpu.absorb(space.root)


class Machine(MachineMemory):
    """A model machine as devices/memory sees it."""

    def __init__(self, mib: int = 32, **how: bool) -> None:
        self.model = ModelMachine(mib, **how)
        accelerator = self.model.accelerator
        super().__init__(self.model.ram, self.model.frames, self.model.half, accelerator, NoRandom())
        self.keeps_tables = False  # every frame is looked for after the end of a space; test_fork.py has it on

    def space(self) -> Space:
        return Space(self)

    @contextmanager
    def checked_space(self) -> Iterator[Space]:
        """A space after whose end every frame is free again."""
        space = self.space()
        yield space
        space.settle()
        space.teardown()
        space.teardown()
        assert space.resident == space.total_vm == space.data_vm == space.locked_vm == 0
        self.model.accelerator.check(set())
        self.model.assert_all_free()


def fault_of(problem: object) -> tuple[int, int]:
    """(signal, si_code) of a fault that could not be served."""
    assert isinstance(problem, MemoryFault), problem
    return problem.signal, problem.code


@contextmanager
def fails(number: int) -> Iterator[None]:
    """The call fails with this errno."""
    with pytest.raises(SysError) as caught:
        yield
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]


def layout(space: AddressSpace) -> list[tuple[int, int, int]]:
    """(start, end, PROT_*) of each area."""
    return [(vma.start, vma.end, vma.flags & 7) for vma in space.regions()]
