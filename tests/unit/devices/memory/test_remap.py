"""devices/memory/remap.py: mremap, its errors in Linux's order and what it moves."""

from __future__ import annotations

import errno

import pytest

from devices.memory import abi
from devices.memory.backing import SpecialPages
from devices.memory.remap import mremap
from tests.unit.devices.memory.memory_model import (
    ANON,
    BASE,
    FIXED,
    INFINITY,
    PAGE,
    PRIVATE,
    READ,
    REGION,
    RW,
    SHARED,
    TASK_SIZE,
    Bytes,
    Machine,
    Space,
    fails,
    fault_of,
    layout,
)
from vmm.memory.frames import OutOfFrames

P = PRIVATE | ANON
MAYMOVE, MFIXED, DONTUNMAP = 1, 2, 4
FAR = BASE + 64 * REGION


@pytest.fixture
def mapped(space: Space) -> Space:
    """Pages 0 to 7 in one area, then a hole."""
    space.mmap(BASE, 8 * PAGE, RW, P | FIXED)
    for page in range(8):
        space.store(BASE + page * PAGE, page + 1)
    space.settle()
    return space


@pytest.mark.parametrize(
    ("address", "old", "new", "flags", "target", "number"),
    [
        (BASE, PAGE, PAGE, 8, 0, errno.EINVAL),
        (BASE, PAGE, PAGE, MFIXED, FAR, errno.EINVAL),
        (BASE, PAGE, PAGE, DONTUNMAP, 0, errno.EINVAL),
        (BASE, PAGE, 2 * PAGE, DONTUNMAP | MAYMOVE, 0, errno.EINVAL),
        (BASE + 1, PAGE, PAGE, 0, 0, errno.EINVAL),
        (BASE, PAGE, 0, MAYMOVE, 0, errno.EINVAL),
        (BASE, PAGE, INFINITY, MAYMOVE, 0, errno.EINVAL),
        (BASE, PAGE, 1 << 48, MAYMOVE, 0, errno.EINVAL),
        (BASE - PAGE, PAGE, PAGE, 0, 0, errno.EFAULT),
        (BASE + 8 * PAGE, PAGE, PAGE, 0, 0, errno.EFAULT),
        (BASE, 0, PAGE, MAYMOVE, 0, errno.EINVAL),
        (BASE, 9 * PAGE, 10 * PAGE, MAYMOVE, 0, errno.EFAULT),
        (BASE, 9 * PAGE, 9 * PAGE, MAYMOVE | MFIXED, FAR, errno.EFAULT),
        (BASE, PAGE, PAGE, MAYMOVE | MFIXED, FAR + 1, errno.EINVAL),
        (BASE, PAGE, PAGE, MAYMOVE | MFIXED, TASK_SIZE, errno.EINVAL),
        (BASE, PAGE, PAGE, MAYMOVE | MFIXED, INFINITY & -PAGE, errno.EINVAL),
        (BASE, PAGE, TASK_SIZE, MAYMOVE | MFIXED, PAGE, errno.EINVAL),
        (BASE, 4 * PAGE, 4 * PAGE, MAYMOVE | MFIXED, BASE + 3 * PAGE, errno.EINVAL),
        (BASE, 4 * PAGE, PAGE, MAYMOVE | MFIXED, BASE, errno.EINVAL),
        (BASE + 4 * PAGE, PAGE, 4 * PAGE, MAYMOVE | MFIXED, BASE + 2 * PAGE, errno.EINVAL),
        (BASE, PAGE, PAGE, MAYMOVE | MFIXED, 0, errno.EPERM),
        (BASE, 4 * PAGE, 5 * PAGE, 0, 0, errno.ENOMEM),
        (BASE, 8 * PAGE, 1 << 46, MAYMOVE, 0, errno.ENOMEM),
    ],
)
def test_errors(mapped: Space, address: int, old: int, new: int, flags: int, target: int, number: int) -> None:
    with fails(number):
        mremap(mapped, address, old, new, flags, target)
    assert layout(mapped) == [(BASE, BASE + 8 * PAGE, RW)]
    assert [mapped.load(BASE + page * PAGE) for page in range(8)] == list(range(1, 9))


