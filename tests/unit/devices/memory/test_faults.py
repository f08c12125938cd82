"""devices/memory/faults.py: what a fault maps, and what it cannot serve."""

from __future__ import annotations

import os

import pytest

from devices.memory import abi
from devices.memory.advice import madvise
from devices.memory.faults import OUT_OF_MEMORY, OutOfMemory
from devices.memory.remap import mremap
from tests.unit.devices.memory.memory_model import (
    ANON,
    BASE,
    EXEC,
    FIXED,
    INFINITY,
    MIB,
    NONE,
    PAGE,
    PRIVATE,
    READ,
    REGION,
    RW,
    SHARED,
    TASK_SIZE,
    WRITE,
    Bytes,
    Machine,
    Space,
    fault_of,
)
from vmm.cpu import PF_FETCH, PF_PRESENT, PF_USER, PF_WRITE

P = PRIVATE | ANON


def test_nothing_there(space: Space) -> None:
    space.mmap(BASE, PAGE, RW, P | FIXED)
    for address in (0, BASE - 1, BASE + PAGE, TASK_SIZE, 1 << 47, 0xFFFF_8080_0000_0000, INFINITY):
        for error in (PF_USER, PF_USER | PF_WRITE, PF_USER | PF_FETCH, PF_USER | PF_PRESENT):
            problem = space.fault(address, error)
            assert fault_of(problem) == (abi.SIGSEGV, abi.SEGV_MAPERR)
            assert problem.address == address  # type: ignore[union-attr]
            assert problem.error == error  # type: ignore[union-attr]


@pytest.mark.parametrize("prot", range(8))
def test_rights(space: Space, prot: int) -> None:
    address = space.mmap(BASE, PAGE, prot, P | FIXED)
    for kind, allowed in ((READ, prot), (WRITE, prot & WRITE), (EXEC, prot & EXEC)):
        got = space.access(address, kind)
        if allowed:
            assert isinstance(got, int)
        else:
            assert fault_of(got) == (abi.SIGSEGV, abi.SEGV_ACCERR)


def test_a_spurious_fault_changes_nothing(space: Space) -> None:
    address = space.mmap(BASE, PAGE, RW, P | FIXED)
    space.store(address, 3)
    free = space.machine.frames.free
    assert space.fault(address, PF_USER) is None
    assert space.fault(address, PF_USER | PF_WRITE | PF_PRESENT) is None
    assert space.machine.frames.free == free
    assert space.load(address) == 3


def test_a_random_touch_maps_16_pages(space: Space) -> None:
    space.mmap(BASE, 8 * MIB, RW, P | FIXED)
    space.store(BASE + 3 * MIB + 5 * PAGE, 1)
    assert space.resident == 16
    space.store(BASE + 3 * MIB + 15 * PAGE, 1)
    assert space.faults == 1
    space.store(BASE + 6 * MIB, 1)
    assert space.resident == 32


def test_a_window_stays_in_its_area_and_off_other_pages(space: Space) -> None:
    space.mmap(BASE + 2 * PAGE, 9 * PAGE, RW, P | FIXED)
    space.store(BASE + 7 * PAGE, 1)
    assert space.resident == 9
    space.mmap(BASE + 16 * PAGE, 16 * PAGE, RW, P | FIXED)
    madvise(space, BASE + 16 * PAGE, 16 * PAGE, abi.MADV_RANDOM)
    space.store(BASE + 21 * PAGE, 1)
    madvise(space, BASE + 16 * PAGE, 16 * PAGE, abi.MADV_NORMAL)
    space.settle()
    space.store(BASE + 24 * PAGE, 2)
    space.settle()
    assert space.resident == 9 + 1 + 10


@pytest.mark.parametrize("downwards", [False, True])
def test_sequential_touch_needs_a_fault_per_2_mib(machine: Machine, downwards: bool) -> None:
    with machine.checked_space() as space:
        space.mmap(BASE, 16 * MIB, RW, P | FIXED)
        pages = range(BASE, BASE + 16 * MIB, PAGE)
        for address in reversed(pages) if downwards else pages:
            space.store(address, 1)
        assert space.faults <= 6 + 8
        assert space.resident == 4096


def test_two_streams_at_once(machine: Machine) -> None:
    with machine.checked_space() as space:
        space.mmap(BASE, 16 * MIB, RW, P | FIXED)
        for offset in range(0, 8 * MIB, PAGE):
            space.store(BASE + offset, 1)
            space.store(BASE + 8 * MIB + offset, 1)
        assert space.faults <= 2 * (6 + 4)


def test_touching_here_and_there_does_not_eat_memory(space: Space) -> None:
    space.mmap(BASE, 64 * REGION, RW, P | FIXED | abi.MAP_NORESERVE)
    for region in range(64):
        space.store(BASE + region * REGION, 1)
    assert space.resident == 64 * 16
    backed = os.fstat(space.machine.ram.fd).st_blocks * 512
    assert backed < (64 * 16 + 64 + 300) * PAGE


