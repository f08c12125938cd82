"""The tables of Documentation/filesystems/sharedsubtree.rst: what a mount becomes, and where mounts spread to."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from devices.vfs.path import walk
from tests.unit.devices.vfs.support import Files, files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.vfs.mount import Mount

MS_BIND, MS_MOVE, MS_REC = 4096, 8192, 16384
KINDS = {"unbindable": 1 << 17, "private": 1 << 18, "slave": 1 << 19, "shared": 1 << 20}
MNT_DETACH = 2


@pytest.fixture
def tree() -> Iterator[Files]:
    with files() as made:
        for name in (b"/source", b"/target", b"/peer", b"/slave", b"/other"):
            assert made.call("mkdir", name, 0o755) == 0
        yield made


def mount(tree: Files, place: bytes) -> None:
    assert tree.call("mount", b"none", place, b"tmpfs", 0, 0) == 0


def bind(tree: Files, source: bytes, target: bytes, flags: int = MS_BIND) -> int:
    return tree.call("mount", source, target, 0, flags, 0)


def make(tree: Files, place: bytes, kind: str, recursive: bool = False) -> None:
    if kind == "slave":  # of somebody: a peer that stays
        make(tree, place, "shared")
        assert bind(tree, place, b"/other") == 0
    assert tree.call("mount", 0, place, 0, KINDS[kind] | (MS_REC if recursive else 0), 0) == 0


def at(tree: Files, place: bytes) -> Mount:
    return walk(tree.task, -100, place).mount


def kind_of(mount: Mount) -> str:
    names = ["shared"] * (mount.group is not None) + ["slave"] * (mount.master is not None)
    return " and ".join(names) or ("unbindable" if mount.unbindable else "private")


BIND = {
    ("shared", "shared"): "shared",
    ("shared", "private"): "shared",
    ("shared", "slave"): "shared and slave",
    ("private", "shared"): "shared",
    ("private", "private"): "private",
    ("private", "slave"): "slave",
}
"""(the mount that it goes on, the source): what the new mount is. A source that is unbindable cannot be bound."""


@pytest.mark.parametrize(("target", "source"), BIND)
def test_a_bind_mount_becomes(tree: Files, target: str, source: str) -> None:
    mount(tree, b"/source")
    mount(tree, b"/target")
    make(tree, b"/source", source)
    make(tree, b"/target", target)
    assert tree.call("mkdir", b"/target/here", 0o755) == 0
    assert bind(tree, b"/source", b"/target/here") == 0
    assert kind_of(at(tree, b"/target/here")) == BIND[target, source]
    if source == "shared":
        assert at(tree, b"/target/here").group is at(tree, b"/source").group


@pytest.mark.parametrize(("target", "source"), [*BIND, ("private", "unbindable"), ("shared", "unbindable")])
def test_a_moved_mount_becomes(tree: Files, target: str, source: str) -> None:
    mount(tree, b"/source")
    mount(tree, b"/target")
    make(tree, b"/source", source)
    make(tree, b"/target", target)
    assert tree.call("mkdir", b"/target/here", 0o755) == 0
    moved = bind(tree, b"/source", b"/target/here", MS_MOVE)
    if (target, source) == ("shared", "unbindable"):
        assert moved == -errno.EINVAL
        return
    assert moved == 0
    kind = kind_of(at(tree, b"/target/here"))
    assert kind == ("unbindable" if source == "unbindable" else BIND[target, source])


def test_an_unbindable_mount_is_not_bound(tree: Files) -> None:
    mount(tree, b"/source")
    make(tree, b"/source", "unbindable")
    assert bind(tree, b"/source", b"/target") == -errno.EINVAL
    assert tree.call("mkdir", b"/source/a", 0o755) == 0
    mount(tree, b"/source/a")
    make(tree, b"/source", "private")
    make(tree, b"/source/a", "unbindable")
    assert bind(tree, b"/source", b"/target", MS_BIND | MS_REC) == 0
    assert at(tree, b"/target/a") is at(tree, b"/target")  # left out


def test_a_mount_spreads_to_peers_and_slaves_and_not_back(tree: Files) -> None:
    mount(tree, b"/source")
    assert tree.call("mkdir", b"/source/a", 0o755) == 0
    make(tree, b"/source", "shared")
    assert bind(tree, b"/source", b"/peer") == 0
    assert bind(tree, b"/source", b"/slave") == 0
    assert tree.call("mount", 0, b"/slave", 0, KINDS["slave"], 0) == 0
    mount(tree, b"/source/a")
    source, peer, slave = (at(tree, place) for place in (b"/source/a", b"/peer/a", b"/slave/a"))
    assert source.sb is peer.sb
    assert source.sb is slave.sb
    assert peer.group is source.group
    assert kind_of(slave) == "slave"
    assert slave.master is source.group
    assert tree.call("umount2", b"/slave/a", 0) == 0
    assert at(tree, b"/peer/a") is peer
    mount(tree, b"/slave/a")
    assert at(tree, b"/peer/a") is peer
    assert tree.call("umount2", b"/peer/a", 0) == 0
    assert at(tree, b"/source/a") is at(tree, b"/source")
    assert at(tree, b"/slave/a") is at(tree, b"/slave")  # whatever was mounted there


def test_an_unmount_that_would_spread_to_a_busy_mount(tree: Files) -> None:
    mount(tree, b"/source")
    assert tree.call("mkdir", b"/source/a", 0o755) == 0
    make(tree, b"/source", "shared")
    assert bind(tree, b"/source", b"/peer") == 0
    mount(tree, b"/source/a")
    fd = tree.call("open", b"/peer/a", 0)
    assert tree.call("umount2", b"/source/a", 0) == -errno.EBUSY
    assert tree.call("umount2", b"/source/a", MNT_DETACH) == 0
    assert at(tree, b"/peer/a") is at(tree, b"/peer")
    assert tree.call("fchdir", fd) == 0  # detached, and there for whoever has it


def test_the_last_peer_hands_its_slaves_to_its_master(tree: Files) -> None:
    mount(tree, b"/source")
    make(tree, b"/source", "shared")
    assert bind(tree, b"/source", b"/peer") == 0
    assert tree.call("mount", 0, b"/peer", 0, KINDS["slave"], 0) == 0
    assert tree.call("mount", 0, b"/peer", 0, KINDS["shared"], 0) == 0
    assert bind(tree, b"/peer", b"/slave") == 0
    assert tree.call("mount", 0, b"/slave", 0, KINDS["slave"], 0) == 0
    top = at(tree, b"/source").group
    assert kind_of(at(tree, b"/peer")) == "shared and slave"
    assert at(tree, b"/slave").master is at(tree, b"/peer").group
    assert tree.call("umount2", b"/peer", 0) == 0
    assert at(tree, b"/slave").master is top


def test_file_systems_end_with_their_last_mount_and_file(tree: Files) -> None:
    mount(tree, b"/source")
    sb = at(tree, b"/source").sb
    assert bind(tree, b"/source", b"/target") == 0
    fd = tree.call("open", b"/source", 0)
    assert tree.call("umount2", b"/source", 0) == -errno.EBUSY
    assert tree.call("umount2", b"/source", MNT_DETACH) == 0
    assert tree.call("umount2", b"/target", 0) == 0
    assert not sb.shut  # type: ignore[attr-defined]  # a MemFs
    assert tree.call("close", fd) == 0
    assert sb.shut  # type: ignore[attr-defined]


def test_a_copied_namespace_is_apart(tree: Files) -> None:
    from devices.vfs.mount import copy_namespace

    mount(tree, b"/source")
    namespace, pairs = copy_namespace(tree.kernel.vfs, tree.task.process.mounts)
    assert len(namespace.mounts) == len(tree.task.process.mounts.mounts) == len(pairs)
    mount(tree, b"/target")
    assert len(namespace.mounts) == len(tree.task.process.mounts.mounts) - 1


def test_mounts_may_be_nested_deeply(tree: Files) -> None:
    """A program must not be able to exhaust the monitor's stack."""
    depth = 1500
    for _ in range(depth):
        assert tree.call("mkdir", b"d", 0o755) == 0
        assert tree.call("mount", b"none", b"d", b"tmpfs", 0, 0) == 0
        assert tree.call("chdir", b"d") == 0
    assert tree.call("mount", 0, b"/", 0, KINDS["shared"] | MS_REC, 0) == 0
    assert tree.call("mount", b"/", b"/target", 0, MS_BIND | MS_REC, 0) == 0
    assert len(tree.task.process.mounts.mounts) == 2 * depth + 3
    assert tree.call("getcwd", tree.room(), 4096) == 2 * depth + 1  # with the NUL
    assert tree.call("chdir", b"/") == 0
    assert tree.call("umount2", b"/d", MNT_DETACH) == 0
    assert len(tree.task.process.mounts.mounts) == 3


def test_a_chain_of_slaves_may_be_long(tree: Files) -> None:
    mount(tree, b"/source")
    make(tree, b"/source", "shared")
    depth = 1200
    for _ in range(depth):
        assert bind(tree, b"/source", b"/source") == 0
        assert tree.call("mount", 0, b"/source", 0, KINDS["slave"], 0) == 0
        assert tree.call("mount", 0, b"/source", 0, KINDS["shared"], 0) == 0
    assert tree.call("umount2", b"/source", MNT_DETACH) == 0


def test_there_is_a_limit_to_mounts(tree: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devices.vfs.mounting.MOUNT_MAX", 20)
    make(tree, b"/", "shared", recursive=True)
    results = [tree.call("mount", b"/", b"/target", 0, MS_BIND | MS_REC, 0) for _ in range(6)]
    assert -errno.ENOSPC in results
    assert len(tree.kernel.vfs.mounts) <= 20
