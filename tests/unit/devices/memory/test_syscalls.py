"""devices/memory/syscalls.py: registers to calls of the model; what a file allows."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from devices.bus import DECLARED
from devices.errors import SysError
from devices.memory import abi, syscalls
from devices.table import TABLE
from devices.vfs.abi import O_PATH, O_RDONLY, O_RDWR, O_WRONLY
from tests.unit.devices.memory.memory_model import (
    ANON,
    BASE,
    EXEC,
    FIXED,
    MIB,
    PAGE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    Bytes,
    Machine,
    Space,
    fails,
    layout,
)

if TYPE_CHECKING:
    from collections.abc import Callable

P = PRIVATE | ANON


class File:
    """An open file: `flags` as open() had them."""

    path = None

    def __init__(self, flags: int, mappable: bool = True) -> None:
        self.flags = flags
        self.mappable = mappable
        self.users = 0

    def hold(self) -> File:
        self.users += 1
        return self

    def put_locked(self) -> None:
        self.users -= 1

    def mmap_backing(self, task: Any, prot: int, flags: int, offset: int, length: int) -> Bytes:
        if not self.mappable:
            raise SysError(errno.ENODEV)
        return Bytes(b"0123456789" * PAGE)


class Files(dict[int, File]):
    def get(self, fd: int) -> File:  # type: ignore[override]
        if fd not in self:
            raise SysError(errno.EBADF)
        return self[fd]


RDONLY, WRONLY, RDWR, PATH, PIPE = range(3, 8)


@pytest.fixture
def task(space: Space) -> Any:
    files = Files(
        {
            RDONLY: File(O_RDONLY),
            WRONLY: File(O_WRONLY),
            RDWR: File(O_RDWR),
            PATH: File(O_PATH),
            PIPE: File(O_RDWR, mappable=False),
        }
    )
    return SimpleNamespace(memory=space, files=files)


@pytest.fixture
def call(task: Any) -> Callable[..., int]:
    """call("mmap", ...): through the declaration, as the bus makes it from registers."""

    def call(name: str, *arguments: int) -> int:
        registers = [0] * 18
        for register, value in zip((5, 4, 3, 10, 8, 9), arguments, strict=False):
            registers[register] = value & 0xFFFF_FFFF_FFFF_FFFF
        result = DECLARED[name].call(task, registers)  # type: ignore[arg-type]
        assert isinstance(result, int)
        return result

    return call


def test_every_call_of_the_table_is_declared() -> None:
    names = {entry.name for entry in TABLE.values() if entry.module == syscalls.__name__}
    assert names == {
        "mmap", "munmap", "mprotect", "mremap", "brk", "madvise", "msync", "mincore",
        "mlock", "mlock2", "munlock", "mlockall", "munlockall",
    }  # fmt: skip
    assert names <= set(DECLARED)


@pytest.mark.parametrize(
    ("fd", "prot", "flags", "offset", "length", "number"),
    [
        (-1, READ, PRIVATE, 0, PAGE, errno.EBADF),
        (99, READ, PRIVATE, 0, 0, errno.EBADF),
        (99, READ, PRIVATE, 1, 0, errno.EINVAL),
        (PATH, READ, PRIVATE, 0, PAGE, errno.EBADF),
        (WRONLY, READ, PRIVATE, 0, 0, errno.EINVAL),
        (WRONLY, READ, PRIVATE, 0, PAGE, errno.EACCES),
        (WRONLY, RW, SHARED, 0, PAGE, errno.EACCES),
        (WRONLY, 0, SHARED, 0, PAGE, errno.EACCES),
        (RDONLY, RW, SHARED, 0, PAGE, errno.EACCES),
        (RDONLY, RW, 3, 0, PAGE, errno.EACCES),
        (RDONLY, RW, 3 | 0x400, 0, PAGE, errno.EOPNOTSUPP),
        (WRONLY, READ, 0, 0, PAGE, errno.EINVAL),
        (PIPE, READ, PRIVATE, 0, PAGE, errno.ENODEV),
        (RDONLY, READ, PRIVATE | abi.MAP_GROWSDOWN, 0, PAGE, errno.EINVAL),
        (RDONLY, READ, PRIVATE | abi.MAP_HUGETLB, 0, PAGE, errno.EINVAL),
        (RDONLY, READ, PRIVATE, 0xFFFF_FFFF_FFFF_F000, PAGE, errno.EOVERFLOW),
        (RDONLY, READ, PRIVATE, 0x7FFF_FFFF_FFFF_F000, PAGE, errno.EOVERFLOW),
        (RDONLY, RW, PRIVATE, 0, PAGE, 0),
        (RDONLY, READ, SHARED, 0, PAGE, 0),
        (RDWR, RW, SHARED, 0, PAGE, 0),
        (RDONLY, READ | EXEC, 3, 0, PAGE, 0),
    ],
)
def test_mmap_of_files(
    call: Callable[..., int], space: Space, fd: int, prot: int, flags: int, offset: int, length: int, number: int
) -> None:
    if number:
        with fails(number):
            call("mmap", 0, length, prot, flags, fd, offset)
        assert layout(space) == []
        return
    address = call("mmap", 0, length, prot, flags, fd, offset)
    assert space.read(address, 4) == b"0123"


def test_a_shared_mapping_of_a_read_only_file_stays_read_only(call: Callable[..., int], space: Space) -> None:
    address = call("mmap", 0, PAGE, READ, SHARED, RDONLY, 0)
    with fails(errno.EACCES):
        call("mprotect", address, PAGE, RW)
    with fails(errno.EACCES):
        call("madvise", address, PAGE, abi.MADV_REMOVE)
    assert call("mprotect", call("mmap", 0, PAGE, READ, SHARED, RDWR, 0), PAGE, RW) == 0
    assert space.read(address, 1) == b"0"


@pytest.mark.parametrize(
    ("log", "number"), [(0, errno.ENOMEM), (21, errno.ENOMEM), (30, errno.ENOMEM), (16, errno.EINVAL)]
)
def test_huge_pages_are_not_there(call: Callable[..., int], log: int, number: int) -> None:
    with fails(number):
        call("mmap", 0, 2 * MIB, RW, P | abi.MAP_HUGETLB | log << 26, -1, 0)


def test_anonymous_memory_needs_no_descriptor_and_ignores_the_offset(call: Callable[..., int]) -> None:
    assert call("mmap", 0, PAGE, RW, P, 99, 5 * PAGE)
    assert call("mmap", BASE, PAGE, RW | 0x100, P | FIXED, -1, 0) == BASE


def test_the_rest_arrives(call: Callable[..., int], space: Space) -> None:
    space.set_brk_start(BASE)
    assert call("brk", 0) == BASE
    assert call("brk", BASE + 3 * PAGE) == BASE + 3 * PAGE
    assert call("mprotect", BASE, PAGE, READ) == 0
    assert call("mremap", BASE + PAGE, PAGE, PAGE, 3, BASE + 8 * PAGE) == BASE + 8 * PAGE
    assert call("msync", BASE, PAGE, abi.MS_SYNC) == 0
    assert call("mlock", BASE, PAGE) == 0
    assert space.locked_vm == 1
    assert call("munlock", BASE, PAGE) == 0
    assert call("mlock2", BASE, PAGE, abi.MLOCK_ONFAULT) == 0
    assert call("mlockall", abi.MCL_FUTURE) == 0
    assert call("munlockall") == 0
    assert space.locked_vm == 0
    assert call("mincore", BASE, PAGE, BASE + 2 * PAGE) == 0
    assert space.read(BASE + 2 * PAGE, 1) == b"\1"
    assert call("madvise", BASE + 2 * PAGE, PAGE, abi.MADV_DONTNEED) == 0
    assert space.read(BASE + 2 * PAGE, 1) == b"\0"
    assert call("munmap", BASE, 16 * PAGE) == 0
    assert layout(space) == []
    with fails(errno.EINVAL):
        call("madvise", BASE, 0, 0x1_0000_0063)


def test_no_frame_is_enomem(large_machine: Machine) -> None:
    """Splitting a 2 MiB page needs one."""
    machine = large_machine
    with machine.checked_space() as space:
        task: Any = SimpleNamespace(memory=space, files=Files())
        space.mmap(BASE, 2 * MIB, RW, P | FIXED | abi.MAP_POPULATE)
        rest = machine.frames.allocate_run(machine.frames.free)
        changes: list[Callable[[], int]] = [
            lambda: syscalls.munmap(task, BASE + PAGE, PAGE),
            lambda: syscalls.mprotect(task, BASE + PAGE, PAGE, READ),
            lambda: syscalls.madvise(task, BASE + PAGE, PAGE, abi.MADV_DONTNEED),
            lambda: syscalls.mmap(task, BASE + PAGE, PAGE, RW, P | FIXED, -1, 0),
            lambda: syscalls.mremap(task, BASE + PAGE, PAGE, PAGE, 3, BASE + (1 << 39)),
        ]
        for change in changes:
            with fails(errno.ENOMEM):
                change()
        machine.frames.release_runs(rest)
