"""Random mounting, to the host's Linux and to the VFS: the same answers, the same trees of mounts and peer groups."""

from __future__ import annotations

import random
import re
import struct
from typing import TYPE_CHECKING

import pytest

from tests.unit.devices.support import World
from tests.unit.devices.vfs.oracle import Argument, Data, Fd, HostKernel, OurKernel, reason_why_not

if TYPE_CHECKING:
    from collections.abc import Sequence

NO_ORACLE = reason_why_not()
pytestmark = pytest.mark.skipif(NO_ORACLE is not None, reason=str(NO_ORACLE))

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_MOVE, MS_REC = 1024, 2048, 4096, 8192, 16384
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = (1 << i for i in range(17, 21))
MS_RELATIME, MS_STRICTATIME, MS_NOSYMFOLLOW = 1 << 21, 1 << 24, 256
MNT_DETACH, MNT_EXPIRE = 2, 4
OPTIONS = (MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME, MS_NODIRATIME, MS_STRICTATIME, MS_NOSYMFOLLOW)
AT_FDCWD, AT_RECURSIVE, AT_EMPTY_PATH = -100, 0x8000, 0x1000

Call = tuple[str, tuple[Argument, ...]]


class Node:
    """A line of mountinfo, with what is mounted on it."""

    def __init__(self, line: bytes) -> None:
        left, right = line.split(b" - ")
        fields = left.split()
        self.id, self.parent = int(fields[0]), int(fields[1])
        self.root, self.place, self.options = fields[3], fields[4], fields[5]
        self.optional = b" ".join(fields[6:])
        self.super = (right.split()[0], right.split()[2].split(b",")[0])
        self.children: list[Node] = []

    def show(self, groups: dict[bytes, bytes]) -> list[object]:
        """Groups by the order in which they are met, for their numbers are the kernel's business."""

        def number(found: re.Match[bytes]) -> bytes:
            return groups.setdefault(found[0], b"%d" % len(groups))

        own = (self.place, self.root, self.options, re.sub(rb"\d+", number, self.optional), self.super)
        order = sorted(self.children, key=lambda node: (node.place, node.root))
        return [own, *(child.show(groups) for child in order)]


def mount_tree(kernel: HostKernel | OurKernel) -> object:
    """The mounts that the process sees, as a tree."""
    text = kernel.call("mountinfo")[1][0]
    nodes = {node.id: node for node in map(Node, text.splitlines())}
    roots = []
    for node in nodes.values():
        if node.parent in nodes:
            nodes[node.parent].children.append(node)
        else:
            roots.append(node)
    groups: dict[bytes, bytes] = {}
    return [root.show(groups) for root in roots]


