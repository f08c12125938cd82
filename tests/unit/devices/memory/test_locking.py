"""devices/memory/locking.py: mlock, mlock2, munlock, mlockall, munlockall."""

from __future__ import annotations

import errno

import pytest

from devices.memory import abi
from devices.memory.locking import mlock, mlockall, munlock, munlockall
from tests.unit.devices.memory.memory_model import (
    ANON,
    BASE,
    FIXED,
    INFINITY,
    NONE,
    PAGE,
    PRIVATE,
    READ,
    RW,
    Bytes,
    Machine,
    Space,
    fails,
    layout,
)

P = PRIVATE | ANON


@pytest.fixture
def mapped(space: Space) -> Space:
    space.mmap(BASE, 20 * PAGE, RW, P | FIXED)
    return space


def limited(space: Space, pages: int) -> None:
    space.ipc_lock = False
    space.rlimits = {i: (pages * PAGE if i == abi.RLIMIT_MEMLOCK else INFINITY, INFINITY) for i in range(16)}


def test_locking_makes_present_and_counts(mapped: Space) -> None:
    mlock(mapped, BASE + PAGE + 100, PAGE, 0)
    assert mapped.resident == 2
    assert mapped.locked_vm == 2
    assert len(layout(mapped)) == 3
    mlock(mapped, BASE, 2 * PAGE, 0)
    assert mapped.locked_vm == 3
    munlock(mapped, BASE, 20 * PAGE)
    assert mapped.locked_vm == 0
    assert len(layout(mapped)) == 1
    mlock(mapped, BASE + 8 * PAGE, PAGE, abi.MLOCK_ONFAULT)
    assert mapped.locked_vm == 1
    assert mapped.resident == 3
    mapped.munmap(BASE, 20 * PAGE)
    assert mapped.locked_vm == 0


@pytest.mark.parametrize(
    ("address", "length", "flags", "number"),
    [
        (BASE, PAGE, 2, errno.EINVAL),
        (BASE, INFINITY - 2 * PAGE, 0, errno.EINVAL),
        (BASE - PAGE, PAGE, 0, errno.ENOMEM),
        (BASE, 21 * PAGE, 0, errno.ENOMEM),
        (BASE + 19 * PAGE + 1, PAGE, 0, errno.ENOMEM),
    ],
)
def test_errors(mapped: Space, address: int, length: int, flags: int, number: int) -> None:
    with fails(number):
        mlock(mapped, address, length, flags)
    if not flags:
        with fails(number):
            munlock(mapped, address, length)


def test_nothing_and_wrapped_lengths(mapped: Space) -> None:
    for length in (0, INFINITY):
        mlock(mapped, BASE, length, 0)
        munlock(mapped, BASE, length)
    assert mapped.locked_vm == 0


def test_what_is_before_a_hole_is_locked(mapped: Space) -> None:
    with fails(errno.ENOMEM):
        mlock(mapped, BASE + 18 * PAGE, 4 * PAGE, 0)
    assert mapped.locked_vm == 2


def test_the_limit(mapped: Space) -> None:
    limited(mapped, 4)
    mlock(mapped, BASE, 4 * PAGE, 0)
    mlock(mapped, BASE + 2 * PAGE, 2 * PAGE, 0)  # locked already: counts once
    with fails(errno.ENOMEM):
        mlock(mapped, BASE + 3 * PAGE, 2 * PAGE, 0)
    with fails(errno.ENOMEM):
        mlockall(mapped, abi.MCL_CURRENT)
    mlockall(mapped, abi.MCL_FUTURE)
    with fails(errno.EAGAIN):
        mapped.mmap(0, PAGE, RW, P)
    mapped.set_brk_start(BASE + (1 << 30))
    assert mapped.brk(BASE + (1 << 30) + PAGE) == BASE + (1 << 30)
    limited(mapped, 0)
    with fails(errno.EPERM):
        mlock(mapped, BASE, PAGE, 0)
    with fails(errno.EPERM):
        mlockall(mapped, abi.MCL_CURRENT)
    mapped.ipc_lock = True
    mlock(mapped, BASE, 20 * PAGE, 0)


def test_memory_that_cannot_be_made_present(mapped: Space) -> None:
    mapped.mprotect(BASE, PAGE, NONE)
    with fails(errno.ENOMEM):
        mlock(mapped, BASE, PAGE, 0)
    mapped.mmap(BASE, 2 * PAGE, READ, PRIVATE | FIXED, Bytes(b"x"))
    with fails(errno.ENOMEM):
        mlock(mapped, BASE, 2 * PAGE, 0)


def test_no_memory(machine: Machine) -> None:
    with machine.checked_space() as space:
        space.mmap(BASE, 64 << 20, RW, P | FIXED | abi.MAP_NORESERVE)
        with fails(errno.EAGAIN):
            mlock(space, BASE, 64 << 20, 0)


@pytest.mark.parametrize("flags", [0, 8, abi.MCL_ONFAULT, abi.MCL_CURRENT | 16])
def test_mlockall_errors(mapped: Space, flags: int) -> None:
    with fails(errno.EINVAL):
        mlockall(mapped, flags)


def test_mlockall(mapped: Space) -> None:
    mlockall(mapped, abi.MCL_CURRENT | abi.MCL_FUTURE)
    assert mapped.locked_vm == mapped.resident == 20
    address = mapped.mmap(0, 5 * PAGE, RW, P)
    assert mapped.locked_vm == mapped.resident == 25
    mapped.set_brk_start(BASE + (1 << 30))
    mapped.brk(BASE + (1 << 30) + 2 * PAGE)
    assert mapped.resident == 27
    munlockall(mapped)
    assert mapped.locked_vm == 0
    mlockall(mapped, abi.MCL_FUTURE | abi.MCL_ONFAULT)
    mapped.mmap(address - 64 * PAGE, 5 * PAGE, RW, P | FIXED)
    assert mapped.locked_vm == 5
    assert mapped.resident == 27
