"""devices/memory/advice.py: madvise, msync, mincore."""

from __future__ import annotations

import errno

import pytest

from devices.memory import abi
from devices.memory.advice import madvise, mincore, msync
from devices.memory.backing import SpecialPages
from devices.memory.locking import mlock
from tests.unit.devices.memory.memory_model import (
    ANON,
    BASE,
    FIXED,
    INFINITY,
    NONE,
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
    layout,
)

P = PRIVATE | ANON
OK = 0
KNOWN = [value for name, value in vars(abi).items() if name.startswith("MADV_")]

# errno of each advice for a private anonymous area, a locked one, a private file, shared memory
TABLE = {
    abi.MADV_NORMAL: (OK, OK, OK, OK),
    abi.MADV_RANDOM: (OK, OK, OK, OK),
    abi.MADV_SEQUENTIAL: (OK, OK, OK, OK),
    abi.MADV_WILLNEED: (OK, OK, OK, OK),
    abi.MADV_DONTNEED: (OK, errno.EINVAL, OK, OK),
    abi.MADV_FREE: (OK, errno.EINVAL, errno.EINVAL, errno.EINVAL),
    abi.MADV_REMOVE: (errno.EINVAL, errno.EINVAL, errno.EACCES, OK),
    abi.MADV_DONTFORK: (OK, OK, OK, OK),
    abi.MADV_DOFORK: (OK, OK, OK, OK),
    abi.MADV_MERGEABLE: (OK, OK, OK, OK),
    abi.MADV_UNMERGEABLE: (OK, OK, OK, OK),
    abi.MADV_HUGEPAGE: (OK, OK, OK, OK),
    abi.MADV_NOHUGEPAGE: (OK, OK, OK, OK),
    abi.MADV_DONTDUMP: (OK, OK, OK, OK),
    abi.MADV_DODUMP: (OK, OK, OK, OK),
    abi.MADV_WIPEONFORK: (OK, OK, errno.EINVAL, errno.EINVAL),
    abi.MADV_KEEPONFORK: (OK, OK, OK, OK),
    abi.MADV_COLD: (OK, errno.EINVAL, OK, OK),
    abi.MADV_PAGEOUT: (OK, errno.EINVAL, OK, OK),
    abi.MADV_POPULATE_READ: (OK, OK, OK, OK),
    abi.MADV_POPULATE_WRITE: (OK, OK, OK, OK),
    abi.MADV_DONTNEED_LOCKED: (OK, OK, OK, OK),
    abi.MADV_COLLAPSE: (errno.EINVAL, errno.EINVAL, errno.EINVAL, errno.EINVAL),
}


def test_the_table_is_whole() -> None:
    assert sorted(TABLE) == sorted(KNOWN)


@pytest.mark.parametrize("advice", KNOWN)
def test_each_advice(space: Space, advice: int) -> None:
    spots = [BASE + n * 16 * PAGE for n in range(4)]
    space.mmap(spots[0], 4 * PAGE, RW, P | FIXED)
    space.mmap(spots[1], 4 * PAGE, RW, P | FIXED | abi.MAP_LOCKED)
    space.mmap(spots[2], 4 * PAGE, RW, PRIVATE | FIXED, Bytes(b"x" * (4 * PAGE)))
    space.mmap(spots[3], 4 * PAGE, RW, SHARED | ANON | FIXED)
    for spot, number in zip(spots, TABLE[advice], strict=True):
        if number:
            with fails(number):
                madvise(space, spot + PAGE, 2 * PAGE, advice)
        else:
            madvise(space, spot + PAGE, 2 * PAGE - 1, advice)
        with fails(errno.EINVAL):
            madvise(space, spot + 1, PAGE, advice)
        with fails(errno.EINVAL):
            madvise(space, spot, INFINITY, advice)
        with fails(errno.EINVAL):
            madvise(space, spot, INFINITY - PAGE + 1, advice)
        madvise(space, spot, 0, advice)
        with fails(number or errno.ENOMEM):
            madvise(space, spot, 5 * PAGE, advice)


