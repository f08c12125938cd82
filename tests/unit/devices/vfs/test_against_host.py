"""Random sequences of calls on paths, to the host's Linux and to the VFS over the simplest file system."""

from __future__ import annotations

import random

import pytest

from tests.unit.devices.support import World
from tests.unit.devices.vfs.oracle import (
    Answer,
    Argument,
    Fd,
    HostKernel,
    OurKernel,
    Room,
    names_in,
    reason_why_not,
    stat_of,
)
from tests.unit.devices.vfs.random_calls import INITIAL, Call, sequence

NO_ORACLE = reason_why_not()
pytestmark = pytest.mark.skipif(NO_ORACLE is not None, reason=str(NO_ORACLE))


def comparable(name: str, answer: Answer) -> object:
    """Of an answer what must be the same."""
    result, rooms = answer
    if result < 0:
        return result
    if name in ("stat", "lstat", "fstat", "newfstatat"):
        return stat_of(rooms[0])
    if name in ("readlink", "readlinkat", "getcwd", "read", "pread64", "lgetxattr", "fgetxattr"):
        return result, rooms[0][:result]
    if name == "listxattr":
        return sorted(rooms[0][:result].split(b"\0"))
    if name == "getdents64":
        return names_in(rooms[0], result)
    return result


def moves_in_directory(host: HostKernel, name: str, arguments: tuple[Argument, ...]) -> bool:
    """Positions in directories are every file system's own."""
    if name != "lseek":
        return False
    attributes = comparable("fstat", host.call("fstat", arguments[0], Room(144)))
    return isinstance(attributes, tuple) and attributes[1] & 0o170000 == 0o040000


def check(host: HostKernel, ours: OurKernel, calls: list[Call]) -> None:
    for number, (name, arguments) in enumerate(calls):
        if moves_in_directory(host, name, arguments):
            continue
        expected = comparable(name, host.call(name, *arguments))
        found = comparable(name, ours.call(name, *arguments))
        assert found == expected, (number, name, arguments)


def tree(kernel: HostKernel | OurKernel) -> list[object]:
    """Everything below the root."""
    found: list[object] = []

    def visit(place: bytes) -> None:
        attributes = comparable("lstat", kernel.call("lstat", place or b"/", Room(144)))
        found.append((place, attributes))
        if isinstance(attributes, tuple) and attributes[1] & 0o170000 == 0o040000:
            kernel.call("open", place or b"/", 0)
            count, rooms = kernel.call("getdents64", Fd(-1), Room(4096), 4096)
            for name in names_in(rooms[0], count):
                if name not in (b".", b".."):
                    visit(place + b"/" + name)

    visit(b"")
    return found


def compare(calls: list[Call]) -> None:
    host = HostKernel()
    world = World()
    try:
        ours = OurKernel(world)
        check(host, ours, INITIAL)
        check(host, ours, calls)
        for kernel in (host, ours):
            kernel.call("setfsuid", 0)
            kernel.call("setfsgid", 0)
        assert tree(ours) == tree(host)
    finally:
        world.close()
        host.close()


@pytest.mark.parametrize("seed", range(60))
def test_random_calls(seed: int) -> None:
    compare(sequence(random.Random(seed), 120))
