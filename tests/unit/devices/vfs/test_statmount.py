"""statmount and listmount against the host's, but for the numbers that every kernel gives out on its own."""

from __future__ import annotations

import errno
import struct

import pytest

from devices.vfs.statmount_syscalls import STATMOUNT
from tests.unit.devices.support import World
from tests.unit.devices.vfs.oracle import Data, HostKernel, OurKernel, Room, reason_why_not

NO_ORACLE = reason_why_not()
pytestmark = pytest.mark.skipif(NO_ORACLE is not None, reason=str(NO_ORACLE))

LSMT_ROOT = (1 << 64) - 1
BASIC = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20
SETUP = (
    ("mkdir", (b"/a", 0o755)),
    ("mkdir", (b"/b", 0o755)),
    ("mount", (b"none", b"/a", b"tmpfs", 2 | 8 | 1024, 0)),
    ("mkdir", (b"/a/sub", 0o755)),
    ("mount", (0, b"/a", 0, 1 << 20, 0)),
    ("mount", (b"/a/sub", b"/b", 0, 4096, 0)),
    ("mount", (0, b"/b", 0, 1 << 19, 0)),
    ("mount", (0, b"/b", 0, 4096 | 32 | 1, 0)),
)


def request(mount_id: int, param: int, size: int = 24) -> Data:
    return Data(struct.pack("<IIQQ", size, 0, mount_id, param).ljust(max(size, 24), b"\0"))


def ids(kernel: HostKernel | OurKernel, mount_id: int = LSMT_ROOT, last: int = 0, flags: int = 0) -> list[int]:
    count, rooms = kernel.call("listmount", request(mount_id, last), Room(800), 100, flags)
    assert count >= 0
    return list(struct.unpack_from(f"<{count}Q", rooms[0]))


def described(kernel: HostKernel | OurKernel) -> list[object]:
    """Of every mount what does not depend on who numbers it."""
    found: list[object] = []
    known = ids(kernel)
    for mount_id in known:
        result, rooms = kernel.call("statmount", request(mount_id, BASIC), Room(2048), 2048, 0)
        assert result == 0
        values = STATMOUNT.unpack_from(rooms[0])
        strings = rooms[0][STATMOUNT.size : values[0]]
        texts = [strings[at:].split(b"\0")[0] for at in (values[7], values[17], values[18])]
        parent = known.index(values[9]) if values[9] in known else None
        assert values[8] == mount_id
        found.append((values[2], values[5], parent, values[12], values[13], bool(values[14]), bool(values[15]), texts))
    return found


def test_as_on_the_host() -> None:
    host = HostKernel()
    world = World()
    try:
        ours = OurKernel(world)
        for name, arguments in SETUP:
            assert host.call(name, *arguments)[0] == ours.call(name, *arguments)[0] == 0
        assert described(ours) == described(host)
        for kernel in (host, ours):
            known = ids(kernel)
            assert len(known) == 3
            assert ids(kernel, LSMT_ROOT, known[0]) == known[1:]
            assert ids(kernel, LSMT_ROOT, 0, 1) == known[::-1]
            assert ids(kernel, known[0]) == known[1:]
    finally:
        world.close()
        host.close()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("statmount", (request(1 << 40, 1), Room(600), 600, 0)),
        ("statmount", (request(5, 1), Room(600), 600, 0)),
        ("statmount", (request(1 << 40, 1, 16), Room(600), 600, 0)),
        ("statmount", (request(1 << 40, 1), Room(600), 600, 1)),
        ("listmount", (request(LSMT_ROOT, 0), Room(80), 10, 2)),
        ("listmount", (request(LSMT_ROOT, 5), Room(80), 10, 0)),
        ("listmount", (request(LSMT_ROOT, 0), Room(80), 10**7, 0)),
        ("listmount", (request(1 << 40, 0), Room(80), 10, 0)),
    ],
)
def test_errors_are_the_hosts(name: str, arguments: tuple[int | Data | Room, ...]) -> None:
    host = HostKernel()
    world = World()
    try:
        expected = host.call(name, *arguments)[0]
        assert expected < 0
        if expected == -errno.ENOSYS:
            pytest.skip(f"the host has no {name}")
        assert OurKernel(world).call(name, *arguments)[0] == expected
    finally:
        world.close()
        host.close()