def test_shrink_and_grow_in_place(mapped: Space) -> None:
    assert mremap(mapped, BASE, 8 * PAGE, 3 * PAGE - 5, 0, 0) == BASE
    mapped.settle()
    assert layout(mapped) == [(BASE, BASE + 3 * PAGE, RW)]
    assert mremap(mapped, BASE, 3 * PAGE, 8 * PAGE, 0, 0) == BASE
    assert layout(mapped) == [(BASE, BASE + 8 * PAGE, RW)]
    assert [mapped.load(BASE + page * PAGE) for page in range(8)] == [1, 2, 3, 0, 0, 0, 0, 0]
    assert mremap(mapped, BASE, 8 * PAGE, 8 * PAGE, 0, 0) == BASE


def test_grow_by_moving(mapped: Space) -> None:
    mapped.mmap(BASE + 8 * PAGE, PAGE, READ, P | FIXED)
    place = mremap(mapped, BASE + 4 * PAGE, 4 * PAGE, 20 * PAGE, MAYMOVE, 0)
    mapped.settle()
    assert [mapped.load(place + page * PAGE) for page in range(5)] == [5, 6, 7, 8, 0]
    assert layout(mapped)[:2] == [(BASE, BASE + 4 * PAGE, RW), (BASE + 8 * PAGE, BASE + 9 * PAGE, READ)]
    assert fault_of(mapped.access(BASE + 4 * PAGE)) == (abi.SIGSEGV, abi.SEGV_MAPERR)


def test_fixed_replaces_what_is_there(mapped: Space) -> None:
    mapped.mmap(FAR - PAGE, 6 * PAGE, READ, P | FIXED)
    assert mremap(mapped, BASE, 8 * PAGE, 3 * PAGE, MAYMOVE | MFIXED, FAR) == FAR
    mapped.settle()
    assert layout(mapped) == [
        (FAR - PAGE, FAR, READ),
        (FAR, FAR + 3 * PAGE, RW),
        (FAR + 3 * PAGE, FAR + 5 * PAGE, READ),
    ]
    assert [mapped.load(FAR + page * PAGE) for page in range(3)] == [1, 2, 3]


def test_dontunmap(mapped: Space) -> None:
    mapped.reflag(next(iter(mapped.vmas)), next(iter(mapped.vmas)).flags | abi.VM_LOCKED)
    place = mremap(mapped, BASE, 8 * PAGE, 8 * PAGE, MAYMOVE | DONTUNMAP, 0)
    mapped.settle()
    assert mapped.load(place + 3 * PAGE) == 4
    assert mapped.load(BASE + 3 * PAGE) == 0
    assert mapped.locked_vm == 8, "only the moved one is locked"
    assert mremap(mapped, place, PAGE, PAGE, MAYMOVE | DONTUNMAP | MFIXED, FAR) == FAR
    assert mapped.load(FAR) == 1


def test_shared_memory_twice(space: Space) -> None:
    one = space.mmap(BASE, 4 * PAGE, RW, SHARED | ANON | FIXED)
    two = mremap(space, one + PAGE, 0, 2 * PAGE, MAYMOVE, 0)
    space.store(one + 2 * PAGE, 9)
    assert space.load(two + PAGE) == 9
    space.munmap(one, 4 * PAGE)
    space.settle()
    assert space.load(two + PAGE) == 9
    assert fault_of(space.access(one)) == (abi.SIGSEGV, abi.SEGV_MAPERR)