def test_2_mib_pages_only_where_they_are_a_gain(machine: Machine) -> None:
    with machine.checked_space() as space:
        space.mmap(BASE, 8 * MIB, RW, P | FIXED)
        for address in range(BASE, BASE + 8 * MIB, PAGE):
            space.store(address, 1)
        large = [bool(space.table.region(a) & 0x80) for a in range(BASE, BASE + 8 * MIB, REGION)]
        assert large == [False] + [machine.large_pages] * 3
        space.settle()
        space.munmap(BASE + 5 * MIB + PAGE, PAGE)
        space.settle()
        assert fault_of(space.access(BASE + 5 * MIB + PAGE)) == (abi.SIGSEGV, abi.SEGV_MAPERR)
        assert space.load(BASE + 5 * MIB + 2 * PAGE) == 1


def test_hugepage_advice_maps_a_region_at_once(space: Space) -> None:
    space.mmap(BASE, 2 * REGION, RW, P | FIXED)
    madvise(space, BASE, 2 * REGION, abi.MADV_HUGEPAGE)
    space.store(BASE + REGION + 77 * PAGE, 1)
    assert space.resident == 512


def test_random_advice_maps_one_page(space: Space) -> None:
    space.mmap(BASE, REGION, RW, P | FIXED)
    madvise(space, BASE, REGION, abi.MADV_RANDOM)
    space.store(BASE + 77 * PAGE, 1)
    assert space.resident == 1


def test_a_2_mib_page_is_split_without_revoking_everything(large_machine: Machine) -> None:
    machine = large_machine
    accelerator = machine.model.accelerator
    with machine.checked_space() as space:
        space.mmap(BASE, REGION, RW, P | FIXED | abi.MAP_POPULATE)
        pa = space.access(BASE)
        assert space.table.region(BASE) & 0x80
        space.settle()
        space.munmap(BASE + PAGE, PAGE)
        assert accelerator.revoked[0] == (pa, REGION)
        assert accelerator.revoked_all == 0
        space.settle()


def test_large_blocks_are_short(machine: Machine) -> None:
    """Where no whole 2 MiB block is left, memory is still used to the last frame."""
    held = []
    while block := machine.frames.allocate_large():
        machine.frames.release(block + 7 * PAGE, 500)
        held += [(block, 7), (block + 507 * PAGE, 5)]
    with machine.checked_space() as space:
        space.mmap(BASE, 4 * REGION, RW, P | FIXED | abi.MAP_POPULATE)
        assert space.resident == 4 * 512
        space.settle()
        space.munmap(BASE, 4 * REGION)
        machine.frames.release_runs(held)


def test_out_of_memory_is_a_result_and_not_the_end(machine: Machine) -> None:
    with machine.checked_space() as space:
        space.mmap(BASE, 64 * MIB, RW, P | FIXED | abi.MAP_NORESERVE)
        got: object = 0
        for address in range(BASE, BASE + 64 * MIB, PAGE):
            got = space.access(address, WRITE)
            if not isinstance(got, int):
                break
        assert got is OUT_OF_MEMORY
        assert isinstance(got, OutOfMemory)
        assert machine.frames.free == 0
        space.settle()
        space.munmap(BASE, MIB)
        space.store(BASE + 2 * MIB, 1)


def test_file_pages_are_read_in_windows(space: Space) -> None:
    file = Bytes(b"".join(bytes([n]) * PAGE for n in range(1, 101)))
    address = space.mmap(BASE, 100 * PAGE, RW, PRIVATE | FIXED, file)
    assert space.load(address + 20 * PAGE) == 21
    assert file.reads == 1
    assert space.resident == 16
    space.store(address + 20 * PAGE, 200)
    assert space.faults == 1, "the first access made the copy"
    assert file.data[20 * PAGE] == 21
    for page in range(100):
        assert space.load(address + page * PAGE) == (200 if page == 20 else page + 1)
    assert file.reads < 8


def test_a_file_s_offset_and_end(space: Space) -> None:
    file = Bytes(b"a" * (3 * PAGE) + b"b" * 100)
    address = space.mmap(BASE, 8 * PAGE, RW, PRIVATE | FIXED, file, PAGE)
    assert space.load(address + 2 * PAGE + 99) == ord("b")
    assert space.load(address + 2 * PAGE + 100) == 0, "zeros up to the end of the last page"
    assert fault_of(space.access(address + 3 * PAGE)) == (abi.SIGBUS, abi.BUS_ADRERR)
    assert space.resident == 3
    space.mprotect(address + 3 * PAGE, PAGE, READ)
    assert fault_of(space.access(address + 3 * PAGE, WRITE)) == (abi.SIGSEGV, abi.SEGV_ACCERR)
    file.data += bytes(PAGE)
    assert space.load(address + 3 * PAGE) == 0, "it has grown meanwhile"


