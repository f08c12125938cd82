"""How mounts and unmounts spread: peer groups and their slaves (fs/pnode.c, Documentation/filesystems/sharedsubtree).

A shared mount is a member of a `PeerGroup`; a slave has a group as its master. (Linux links mounts in rings and gives a
slave one of the peers as its master; which of them it is makes no difference that could be seen.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.vfs.mount_abi import MS_SHARED, MS_SLAVE, MS_UNBINDABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from devices.vfs.mount import Mount
    from devices.vfs.path import Dentry
    from devices.vfs.state import Vfs

    Copy = Callable[[Mount, bool, bool], Mount]
    """Copies a mount tree: (its root, slave of the original rather than its peer, to be shared)."""


class PeerGroup:
    """Mounts that spread to each other whatever is mounted on one of them."""

    __slots__ = ("_vfs", "id", "members", "slaves")

    def __init__(self, vfs: Vfs) -> None:
        self._vfs = vfs
        self.id = vfs.new_group_id()
        self.members: list[Mount] = []
        self.slaves: list[Mount] = []

    def join(self, mount: Mount) -> None:
        self.members.append(mount)
        mount.group = self

    def leave(self, mount: Mount) -> None:
        """The last member hands the slaves to its own master."""
        self.members.remove(mount)
        mount.group = None
        if not self.members:
            for slave in list(self.slaves):
                set_master(slave, mount.master)
            self._vfs.free_group_id(self.id)


def set_master(mount: Mount, master: PeerGroup | None) -> None:
    if mount.master is not None:
        mount.master.slaves.remove(mount)
    mount.master = master
    if master is not None:
        master.slaves.append(mount)


def share(vfs: Vfs, mount: Mount) -> None:
    """Make a mount shared, if it is not."""
    mount.unbindable = False
    if mount.group is None:
        PeerGroup(vfs).join(mount)


def change_type(vfs: Vfs, mount: Mount, kind: int) -> None:
    """change_mnt_propagation(): make the mount MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE."""
    if kind == MS_SHARED:
        share(vfs, mount)
        return
    group = mount.group
    if group is not None:
        group.leave(mount)
        if group.members and kind == MS_SLAVE:
            set_master(mount, group)
    if kind != MS_SLAVE:
        set_master(mount, None)
        mount.unbindable = kind == MS_UNBINDABLE


def receivers(mount: Mount) -> list[Mount]:
    """All mounts to which what happens on `mount` spreads, without itself."""
    found: dict[Mount, None] = {}
    groups = [mount.group] if mount.group is not None else []
    while groups:
        group = groups.pop()
        reached = [*group.members, *group.slaves]
        for other in reached:
            if other not in found:
                found[other] = None
                if other.group is not None and other.group is not group:
                    groups.append(other.group)
    found.pop(mount, None)
    return list(found)


def spread(target: Mount, place: Dentry, source: Mount, copy: Copy) -> list[tuple[Mount, Mount]]:
    """propagate_mnt(): the copies of the tree `source`, whose mounts are all shared, for every mount that receives from
    `target`, on which it is mounted at `place`: (where, the copy)."""
    copies: list[tuple[Mount, Mount]] = []
    visited: set[PeerGroup] = set()

    def reaches(mount: Mount) -> bool:
        """Not what this call is about to mount, and not detached trees."""
        namespace = mount.namespace
        return namespace is not None and not namespace.anonymous and place.is_under(mount.root)

    left = [(target.group, source)] if target.group is not None else []
    while left:
        group, above = left.pop()
        visited.add(group)
        peer = source if group is target.group else None
        for member in list(group.members):
            if member is not target and reaches(member):
                made = copy(above, True, True) if peer is None else copy(peer, False, True)
                peer = peer or made
                copies.append((member, made))
        above = peer or above
        deeper = []
        for slave in list(group.slaves):
            if slave.group is None:
                if reaches(slave):
                    copies.append((slave, copy(above, True, False)))
            elif slave.group not in visited:
                visited.add(slave.group)
                deeper.append((slave.group, above))
        left.extend(reversed(deeper))
    return copies


def spread_unmount(going: Iterable[Mount]) -> list[Mount]:
    """propagate_umount(): the mounts that go as well when those of `going` do. One that has further mounts on it stays,
    unless they cover it whole."""
    chosen = set(going)
    candidates: dict[Mount, None] = {}
    for mount in chosen:
        if mount.parent is None or mount.mountpoint is None:
            continue
        for receiver in receivers(mount.parent):
            child = receiver.mounted.get(mount.mountpoint)
            if child is not None and child not in chosen:
                candidates[child] = None
    while True:
        kept = [
            mount
            for mount in candidates
            if any(
                place is not mount.root and child not in chosen and child not in candidates
                for place, child in mount.mounted.items()
            )
        ]
        if not kept:
            return list(candidates)
        for mount in kept:
            del candidates[mount]


def busy_elsewhere(mount: Mount) -> bool:
    """propagate_mount_busy(): would an unmount spread to a mount that is in use?"""
    if mount.parent is None or mount.mountpoint is None:
        return False
    for receiver in receivers(mount.parent):
        child = receiver.mounted.get(mount.mountpoint)
        if child is None:
            continue
        covered_whole = child.root in child.mounted and len(child.mounted) == 1
        if (covered_whole or not child.mounted) and child.users:
            return True
    return False
