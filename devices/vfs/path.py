"""Names: dentries, mounts' places in the tree, and the walk from a path to a file (fs/namei.c).

A `Dentry` is a name in a directory that somebody is using at the moment. Dentries hold their parents strongly and their
children weakly, so that the tree in memory is just what is in use (open files, working directories, mount points) and
a `find /` leaves nothing behind. A few hundred recent ones are kept alive so that the same walks cost no lookups.

There are no negative dentries: a name that is not there is asked for again each time.
"""

from __future__ import annotations

import errno
from stat import S_IFDIR, S_IFLNK, S_IFMT
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

from devices.errors import SysError
from devices.vfs.abi import (
    AT_FDCWD,
    MAY_EXEC,
    NAME_MAX,
    PATH_MAX,
    RESOLVE_BENEATH,
    RESOLVE_CACHED,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
)
from devices.vfs.permissions import may_follow_link

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs.inode import Inode, SuperBlock
    from devices.vfs.mount import Mount
    from devices.vfs.state import Vfs

RESOLVE_SHIFT = 8
"""walk() takes RESOLVE_* shifted left by this, beside LOOKUP_*."""
LOOKUP_FOLLOW, LOOKUP_DIRECTORY, LOOKUP_EMPTY, LOOKUP_MOUNTPOINT = 1, 2, 4, 8
"""The last is umount's, which looks without using: a mount that MNT_EXPIRE has marked stays marked."""
LOOKUP_NO_XDEV, LOOKUP_NO_MAGICLINKS = RESOLVE_NO_XDEV << RESOLVE_SHIFT, RESOLVE_NO_MAGICLINKS << RESOLVE_SHIFT
LOOKUP_NO_SYMLINKS, LOOKUP_BENEATH = RESOLVE_NO_SYMLINKS << RESOLVE_SHIFT, RESOLVE_BENEATH << RESOLVE_SHIFT
LOOKUP_IN_ROOT, LOOKUP_CACHED = RESOLVE_IN_ROOT << RESOLVE_SHIFT, RESOLVE_CACHED << RESOLVE_SHIFT
LOOKUP_SCOPED = LOOKUP_BENEATH | LOOKUP_IN_ROOT

MAXSYMLINKS = 40
MNT_NOSYMFOLLOW = 0x2000


class Dentry:
    """`name` in the directory `parent` is `inode`. The root of a file system is its own parent."""

    __slots__ = ("__weakref__", "children", "inode", "linkable", "mounts", "name", "parent", "unlinked")

    def __init__(self, parent: Dentry | None, name: bytes, inode: Inode) -> None:
        self.parent: Dentry = parent or self
        self.name = name
        self.inode = inode
        self.children: WeakValueDictionary[bytes, Dentry] | None = None
        self.mounts = 0
        """How many mounts, in any mount namespace, are on it."""
        self.unlinked = False
        """The name is gone, the file is still in use (` (deleted)` in /proc)."""
        self.linkable = False
        """A file of O_TMPFILE that linkat(2) may give its first name."""

    @property
    def is_directory(self) -> bool:
        return S_IFMT(self.inode.mode) == S_IFDIR

    def is_under(self, other: Dentry) -> bool:
        """Is it `other` or below it (is_subdir())?"""
        dentry = self
        while dentry is not other:
            if dentry.parent is dentry:
                return False
            dentry = dentry.parent
        return True


class Path(NamedTuple):
    """A place in a task's view of the file tree (struct path)."""

    mount: Mount
    dentry: Dentry

    @property
    def inode(self) -> Inode:
        return self.dentry.inode


class Parent(NamedTuple):
    """Where a path's last component is to be looked up: what a call that makes or removes a name works on."""

    path: Path
    name: bytes
    """The last component: may be `.` or `..`, empty for a path that is `/`."""
    slash: bool
    """Slashes follow it: a directory is meant."""

    @property
    def is_name(self) -> bool:
        """Is it a name that can be made or removed (LAST_NORM)?"""
        return self.name not in (b"", b".", b"..")


# Dentries


def root_dentry(sb: SuperBlock) -> Dentry:
    """The dentry of a file system's root, the same for all its mounts."""
    if sb.dentry is None:
        sb.dentry = Dentry(None, b"/", sb.root)
    return sb.dentry


