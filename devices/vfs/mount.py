"""Mounts: where file systems are in the tree of names, and the namespaces that hold them (fs/namespace.c).

What is here moves mounts about; who may do it and what errors there are is in mounting.py.
"""

from __future__ import annotations

from stat import S_IFDIR, S_IFMT
from typing import TYPE_CHECKING, NamedTuple

from devices.vfs.inode import SB_NOATIME, SB_NODIRATIME, SB_RDONLY
from devices.vfs.mount_abi import MNT_NOATIME, MNT_NODIRATIME, MNT_READONLY, MNT_RELATIME
from devices.vfs.path import Dentry, Path, root_dentry
from devices.vfs.propagation import PeerGroup, set_master, share, spread, spread_unmount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.inode import Inode, SuperBlock
    from devices.vfs.state import Vfs

    MountCall = Callable[[Kernel, Task | None, bytes, int, bytes], SuperBlock]
    """Makes a super block for mount(2): (kernel, who asks or None, source, SB_* flags, data)."""

DAY_NS = 86_400 * 10**9
FS_REQUIRES_DEV = 1


class FileSystemType(NamedTuple):
    """struct file_system_type: what `mount -t NAME` makes."""

    name: bytes
    mount: MountCall
    flags: int = 0


class Mount:
    """A file system, or a part of one, at a place (struct mount)."""

    __slots__ = (
        "__weakref__", "expiring", "flags", "group", "id", "master", "mounted", "mountpoint", "namespace",
        "parent", "root", "sb", "source", "unbindable", "unique_id", "users", "vfs", "watchers", "writers",
    )  # fmt: skip

    def __init__(self, vfs: Vfs, sb: SuperBlock, root: Dentry, flags: int, source: bytes) -> None:
        self.vfs = vfs
        self.sb = sb
        self.root = root
        self.flags = flags
        """MNT_* of mount_abi.py."""
        self.source = source
        """As the first column of /proc/mounts has it."""
        self.id, self.unique_id = vfs.new_mount_id()
        self.parent: Mount | None = None
        """The mount that it is on, at `mountpoint`; None for the root of a namespace and for what was unmounted."""
        self.mountpoint: Dentry | None = None
        self.mounted: dict[Dentry, Mount] = {}
        """What is mounted on it, by where."""
        self.namespace: MountNamespace | None = None
        self.group: PeerGroup | None = None
        self.master: PeerGroup | None = None
        self.unbindable = False
        self.users = 0
        """Open file descriptions, working and root directories on it."""
        self.writers = 0
        """Of these, the files that are open for writing."""
        self.expiring = False
        """MNT_EXPIRE has marked it, and nobody has used it since."""
        self.watchers: object = None
        """Marks of fanotify on the mount."""
        sb.uses += 1
        vfs.mounts[self.unique_id] = self

    @property
    def is_read_only(self) -> bool:
        return bool((self.flags & MNT_READONLY) | (self.sb.flags & SB_RDONLY))

    def tree(self) -> Iterator[Mount]:
        """This mount and all on it, parents first."""
        left = [self]
        while left:
            mount = left.pop()
            yield mount
            left.extend(reversed(mount.mounted.values()))

    def topmost(self) -> Mount:
        """What covers it whole, if anything does."""
        mount = self
        while (over := mount.mounted.get(mount.root)) is not None:
            mount = over
        return mount

    # Use

    def hold(self) -> None:
        self.users += 1
        self.expiring = False

    def drop_locked(self) -> None:
        self.users -= 1
        self.expiring = False
        if not self.users and self.namespace is None:
            self.finish_locked()

    def finish_locked(self) -> None:
        """Unmounted and unused: the file system may go with it."""
        vfs, sb = self.vfs, self.sb
        if vfs.mounts.pop(self.unique_id, None) is None:
            return
        vfs.free_mount_id(self.id)
        sb.uses -= 1
        if not sb.uses:
            sb.sync()
            sb.dentry = None
            vfs.forget(sb)
            sb.shutdown()

    # Times of access

    def touch(self, task: Task, dentry: Dentry) -> None:
        """touch_atime(): the file was read through this mount."""
        inode = dentry.inode
        flags, sb_flags = self.flags, self.sb.flags
        if flags & (MNT_NOATIME | MNT_READONLY) or sb_flags & (SB_NOATIME | SB_RDONLY):
            return
        if (flags & MNT_NODIRATIME or sb_flags & SB_NODIRATIME) and S_IFMT(inode.mode) == S_IFDIR:
            return
        atime = inode.atime
        if flags & MNT_RELATIME and atime > inode.mtime and atime > inode.ctime:
            now = task.kernel.clock.realtime_ns()
            if now - atime < DAY_NS:
                return
        else:
            now = task.kernel.clock.realtime_ns()
        if now != atime:
            inode.touch(now)