@pytest.mark.parametrize("advice", [5, 6, 7, 26, 100, -1, 102])
def test_unknown_advice(space: Space, advice: int) -> None:
    with fails(errno.EINVAL):
        madvise(space, BASE, 0, advice)


def test_flags_split_areas_and_join_them_again(space: Space) -> None:
    space.mmap(BASE, 6 * PAGE, RW, P | FIXED)
    madvise(space, BASE + PAGE, PAGE, abi.MADV_DONTFORK)
    madvise(space, BASE + 3 * PAGE, PAGE, abi.MADV_DONTFORK)
    assert len(layout(space)) == 5
    madvise(space, BASE, 6 * PAGE, abi.MADV_DOFORK)
    assert len(layout(space)) == 1


def test_too_many_areas(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devices.memory.abi.MAX_MAP_COUNT", 2)
    space.mmap(BASE, 6 * PAGE, RW, P | FIXED)
    with fails(errno.ENOMEM):
        madvise(space, BASE + PAGE, PAGE, abi.MADV_DONTFORK)
    madvise(space, BASE, PAGE, abi.MADV_DONTFORK)


@pytest.mark.parametrize("advice", [abi.MADV_DONTNEED, abi.MADV_FREE, abi.MADV_DONTNEED_LOCKED])
def test_dropped_pages_read_as_zeros_and_are_free(space: Space, advice: int) -> None:
    space.mmap(BASE, 2 * REGION, RW, P | FIXED | abi.MAP_POPULATE)
    for page in range(8):
        space.store(BASE + page * PAGE, 1)
    free = space.machine.frames.free
    space.settle()
    madvise(space, BASE + 2 * PAGE, 3 * PAGE, advice)
    space.settle()
    assert space.resident == 1024 - 3
    assert space.machine.frames.free >= free + 2
    assert [space.load(BASE + page * PAGE) for page in range(8)] == [1, 1, 0, 0, 0, 1, 1, 1]


def test_dropped_file_pages_are_the_file_s_again(space: Space) -> None:
    space.mmap(BASE, PAGE, RW, PRIVATE | FIXED, Bytes(b"file"))
    space.write(BASE, b"mine")
    madvise(space, BASE, PAGE, abi.MADV_DONTNEED)
    assert space.read(BASE, 4) == b"file"


def test_a_hole_in_shared_memory(space: Space) -> None:
    space.mmap(BASE, 4 * PAGE, RW, SHARED | ANON | FIXED)
    space.write(BASE, b"x" * (4 * PAGE))
    space.settle()
    madvise(space, BASE, 4 * PAGE, abi.MADV_DONTNEED)
    assert space.read(BASE, 1) == b"x", "dropping pages of it drops no contents"
    madvise(space, BASE + PAGE, 2 * PAGE, abi.MADV_REMOVE)
    assert [space.load(BASE + n * PAGE) for n in range(4)] == [ord("x"), 0, 0, ord("x")]
    space.mprotect(BASE, PAGE, READ)
    madvise(space, BASE, PAGE, abi.MADV_REMOVE)
    assert space.load(BASE) == 0


def test_populate(space: Space) -> None:
    space.mmap(BASE, 20 * PAGE, RW, P | FIXED)
    madvise(space, BASE + 3 * PAGE, 5 * PAGE, abi.MADV_POPULATE_WRITE)
    assert space.resident == 5
    space.mprotect(BASE, PAGE, NONE)
    with fails(errno.EINVAL):
        madvise(space, BASE, PAGE, abi.MADV_POPULATE_READ)
    space.mprotect(BASE, PAGE, READ)
    with fails(errno.EINVAL):
        madvise(space, BASE, PAGE, abi.MADV_POPULATE_WRITE)
    madvise(space, BASE, PAGE, abi.MADV_POPULATE_READ)
    space.mmap(BASE, 4 * PAGE, RW, PRIVATE | FIXED, Bytes(b"x" * PAGE))
    with fails(errno.EFAULT):
        madvise(space, BASE, 4 * PAGE, abi.MADV_POPULATE_WRITE)


def test_populate_without_memory(machine: Machine) -> None:
    with machine.checked_space() as space:
        space.mmap(BASE, 64 << 20, RW, P | FIXED | abi.MAP_NORESERVE)
        with fails(errno.ENOMEM):
            madvise(space, BASE, 64 << 20, abi.MADV_POPULATE_WRITE)


def test_special_pages_take_little_advice(machine: Machine) -> None:
    frame = machine.frames.allocate()
    with machine.checked_space() as space:
        machine.model.free -= 1
        address = space.install_special(SpecialPages(b"[vvar]", [frame], executable=False))
        for advice in (abi.MADV_DONTNEED, abi.MADV_COLD, abi.MADV_DOFORK, abi.MADV_DODUMP, abi.MADV_POPULATE_READ):
            with fails(errno.EINVAL):
                madvise(space, address, PAGE, advice)


@pytest.mark.parametrize(
    ("address", "length", "flags", "number"),
    [
        (BASE, PAGE, 0, OK),
        (BASE, 0, abi.MS_SYNC, OK),
        (BASE, INFINITY, abi.MS_SYNC, OK),
        (BASE, 3 * PAGE, abi.MS_ASYNC, OK),
        (BASE, PAGE, abi.MS_SYNC | abi.MS_ASYNC, errno.EINVAL),
        (BASE, PAGE, 8, errno.EINVAL),
        (BASE + 1, PAGE, abi.MS_SYNC, errno.EINVAL),
        (BASE, INFINITY - PAGE + 1, abi.MS_SYNC, errno.ENOMEM),
        (BASE, 5 * PAGE, abi.MS_SYNC, errno.ENOMEM),
        (BASE - PAGE, PAGE, abi.MS_ASYNC, errno.ENOMEM),
        (BASE + 3 * PAGE, PAGE, abi.MS_INVALIDATE, errno.EBUSY),
        (BASE + 3 * PAGE, PAGE, abi.MS_SYNC, OK),
    ],
)
def test_msync(space: Space, address: int, length: int, flags: int, number: int) -> None:
    space.mmap(BASE, 4 * PAGE, RW, SHARED | ANON | FIXED)
    mlock(space, BASE + 3 * PAGE, PAGE, 0)
    if number:
        with fails(number):
            msync(space, address, length, flags)
    else:
        msync(space, address, length, flags)


def test_mincore(space: Space) -> None:
    vector = space.mmap(0, PAGE, RW, P)
    space.mmap(BASE, 2 * REGION, RW, P | FIXED)
    madvise(space, BASE, 2 * REGION, abi.MADV_RANDOM)
    for page in (1, 4, 511, 512):
        space.store(BASE + page * PAGE, 1)
    mincore(space, BASE, 1024 * PAGE - 1, vector)
    assert [n for n, there in enumerate(space.read(vector, 1024)) if there] == [1, 4, 511, 512]
    mincore(space, BASE, 0, 1)
    for address, length, where, number in (
        (BASE + 1, PAGE, vector, errno.EINVAL),
        (BASE - PAGE, PAGE, vector, errno.ENOMEM),
        (BASE, 2 * REGION + 1, vector, errno.ENOMEM),
        (TASK_SIZE, PAGE, vector, errno.ENOMEM),
        (BASE, INFINITY, vector, errno.ENOMEM),
        (BASE, PAGE, 8, errno.EFAULT),
        (BASE, PAGE, TASK_SIZE, errno.EFAULT),
        (BASE, PAGE, INFINITY, errno.EFAULT),
    ):
        with fails(number):
            mincore(space, address, length, where)


def test_a_hole_in_huge_shared_memory_takes_no_time_per_page(space: Space) -> None:
    space.mmap(BASE, 1 << 44, RW, SHARED | ANON | FIXED | abi.MAP_NORESERVE)
    for at in (0, 1 << 30, (1 << 44) - PAGE):
        space.store(BASE + at, 1)
    madvise(space, BASE + PAGE, (1 << 44) - PAGE, abi.MADV_REMOVE)
    assert [space.load(BASE + at) for at in (0, 1 << 30, (1 << 44) - PAGE)] == [1, 0, 0]