def test_a_file_that_cannot_be_read_is_sigbus(space: Space) -> None:
    file = Bytes(b"x" * PAGE)
    file.broken = True
    address = space.mmap(BASE, PAGE, READ, PRIVATE | FIXED, file)
    assert fault_of(space.access(address)) == (abi.SIGBUS, abi.BUS_ADRERR)
    file.broken = False
    assert space.load(address) == ord("x")


def test_shared_memory_has_an_end(space: Space) -> None:
    address = space.mmap(BASE, 4 * PAGE, RW, SHARED | ANON | FIXED)
    mremap(space, address, 4 * PAGE, 6 * PAGE, 1, 0)
    space.store(address + 3 * PAGE, 1)
    assert fault_of(space.access(address + 4 * PAGE)) == (abi.SIGBUS, abi.BUS_ADRERR)


def grows(space: Space, limit: int = 8 * MIB) -> int:
    """A stack of one page that ends at BASE + 64 MiB; its end."""
    space.rlimits = {i: (limit if i == abi.RLIMIT_STACK else INFINITY, INFINITY) for i in range(16)}
    space.mmap(BASE + 64 * MIB - PAGE, PAGE, RW, P | FIXED | abi.MAP_GROWSDOWN)
    return BASE + 64 * MIB


def test_a_stack_grows_to_its_limit(space: Space) -> None:
    top = grows(space)
    for address in range(top - 1, top - 8 * MIB - 1, -PAGE):
        space.store(address, 1)
    assert fault_of(space.access(top - 8 * MIB - 1, WRITE)) == (abi.SIGSEGV, abi.SEGV_MAPERR)
    assert space.total_vm == 2048
    assert space.faults < 2 * 2048 / 16


def test_a_stack_grows_by_a_jump(space: Space) -> None:
    top = grows(space)
    space.store(top - 5 * MIB, 1)
    assert space.resident == 16
    assert fault_of(space.access(top - 9 * MIB)) == (abi.SIGSEGV, abi.SEGV_MAPERR)


def test_an_odd_limit_is_used_to_the_last_page(space: Space) -> None:
    top = grows(space, 23 * PAGE + 100)
    space.store(top - 23 * PAGE, 1)
    assert fault_of(space.access(top - 24 * PAGE)) == (abi.SIGSEGV, abi.SEGV_MAPERR)


@pytest.mark.parametrize(("prot", "gap"), [(RW, 256), (READ, 256), (NONE, 0)])
def test_the_gap_below_a_stack(space: Space, prot: int, gap: int) -> None:
    top = grows(space)
    below = top - 1024 * PAGE
    space.mmap(below, PAGE, prot, P | FIXED)
    lowest = below + PAGE + gap * PAGE
    space.store(lowest, 1)
    assert fault_of(space.access(lowest - 1, WRITE))[0] == abi.SIGSEGV


def test_other_limits_stop_a_stack(space: Space) -> None:
    top = grows(space)
    space.rlimits = {i: (10 * PAGE if i == abi.RLIMIT_AS else INFINITY, INFINITY) for i in range(16)}
    space.store(top - 10 * PAGE, 1)
    assert fault_of(space.access(top - 11 * PAGE)) == (abi.SIGSEGV, abi.SEGV_MAPERR)


def test_a_stack_does_not_grow_below_the_lowest_address(space: Space) -> None:
    space.mmap(0x20000, PAGE, RW, P | FIXED | abi.MAP_GROWSDOWN)
    space.store(0x10000, 1)
    assert fault_of(space.access(0xFFFF)) == (abi.SIGSEGV, abi.SEGV_MAPERR)


def test_code_is_forgotten_when_its_frames_are_freed(machine: Machine) -> None:
    accelerator = machine.model.accelerator
    with machine.checked_space() as space:
        address = space.mmap(BASE, PAGE, READ | EXEC, PRIVATE | FIXED, Bytes(b"\xc3" * PAGE))
        pa = space.access(address, EXEC)
        assert isinstance(pa, int)
        assert machine.is_code(pa)
        assert accelerator.forgotten == []
        space.munmap(address, PAGE)
        assert accelerator.forgotten == [(pa & -PAGE, PAGE)]
        assert not machine.is_code(pa)


def test_code_is_forgotten_when_the_monitor_writes_to_it(machine: Machine) -> None:
    accelerator = machine.model.accelerator
    with machine.checked_space() as space:
        address = space.mmap(BASE, 2 * PAGE, RW, P | FIXED)
        space.write(address, b"\xc3")
        space.write(address, b"\xc3")
        assert accelerator.forgotten == []
        space.mprotect(address, PAGE, RW | EXEC)
        for n in range(1, 3):
            space.write(address + 5, b"\x90\x90")
            assert len(accelerator.forgotten) == n, "each time"
        space.write(address + PAGE, b"data")
        assert len(accelerator.forgotten) == 2
        assert len(space.views(address, 2 * PAGE, True)) >= 1
        assert len(accelerator.forgotten) == 3
