"""devices/memory/space.py: fork, and copy-on-write between what it made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devices.memory import abi
from devices.memory.advice import madvise
from tests.unit.devices.memory.memory_model import (
    ANON,
    BASE,
    FIXED,
    NONE,
    PAGE,
    PRIVATE,
    READ,
    REGION,
    RW,
    SHARED,
    Bytes,
    Machine,
    Space,
    fault_of,
    layout,
)
from vmm.memory.frames import OutOfFrames

if TYPE_CHECKING:
    from collections.abc import Iterator

P = PRIVATE | ANON


def forked(parent: Space) -> Space:
    child = parent.fork()
    child.__class__ = Space
    assert isinstance(child, Space)
    child.cpu, child.faults = parent.cpu, 0
    return child


@pytest.fixture
def parent(space: Space) -> Iterator[Space]:
    space.mmap(BASE, 40 * PAGE, RW, P | FIXED)
    for page in range(40):
        space.store(BASE + page * PAGE, page + 1)
    space.settle()
    return space  # type: ignore[return-value]


def test_each_side_has_its_own_writes(parent: Space) -> None:
    child = forked(parent)
    parent.settle(child)
    child.store(BASE, 100)
    parent.settle(child)
    parent.store(BASE + PAGE, 101)
    parent.settle(child)
    assert [parent.load(BASE + n * PAGE) for n in range(3)] == [1, 101, 3]
    assert [child.load(BASE + n * PAGE) for n in range(3)] == [100, 2, 3]
    child.teardown()
    parent.settle()


def test_pages_are_shared_until_written(parent: Space) -> None:
    free = parent.machine.frames.free
    child = forked(parent)
    assert free - parent.machine.frames.free <= 5, "tables only"
    assert child.resident == 40
    assert child.access(BASE) == parent.access(BASE)
    child.store(BASE, 1)
    assert child.access(BASE) != parent.access(BASE)
    child.teardown()


def test_the_last_user_writes_without_a_copy(parent: Space) -> None:
    child = forked(parent)
    frame = parent.access(BASE)
    child.teardown()
    parent.settle()
    faults = parent.faults
    for page in range(16):
        parent.store(BASE + page * PAGE, 200)
    assert parent.access(BASE) == frame
    assert parent.faults == faults + 1, "the window around is made writable, too"


def test_the_monitor_s_writes_copy_as_well(parent: Space) -> None:
    parent.write(BASE, b"before")
    child = forked(parent)
    parent.write(BASE, b"parent")
    child.write_u32(BASE, 7)
    assert parent.read(BASE, 6) == b"parent"
    assert child.read_u32(BASE) == 7
    views = child.views(BASE + PAGE, PAGE, True)
    views[0][0] = 99
    assert parent.load(BASE + PAGE) == 2
    child.teardown()


def test_rights_do_not_come_back_by_mprotect(parent: Space) -> None:
    child = forked(parent)
    child.mprotect(BASE, 40 * PAGE, READ)
    child.mprotect(BASE, 40 * PAGE, RW)
    parent.settle(child)
    child.store(BASE, 55)
    assert parent.load(BASE) == 1
    child.teardown()


def test_shared_memory_stays_shared(parent: Space) -> None:
    address = parent.mmap(0, 4 * PAGE, RW, SHARED | ANON)
    parent.store(address, 1)
    child = forked(parent)
    child.store(address, 2)
    child.store(address + PAGE, 3)
    assert parent.load(address) == 2
    assert parent.load(address + PAGE) == 3
    assert parent.futex_key(address, True) == child.futex_key(address, True)
    parent.munmap(address, 4 * PAGE)
    assert child.load(address + PAGE) == 3
    child.teardown()


def test_advice_about_fork(parent: Space) -> None:
    madvise(parent, BASE, 10 * PAGE, abi.MADV_DONTFORK)
    madvise(parent, BASE + 20 * PAGE, 10 * PAGE, abi.MADV_WIPEONFORK)
    child = forked(parent)
    assert fault_of(child.access(BASE)) == (abi.SIGSEGV, abi.SEGV_MAPERR)
    assert child.load(BASE + 10 * PAGE) == 11
    assert child.load(BASE + 20 * PAGE) == 0
    assert parent.load(BASE + 20 * PAGE) == 21
    assert child.total_vm == 30
    child.teardown()


def test_files_stacks_and_kept_pages(parent: Space) -> None:
    parent.mmap(BASE + REGION, 2 * PAGE, RW, PRIVATE | FIXED, Bytes(b"file"))
    parent.write(BASE + REGION, b"mine")
    parent.mprotect(BASE, PAGE, NONE)
    parent.mmap(BASE + 8 * REGION, PAGE, RW, P | FIXED | abi.MAP_GROWSDOWN)
    parent.brk_end = 12345
    child = forked(parent)
    assert child.brk_end == 12345
    assert layout(child) == layout(parent)
    assert child.read(BASE + REGION, 4) == b"mine"
    child.store(BASE + 8 * REGION - 9 * PAGE, 1)
    child.mprotect(BASE, PAGE, RW)
    child.store(BASE, 77)
    parent.mprotect(BASE, PAGE, READ)
    assert parent.load(BASE) == 1
    child.teardown()


def test_locks_are_not_inherited(parent: Space) -> None:
    parent.mmap(0, 3 * PAGE, RW, P | abi.MAP_LOCKED)
    child = forked(parent)
    assert (parent.locked_vm, child.locked_vm) == (3, 0)
    child.teardown()


def test_2_mib_pages(machine: Machine) -> None:
    with machine.checked_space() as parent:
        parent.mmap(BASE, REGION, RW, P | FIXED | abi.MAP_POPULATE)
        parent.store(BASE + 5 * PAGE, 5)
        parent.settle()
        child = forked(parent)
        parent.settle(child)
        child.store(BASE + 5 * PAGE, 6)
        parent.settle(child)
        assert parent.load(BASE + 5 * PAGE) == 5
        parent.store(BASE + 6 * PAGE, 7)
        assert child.load(BASE + 6 * PAGE) == 0
        child.teardown()
        parent.settle()
        parent.store(BASE + 7 * PAGE, 1)
        parent.settle()


def test_generations(machine: Machine) -> None:
    with machine.checked_space() as parent:
        parent.mmap(BASE, 8 * PAGE, RW, P | FIXED)
        parent.store(BASE, 1)
        family = [parent]
        for n in range(2, 8):
            family.append(forked(family[-1]))
            family[-1].store(BASE, n)
            family[0].settle(*family[1:])
        assert [space.load(BASE) for space in family] == list(range(1, 8))
        for space in family[1:][::-1]:
            space.teardown()


def test_no_memory_for_a_child(machine: Machine) -> None:
    with machine.checked_space() as parent:
        parent.mmap(BASE, PAGE, RW, P | FIXED)
        parent.mmap(BASE + (1 << 40), PAGE, RW, P | FIXED)
        for address in (BASE, BASE + (1 << 40)):
            parent.store(address, 3)
        for spare in range(8):
            rest = machine.frames.allocate_run(machine.frames.free - spare)
            try:
                forked(parent).teardown()
                assert spare == 7, "PML4 and two times PDPT, PD and PT"
            except OutOfFrames:
                assert machine.frames.free == spare
            parent.settle()
            parent.store(BASE, 4)
            machine.frames.release_runs(rest)


def test_tables_of_the_dead_are_not_reused_before_all_is_revoked() -> None:
    machine = Machine(32, populates=True, discard_revokes=True)
    machine.keeps_tables = True
    before = machine.frames.free
    parent = machine.space()
    parent.mmap(BASE, 4 * PAGE, RW, P | FIXED)
    parent.store(BASE, 1)
    tables: set[int] = set()
    for n in range(40):
        child = forked(parent)
        for space in (parent, child):
            space.cpu.absorb(space.root)
        assert child.root not in tables, "a table in the place of one that a CPU may still know"
        tables.add(child.root)
        child.store(BASE, n)
        assert parent.load(BASE) == 1
        child.teardown()
    kept = machine.frames.free
    assert machine.reclaim(1) > 0, "they are given back when memory is short"
    assert machine.frames.free > kept
    parent.teardown()
    machine.free_tables()
    assert machine.frames.free == before