class MountNamespace:
    """struct mnt_namespace. An `anonymous` one holds the tree of an open_tree() or fsmount() descriptor."""

    def __init__(self, vfs: Vfs, root: Mount, anonymous: bool = False) -> None:
        self.id = vfs.new_namespace_id()
        """As statmount(2) tells it."""
        self.root = root
        self.anonymous = anonymous
        self.mounts: dict[int, Mount] = {}
        """By unique id."""
        self.events = 0
        """Grows with every change (what poll on /proc/self/mounts tells)."""
        self.on_change: Callable[[], None] = lambda: None
        for mount in root.tree():
            self.add(mount)

    def add(self, mount: Mount) -> None:
        mount.namespace = self
        self.mounts[mount.unique_id] = mount

    def remove(self, mount: Mount) -> None:
        del self.mounts[mount.unique_id]
        mount.namespace = None

    def changed(self) -> None:
        self.events += 1
        self.on_change()

    def in_order(self) -> list[Mount]:
        """As mountinfo lists them."""
        return [mount for _, mount in sorted(self.mounts.items())]


# The tree


def connect(mount: Mount, parent: Mount, place: Dentry) -> None:
    """mnt_set_mountpoint()."""
    mount.parent, mount.mountpoint = parent, place
    parent.mounted[place] = mount
    place.mounts += 1


def disconnect(mount: Mount) -> None:
    """unhash_mnt()."""
    parent, place = mount.parent, mount.mountpoint
    if parent is not None and place is not None:
        del parent.mounted[place]
        place.mounts -= 1
    mount.parent = mount.mountpoint = None


def clone(vfs: Vfs, old: Mount, root: Dentry, *, slave: bool = False, shared: bool = False) -> Mount:
    """clone_mnt(): a mount of the same file system. A peer of `old` if that is shared and a slave with the same master,
    or a `slave` of it; `shared` in any case."""
    new = Mount(vfs, old.sb, root, old.flags, old.source)
    if slave:
        set_master(new, old.group)
    else:
        if old.group is not None:
            old.group.join(new)
        set_master(new, old.master)
    if shared:
        share(vfs, new)
    return new


def copy_tree(
    vfs: Vfs, old: Mount, root: Dentry, *, slave: bool = False, shared: bool = False, unbindable: bool = False
) -> Mount:
    """copy_tree(): `old` from `root` on, and what is mounted below; unbindable mounts only if asked for."""
    top = clone(vfs, old, root, slave=slave, shared=shared)
    top.unbindable = old.unbindable
    left = [(place, child, top) for place, child in reversed(old.mounted.items()) if place.is_under(root)]
    while left:
        place, mount, parent = left.pop()
        if unbindable or not mount.unbindable:
            new = clone(vfs, mount, mount.root, slave=slave, shared=shared)
            new.unbindable = mount.unbindable
            connect(new, parent, place)
            left.extend((where, child, new) for where, child in reversed(mount.mounted.items()))
    return top


def attach_tree(vfs: Vfs, tree: Mount, parent: Mount, place: Dentry) -> None:
    """attach_recursive_mnt(): mount `tree`, which is nowhere or is moved, on `parent` at `place`, and its copies
    wherever that spreads to; under what is mounted there, if anything is."""
    copies: list[tuple[Mount, Mount]] = []
    if parent.group is not None:
        for mount in tree.tree():
            share(vfs, mount)
        copies = spread(
            parent, place, tree, lambda old, slave, shared: copy_tree(vfs, old, old.root, slave=slave, shared=shared)
        )
    disconnect(tree)
    _put(tree, parent, place)
    for where, copy in copies:
        _put(copy, where, place)