class Draw:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def place(self) -> bytes:
        rng = self.rng
        return b"/" + b"/".join(rng.choice((b"a", b"a", b"b", b"c")) for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 0))))

    def options(self) -> int:
        return sum(bit for bit in OPTIONS if self.rng.random() < 0.2)

    def call(self) -> Call:
        rng = self.rng
        kind = rng.randrange(25)
        if kind < 4:
            return "mkdir", (self.place(), 0o755)
        if kind < 7:
            return "mount", (b"none", self.place(), b"tmpfs", rng.choice((0, self.options())), 0)
        if kind < 10:
            flags = MS_BIND | (MS_REC if rng.random() < 0.4 else 0)
            return "mount", (self.place(), self.place(), 0, flags, 0)
        if kind < 14:
            change = rng.choice(
                (MS_SHARED, MS_SHARED, MS_PRIVATE, MS_SLAVE, MS_SLAVE, MS_UNBINDABLE, MS_SHARED | MS_SLAVE)
            )
            return "mount", (0, self.place(), 0, change | rng.choice((0, 0, MS_REC)), 0)
        if kind < 16:
            return "mount", (self.place(), self.place(), 0, MS_MOVE, 0)
        if kind < 19:
            place = self.place()
            how = rng.choice((0, 0, 0, MNT_DETACH, MNT_EXPIRE, 8, 16))
            return "umount2", (place, how if place != b"/" else 0)  # no root: nothing more would happen
        return rng.choice((self.remount, self.use, self.rare, self.rare, self.attributes, self.context, self.context))()

    def remount(self) -> Call:
        flags = MS_REMOUNT | self.options() | self.rng.choice((MS_BIND, MS_BIND, 0))
        return "mount", (0, self.place(), 0, flags, 0)

    def use(self) -> Call:
        rng = self.rng
        return rng.choice(
            (
                ("open", (self.place(), 0)),
                ("open", (self.place() + b"/file", 0o102, 0o644)),
                ("close", (Fd(-rng.randrange(1, 4)),)),
                ("chdir", (self.place(),)),
                ("rmdir", (self.place(),)),
            )
        )

    def attributes(self) -> Call:
        rng = self.rng
        bits = (1, 2, 4, 8, 0x80, 0x200000)
        set_ = sum(bit for bit in bits if rng.random() < 0.2) | rng.choice((0, 0, 0x10, 0x20, 0x30))
        clear = sum(bit for bit in bits if rng.random() < 0.2) | rng.choice((0, 0x70, 0x70, 0x10))
        kind = rng.choice((0, 0, MS_SHARED, MS_PRIVATE, MS_SLAVE, MS_SHARED | MS_SLAVE))
        attr = Data(struct.pack("<4Q", set_, clear, kind, 0))
        return "mount_setattr", (
            AT_FDCWD,
            self.place(),
            rng.choice((0, AT_RECURSIVE, 1)),
            attr,
            rng.choice((32, 32, 31)),
        )

    def context(self) -> Call:
        rng = self.rng
        return rng.choice(
            (
                ("fsopen", (rng.choice((b"tmpfs", b"tmpfs", b"nofs")), rng.choice((0, 1, 2)))),
                ("fsconfig", (Fd(-1), 6, 0, 0, 0)),
                ("fsconfig", (Fd(-1), 6, 0, 0, 0)),
                ("fsconfig", (Fd(-1), 0, b"ro", 0, 0)),
                ("fsconfig", (Fd(-1), 0, b"rw", 0, 1)),
                ("fsconfig", (Fd(-1), 7, 0, 0, 0)),
                ("fsmount", (Fd(-1), rng.choice((0, 1)), rng.choice((0, 1, 4, 0x10, 0x30)))),
                ("fsmount", (Fd(-1), 0, 0)),
                ("fspick", (AT_FDCWD, self.place(), rng.choice((0, 1, 16)))),
            )
        )

    def rare(self) -> Call:
        rng = self.rng
        return rng.choice(
            (
                ("pivot_root", (self.place(), self.place())),
                ("open_tree", (AT_FDCWD, self.place(), rng.choice((0, 1, 1, 1 | AT_RECURSIVE, AT_RECURSIVE)))),
                ("move_mount", (Fd(-1), b"", AT_FDCWD, self.place(), 4)),
                ("move_mount", (Fd(-1), b"", AT_FDCWD, self.place(), 4)),
                ("move_mount", (AT_FDCWD, self.place(), AT_FDCWD, self.place(), rng.choice((0, 0x100, 0x200, 0x400)))),
                ("rmdir", (self.place(),)),
                ("rename", (self.place(), self.place())),
            )
        )


def calls_of(rng: random.Random, length: int) -> list[Call]:
    draw = Draw(rng)
    return [("mkdir", (b"/a", 0o755)), ("mkdir", (b"/b", 0o755)), *(draw.call() for _ in range(length))]


def compare(calls: Sequence[Call]) -> None:
    host = HostKernel()
    world = World()
    try:
        ours = OurKernel(world)
        for number, (name, arguments) in enumerate(calls):
            expected = host.call(name, *arguments)[0]
            assert ours.call(name, *arguments)[0] == expected, (number, name, arguments)
            if name not in ("mkdir", "open", "close"):
                assert mount_tree(ours) == mount_tree(host), (number, name, arguments)
    finally:
        world.close()
        host.close()


@pytest.mark.parametrize("seed", range(60))
def test_random_mounting(seed: int) -> None:
    compare(calls_of(random.Random(seed), 80))