def attach_child(vfs: Vfs, parent: Dentry, name: bytes, inode: Inode) -> Dentry:
    """The dentry of a child that the file system has found or made just now."""
    children = parent.children
    if children is None:
        children = parent.children = WeakValueDictionary()
    child = children[name] = Dentry(parent, name, inode)
    vfs.keep(child)
    return child


def forget_child(dentry: Dentry) -> None:
    """The name was removed (d_drop(), d_delete()); the dentry stays for whoever uses the file."""
    children = dentry.parent.children
    if children is not None and children.get(dentry.name) is dentry:
        del children[dentry.name]
    dentry.unlinked = True


def move_child(dentry: Dentry, parent: Dentry, name: bytes) -> None:
    """The name was moved (d_move()). What `name` was there before is gone."""
    children = dentry.parent.children
    if children is not None and children.get(dentry.name) is dentry:
        del children[dentry.name]
    if parent.children is None:
        parent.children = WeakValueDictionary()
    dentry.parent, dentry.name = parent, name
    parent.children[name] = dentry


def exchange_children(one: Dentry, other: Dentry) -> None:
    """Two names were exchanged (d_exchange())."""
    parent, name = one.parent, one.name
    move_child(one, other.parent, other.name)
    move_child_in(other, parent, name)


def move_child_in(dentry: Dentry, parent: Dentry, name: bytes) -> None:
    """Put a dentry whose own name is another's already at a place."""
    if parent.children is None:
        parent.children = WeakValueDictionary()
    dentry.parent, dentry.name = parent, name
    parent.children[name] = dentry


def find_child(task: Task, parent: Dentry, name: bytes, cached_only: bool = False) -> Dentry | None:
    """The child `name` of a directory, None if there is none. SysError(ENAMETOOLONG), and what the file system says."""
    directory = parent.inode
    known = parent.children.get(name) if parent.children is not None else None
    if known is not None and (directory.cacheable or known.mounts):
        return known
    if cached_only:
        raise SysError(errno.EAGAIN, "RESOLVE_CACHED: not in memory")
    if parent.unlinked:
        return None
    if len(name) > NAME_MAX:
        raise SysError(errno.ENAMETOOLONG)
    inode = directory.lookup(task, name)
    if inode is None:
        if known is not None:
            forget_child(known)
        return None
    if known is not None:
        if known.inode is inode:
            return known
        forget_child(known)
    return attach_child(task.kernel.vfs, parent, name, inode)


# The walk


def path_name(task: Task, path: Path) -> bytes:
    """The name of a place, as /proc/self/fd shows it (pathname.py)."""
    from devices.vfs.pathname import path_name as name

    return name(task, path)


def start_of(task: Task, dirfd: int) -> Path:
    """Where a relative path begins: the working directory, or what `dirfd` is open on. SysError(EBADF, ENOTDIR)."""
    if dirfd == AT_FDCWD:
        return task.process.fs.cwd
    path = task.files.get(dirfd).path
    if path is None:
        raise SysError(errno.ENOTDIR, f"{dirfd} is no directory")
    return path