def _put(tree: Mount, parent: Mount, place: Dentry) -> None:
    """Mount a tree, under what is there already."""
    over = parent.mounted.get(place)
    if over is not None:
        disconnect(over)
    connect(tree, parent, place)
    if over is not None:
        top = tree.topmost()
        connect(over, top, top.root)
    namespace = parent.namespace
    old_namespace = tree.namespace
    for mount in tree.tree():
        if mount.namespace is not None and mount.namespace is not namespace:
            mount.namespace.remove(mount)
        if namespace is not None:
            namespace.add(mount)
    for changed in {namespace, old_namespace} - {None}:
        changed.changed()  # type: ignore[union-attr]  # None was taken out


def unmount_tree_locked(vfs: Vfs, mount: Mount, spreads: bool = True) -> None:
    """umount_tree(): unmount it with all that is on it, and where that spreads to."""
    going = list(mount.tree())
    if spreads:
        going += spread_unmount(going)
    chosen = set(going)
    for gone in going:
        _keep_topper(gone, chosen)
    for gone in going:
        namespace = gone.namespace
        if namespace is not None:
            namespace.remove(gone)
            namespace.changed()
    for gone in reversed(going):
        disconnect(gone)
        make_private(gone)
        if not gone.users:
            gone.finish_locked()


def _keep_topper(gone: Mount, chosen: set[Mount]) -> None:
    """What covers a mount that goes, and stays itself, takes its place."""
    over = gone.mounted.get(gone.root)
    if over is None or over in chosen:
        return
    parent, place = gone.parent, gone.mountpoint
    while parent is not None and parent in chosen:
        place, parent = parent.mountpoint, parent.parent
    if parent is not None and place is not None:
        disconnect(over)
        gone_there = parent.mounted.get(place)
        if gone_there is not None and gone_there in chosen:
            disconnect(gone_there)
        connect(over, parent, place)


def make_private(mount: Mount) -> None:
    if mount.group is not None:
        mount.group.leave(mount)
    set_master(mount, None)


# Beginnings


def internal_mount(vfs: Vfs, sb: SuperBlock) -> Mount:
    """kern_mount(): a mount that is nowhere, for files that have no name (pipes, sockets, memfds)."""
    mount = Mount(vfs, sb, root_dentry(sb), 0, sb.source)
    mount.hold()
    return mount


def unnamed_path(mount: Mount, inode: Inode, name: bytes = b"") -> Path:
    """A place for a file that is in no directory; `sb.name_of()` says how it is shown."""
    return Path(mount, Dentry(None, name, inode))


def set_root_locked(kernel: Kernel, sb: SuperBlock, flags: int = MNT_RELATIME) -> Path:
    """Make `sb` the machine's root file system, before there is any process: the first mount namespace has it on an
    empty rootfs, as Linux does (so that pivot_root works). The path of the root."""
    from devices.vfs.bootroot import rootfs
    from devices.vfs.fs_struct import FsStruct

    vfs = kernel.vfs
    bottom = rootfs(kernel)
    base = Mount(vfs, bottom, root_dentry(bottom), 0, bottom.source)
    namespace = vfs.namespace = MountNamespace(vfs, base)
    top = Mount(vfs, sb, root_dentry(sb), flags, sb.source)
    attach_tree(vfs, top, base, base.root)
    path = Path(top, top.root)
    vfs.first_fs = FsStruct(namespace, path, path, counted=False)
    return path


def copy_namespace(vfs: Vfs, old: MountNamespace) -> tuple[MountNamespace, dict[Mount, Mount]]:
    """copy_mnt_ns(): for CLONE_NEWNS; also which mount became which."""
    root = copy_tree(vfs, old.root, old.root.root, unbindable=True)
    pairs = dict(zip(old.root.tree(), root.tree(), strict=True))
    return MountNamespace(vfs, root), pairs