def test_a_file_mapping_keeps_its_place_in_the_file(space: Space) -> None:
    file = Bytes(b"".join(bytes([n]) * PAGE for n in range(1, 9)))
    space.mmap(BASE, 4 * PAGE, RW, PRIVATE | FIXED, file, 2 * PAGE)
    place = mremap(space, BASE + PAGE, 3 * PAGE, 5 * PAGE, MAYMOVE, 0)
    assert [space.load(place + page * PAGE) for page in range(5)] == [4, 5, 6, 7, 8]
    with fails(errno.EINVAL):
        space.mmap(FAR, PAGE, RW, PRIVATE | FIXED, file, abi.RLIM_INFINITY // 2 - 2 * PAGE + 1)
        mremap(space, FAR, PAGE, 1 << 46, MAYMOVE, 0)


def test_limits(mapped: Space) -> None:
    mapped.ipc_lock = False
    unlimited = dict.fromkeys(range(16), (INFINITY, INFINITY))
    mapped.rlimits = unlimited | {abi.RLIMIT_AS: (9 * PAGE, INFINITY)}
    with fails(errno.ENOMEM):
        mremap(mapped, BASE, 8 * PAGE, 10 * PAGE, 0, 0)
    with fails(errno.ENOMEM):
        mremap(mapped, BASE, 8 * PAGE, 8 * PAGE, MAYMOVE | DONTUNMAP, 0)
    mapped.rlimits = unlimited | {abi.RLIMIT_MEMLOCK: (8 * PAGE, INFINITY)}
    vma = next(iter(mapped.vmas))
    mapped.reflag(vma, vma.flags | abi.VM_LOCKED)
    with fails(errno.EAGAIN):
        mremap(mapped, BASE, 8 * PAGE, 9 * PAGE, 0, 0)
    mapped.rlimits = unlimited
    mremap(mapped, BASE, 8 * PAGE, 9 * PAGE, 0, 0)
    assert mapped.locked_vm == 9
    assert mapped.resident >= 9, "what is locked is present"


def test_special_pages_move_but_keep_their_size(machine: Machine) -> None:
    frame = machine.frames.allocate()
    with machine.checked_space() as space:
        machine.model.free -= 1
        address = space.install_special(SpecialPages(b"[vvar]", [frame], executable=False))
        with fails(errno.EFAULT):
            mremap(space, address, PAGE, 2 * PAGE, MAYMOVE, 0)
        assert mremap(space, address, PAGE, PAGE, MAYMOVE | MFIXED, FAR) == FAR
        assert space.frame_of(FAR, False) == frame


@pytest.mark.parametrize("shift", [8 * REGION, 8 * REGION + 3 * PAGE])
def test_2_mib_pages(machine: Machine, shift: int) -> None:
    with machine.checked_space() as space:
        space.mmap(BASE, 3 * REGION, RW, P | FIXED | abi.MAP_POPULATE)
        for at in range(0, 3 * REGION, PAGE):
            space.machine.ram.dwords[space.frame_of(BASE + at, True) >> 2] = at
        space.settle()
        mremap(space, BASE + PAGE, 3 * REGION - 2 * PAGE, 3 * REGION - 2 * PAGE, MAYMOVE | MFIXED, BASE + shift + PAGE)
        space.settle()
        assert bool(space.table.region(BASE + shift + REGION) & 0x80) == (machine.large_pages and shift % REGION == 0)
        for at in range(PAGE, 3 * REGION - PAGE, PAGE):
            assert space.read_u32(BASE + shift + at) == at
        assert space.read_u32(BASE) == 0
        assert space.read_u32(BASE + 3 * REGION - PAGE) == 3 * REGION - PAGE


def test_without_frames_nothing_is_moved(machine: Machine) -> None:
    with machine.checked_space() as space:
        space.mmap(BASE, PAGE, RW, P | FIXED)
        space.store(BASE, 7)
        rest = machine.frames.allocate_run(machine.frames.free)
        with pytest.raises(OutOfFrames):
            mremap(space, BASE, PAGE, PAGE, MAYMOVE | MFIXED, 1 << 45)
        space.settle()
        assert space.load(BASE) == 7
        assert layout(space) == [(BASE, BASE + PAGE, RW)]
        machine.frames.release_runs(rest)