class Walk:
    """One path walk (struct nameidata). `flags`: LOOKUP_*."""

    __slots__ = (
        "dentry",
        "directory",
        "flags",
        "follow",
        "links",
        "mount",
        "root_dentry",
        "root_mount",
        "rooted",
        "task",
    )

    mount: Mount
    """Where the walk is, with `dentry`."""
    dentry: Dentry

    def __init__(self, task: Task, flags: int) -> None:
        self.task = task
        self.flags = flags
        self.follow = bool(flags & LOOKUP_FOLLOW)
        self.directory = bool(flags & LOOKUP_DIRECTORY)
        """The last component must be a directory."""
        self.links = 0
        self.rooted = False
        """The walk has met the root, or what is in its place (for RESOLVE_NO_XDEV: see _to_root())."""
        self.root_mount, self.root_dentry = task.process.fs.root

    # Beginnings

    def start(self, dirfd: int, path: bytes) -> None:
        """path_init(): go to where the path begins."""
        flags = self.flags
        if path.startswith(b"/") and not flags & LOOKUP_SCOPED:
            self.mount, self.dentry = self.root_mount, self.root_dentry
            self.rooted = True
            return
        if path.startswith(b"/") and flags & LOOKUP_BENEATH:
            raise SysError(errno.EXDEV, "RESOLVE_BENEATH: an absolute path")
        self.mount, self.dentry = start_of(self.task, dirfd)
        if path and S_IFMT(self.dentry.inode.mode) != S_IFDIR:
            raise SysError(errno.ENOTDIR)
        if flags & LOOKUP_SCOPED:
            self.root_mount, self.root_dentry = self.mount, self.dentry
            self.rooted = True

    def to_end(self, dirfd: int, path: bytes) -> Path:
        """path_lookupat(): the whole path."""
        self.start(dirfd, path)
        if path.endswith(b"/"):
            self.follow = self.directory = True
        self.run([name for name in path.split(b"/") if name], False)
        if self.directory and S_IFMT(self.dentry.inode.mode) != S_IFDIR:
            raise SysError(errno.ENOTDIR)
        return self.here()

    def to_parent(self, dirfd: int, path: bytes) -> Parent:
        """path_parentat(): all but the last component, whose directory may be searched by the task."""
        self.start(dirfd, path)
        return self.parent_of(path)

    def parent_of(self, path: bytes) -> Parent:
        names = [name for name in path.split(b"/") if name]
        if not names:
            return Parent(self.here(), b"", False)
        self.run(names, True)
        return Parent(self.here(), names[-1], path.endswith(b"/"))

    def here(self) -> Path:
        """complete_walk()."""
        if self.flags & LOOKUP_BENEATH and not self._beneath():
            raise SysError(errno.EXDEV, "left the directory of RESOLVE_BENEATH")
        if self.mount.expiring and not self.flags & LOOKUP_MOUNTPOINT:
            self.mount.expiring = False
        return Path(self.mount, self.dentry)

    def _beneath(self) -> bool:
        mount, dentry = self.mount, self.dentry
        while mount is not self.root_mount:
            above, place = mount.parent, mount.mountpoint
            if above is None or place is None:
                return False
            mount, dentry = above, place
        return dentry.is_under(self.root_dentry)

    # Steps

    def run(self, names: list[bytes], parent_only: bool) -> None:
        """link_path_walk(): walk the components from here; of `parent_only` all but the last, for which the directory's
        permission is checked and which replaces what is in `names` if it comes from a symbolic link."""
        task = self.task
        at = 0
        left = len(names)
        while left:
            left -= 1
            dentry = self.dentry
            inode = dentry.inode
            inode.permission(task, MAY_EXEC)
            if parent_only and not left:
                return
            name = names[at]
            at += 1
            if name == b"..":
                self.up()
            elif name != b".":
                children = dentry.children
                child = children.get(name) if children is not None else None
                if child is None or not (inode.cacheable or child.mounts):
                    child = self.find(name)
                mount = self.mount
                if child.mounts:
                    mount, child = self.cross(mount, child)
                kind = S_IFMT(child.inode.mode)
                if kind == S_IFLNK and (left or self.follow):
                    body = self.link(mount, child, not left)
                    if body is not None:
                        more = [part for part in body.split(b"/") if part]
                        if not left and body.endswith(b"/"):
                            self.follow = self.directory = True
                        names[:] = more + names[at:]
                        at, left = 0, len(names)
                    kind = S_IFMT(self.dentry.inode.mode)
                else:
                    self.mount, self.dentry = mount, child
                if left and kind != S_IFDIR:
                    raise SysError(errno.ENOTDIR)

    def find(self, name: bytes) -> Dentry:
        child = find_child(self.task, self.dentry, name, bool(self.flags & LOOKUP_CACHED))
        if child is None:
            raise SysError(errno.ENOENT)
        return child

    def up(self) -> None:
        """follow_dotdot()."""
        mount, dentry = self.mount, self.dentry
        self.rooted = True
        while True:
            if dentry is self.root_dentry and mount is self.root_mount:
                return self._at_root()
            if dentry is not mount.root:
                break
            above, place = mount.parent, mount.mountpoint
            if above is None or place is None:
                return self._at_root()
            mount, dentry = above, place
        if mount is not self.mount and self.flags & LOOKUP_NO_XDEV:
            raise SysError(errno.EXDEV, "RESOLVE_NO_XDEV")
        parent = dentry.parent
        if mount.root is not mount.sb.dentry and not parent.is_under(mount.root):
            raise SysError(errno.ENOENT, "moved out of the mount")
        self.mount, self.dentry = self.cross(mount, parent) if parent.mounts else (mount, parent)

    def _at_root(self) -> None:
        if self.flags & LOOKUP_BENEATH:
            raise SysError(errno.EXDEV, "above the directory of RESOLVE_BENEATH")
        self.mount, self.dentry = self.cross(self.mount, self.dentry)

    def cross(self, mount: Mount, dentry: Dentry) -> tuple[Mount, Dentry]:
        """What is mounted there, if anything is (traverse_mounts())."""
        while dentry.mounts:
            mounted = mount.mounted.get(dentry)
            if mounted is None:
                break
            if self.flags & LOOKUP_NO_XDEV:
                raise SysError(errno.EXDEV, "RESOLVE_NO_XDEV")
            mount, dentry = mounted, mounted.root
        return mount, dentry

    def link(self, mount: Mount, link: Dentry, trailing: bool) -> bytes | None:
        """pick_link(), get_link(): follow the symbolic link `link`, which is in the directory that the walk is in: its
        text, with the walk where that begins; None when a magic link has led somewhere."""
        self.links += 1
        if self.links > MAXSYMLINKS:
            raise SysError(errno.ELOOP, "too many links")
        task, inode = self.task, link.inode
        if trailing:
            may_follow_link(task, self.dentry.inode, inode)
        if self.flags & LOOKUP_NO_SYMLINKS or mount.flags & MNT_NOSYMFOLLOW:
            raise SysError(errno.ELOOP, "symbolic links are not followed")
        if self.flags & LOOKUP_CACHED and not inode.cacheable:
            raise SysError(errno.EAGAIN, "RESOLVE_CACHED")
        mount.touch(task, link)
        target = inode.follow(task)
        if target is not None:
            self._jump(target)
            return None
        body = inode.readlink(task)
        if len(body) >= PATH_MAX:
            raise SysError(errno.ENAMETOOLONG)
        if body.startswith(b"/"):
            self._to_root()
        return body

    def _jump(self, target: Path) -> None:
        """nd_jump_link()."""
        if self.flags & LOOKUP_NO_MAGICLINKS:
            raise SysError(errno.ELOOP, "RESOLVE_NO_MAGICLINKS")
        if self.flags & LOOKUP_NO_XDEV and target.mount is not self.mount:
            raise SysError(errno.EXDEV, "RESOLVE_NO_XDEV")
        if self.flags & LOOKUP_SCOPED:
            raise SysError(errno.EXDEV, "a magic link leaves the tree")
        self.mount, self.dentry = target

    def _to_root(self) -> None:
        """nd_jump_root(). Where nothing has led to the root, the kernel does not know that it is on the same mount."""
        if self.flags & LOOKUP_BENEATH:
            raise SysError(errno.EXDEV, "RESOLVE_BENEATH: an absolute link")
        if self.flags & LOOKUP_NO_XDEV and not (self.rooted and self.mount is self.root_mount):
            raise SysError(errno.EXDEV, "RESOLVE_NO_XDEV")
        self.mount, self.dentry = self.root_mount, self.root_dentry


def walk(task: Task, dirfd: int, path: bytes, flags: int = LOOKUP_FOLLOW) -> Path:
    """The place that `path` names, from `dirfd` (AT_FDCWD: the working directory) on if it is relative.

    `flags`: LOOKUP_FOLLOW a trailing symbolic link, LOOKUP_DIRECTORY (ENOTDIR for anything else), LOOKUP_EMPTY (the
    empty path is `dirfd` itself), RESOLVE_* shifted by RESOLVE_SHIFT. man 7 path_resolution, man 2 openat2.
    SysError(ENOENT, ENOTDIR, ELOOP, EACCES, ENAMETOOLONG, EXDEV, EAGAIN, EBADF).
    """
    if not path and not flags & LOOKUP_EMPTY:
        raise SysError(errno.ENOENT, "empty path")
    return Walk(task, flags).to_end(dirfd, path)


def walk_parent(task: Task, dirfd: int, path: bytes, flags: int = 0) -> Parent:
    """The directory of the last component of `path`, which is not looked up (it may be a link, or not be there)."""
    if not path:
        raise SysError(errno.ENOENT, "empty path")
    return Walk(task, flags).to_parent(dirfd, path)
