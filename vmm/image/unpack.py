"""Unpacking a layer's tar into a directory of the host, and into a file of attributes beside it.

The archive is hostile. Each name is walked from the directory's own descriptor, one component a time, without following
links; files are only ever made new (O_EXCL). Nothing that has power on the host gets there: all files belong to whoever
runs pyvmm and have no set-user-ID bits, device nodes, FIFOs and whiteouts are empty regular files. What they are in the
guest, the attributes say, for hostfs (devices/fs/hostfs) to put in place of what the host says:

    {"version": 1, "owner": [0, 0], "tree": NODE}

`owner` is that of all files that name no other one. NODE is an object: for each entry of a directory of which something
is said, or of something below it, NAME: NODE; and under the empty name what is said of the file itself, each optional:

    mode     st_mode, with the kind of the file
    owner    [uid, gid]
    rdev     st_rdev of a device node
    xattrs   {NAME: VALUE}, the bytes of VALUE as Latin-1 characters

A whiteout is a character device 0:0, an opaque directory has trusted.overlay.opaque=y, as overlayfs has them. A file
with several names has its attributes under each of them. Names that are not UTF-8 are as os.fsdecode has them.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from typing import TYPE_CHECKING, Any

from vmm.image.model import ImageError
from vmm.image.tar import members, split

if TYPE_CHECKING:
    from vmm.image.streams import Budget

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
AUFS = b".wh..wh."
XATTR = "SCHILY.xattr."
OVERLAY = "trusted.overlay."
OPAQUE_XATTR = "trusted.overlay.opaque"
DEPTH = 256
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
CHUNK = 1 << 18
ZEROES = bytes(CHUNK)
MAXIMUM_TIME = 1 << 33
"""Seconds: in the year 2242."""
SPECIAL = {tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK, tarfile.FIFOTYPE: stat.S_IFIFO}


def unpack(source: Any, root: str, budget: Budget, *, whiteouts: bool) -> tuple[dict[str, Any], list[str]]:
    """Unpack the tar that `source` reads into the empty directory `root`; the attributes, and notes on what was left
    out. `whiteouts`: it is a layer, whose .wh. files hide what is in the layers below.

    ImageError for what is not acceptable; also what `streams.damage` lists, and OSError. What is there then is the
    caller's to remove.
    """
    fd = os.open(root, DIRECTORY)
    os.fchmod(fd, 0o755)  # unless the archive says otherwise; what is above the layers is closed to others
    unpacker = Unpacker(fd, budget, whiteouts)
    try:
        for member, archive in members(source):
            unpacker.add(member, archive)
        unpacker.finish()
    finally:
        unpacker.close()
        os.close(fd)
    return {"version": 1, "owner": [0, 0], "tree": unpacker.tree}, unpacker.notes


class Unpacker:
    """A tree that is being made, below the directory `root`."""

    def __init__(self, root: int, budget: Budget, whiteouts: bool) -> None:
        self.root = root
        self.budget = budget
        self.whiteouts = whiteouts
        self.tree: dict[str, Any] = {}
        self.notes: list[str] = []
        self._times: dict[tuple[bytes, ...], int] = {}
        """When each directory was changed, to be set when nothing changes it any more."""
        self._at: list[bytes] = []
        self._fd = root
        """The directory that was used last, and its descriptor: most entries follow others of the same one."""

    def close(self) -> None:
        if self._fd != self.root:
            os.close(self._fd)
        self._at, self._fd = [], self.root

    # What is said of files

    def _node(self, parts: list[bytes]) -> dict[str, Any]:
        node = self.tree
        for part in parts:
            node = node.setdefault(os.fsdecode(part), {})
        return node

    def _said(self, parts: list[bytes]) -> dict[str, Any]:
        """What is said of the file at a name so far; empty for nothing."""
        node = self.tree
        for part in parts:
            found = node.get(os.fsdecode(part))
            if found is None:
                return {}
            node = found
        said: dict[str, Any] = node.get("", {})
        return said

    def _say(self, parts: list[bytes], said: dict[str, Any]) -> None:
        if said:
            self._node(parts)[""] = said
        elif self._said(parts):
            del self._node(parts)[""]

    def _forget(self, parts: list[bytes]) -> None:
        """Nothing is there any more."""
        node: dict[str, Any] | None = self.tree
        for part in parts[:-1]:
            node = node.get(os.fsdecode(part)) if node else None
        if node:
            node.pop(os.fsdecode(parts[-1]), None)

    def _is_whiteout(self, parts: list[bytes]) -> bool:
        said = self._said(parts)
        return stat.S_ISCHR(said.get("mode", 0)) and said.get("rdev") == 0

    def _mark_opaque(self, parts: list[bytes]) -> None:
        said = self._node(parts).setdefault("", {})
        said.setdefault("xattrs", {})[OPAQUE_XATTR] = "y"

    # Directories

    def _directory(self, parts: list[bytes]) -> int:
        """A descriptor of the directory at a name, made if it is not there; valid until the next call."""
        if parts == self._at:
            return self._fd
        fd = self.root
        try:
            for depth, part in enumerate(parts, 1):
                below = self._step(fd, parts[:depth], part)
                if fd != self.root:
                    os.close(fd)
                fd = below
        except BaseException:
            if fd != self.root:
                os.close(fd)
            raise
        self.close()
        self._at, self._fd = list(parts), fd
        return fd

    def _step(self, fd: int, parts: list[bytes], name: bytes) -> int:
        for _ in range(2):
            try:
                return os.open(name, DIRECTORY, dir_fd=fd)
            except FileNotFoundError:
                self._mkdir(fd, name)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                if not self._is_whiteout(parts):
                    what = os.fsdecode(b"/".join(parts))
                    raise ImageError(f"holds a name that goes through {what!r}, which is no directory") from None
                os.unlink(name, dir_fd=fd)
                self._forget(parts)
                self._mkdir(fd, name)
                self._mark_opaque(parts)
        return os.open(name, DIRECTORY, dir_fd=fd)

    def _mkdir(self, fd: int, name: bytes) -> None:
        self.budget.take_entry()
        os.mkdir(name, 0o755, dir_fd=fd)
        os.chmod(name, 0o755, dir_fd=fd)  # it is new, so it is no link

    def _remove(self, fd: int, parts: list[bytes]) -> bool:
        """Take away what is at a name, for something else to be there; was it a whiteout?"""
        name = parts[-1]
        hidden = self._is_whiteout(parts)
        try:
            os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            return False
        except IsADirectoryError:
            from shutil import rmtree

            rmtree(name, dir_fd=fd)
            for known in [known for known in self._times if list(known[: len(parts)]) == parts]:
                del self._times[known]
        self._forget(parts)
        return hidden

    # Entries

    def add(self, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        """Make one entry."""
        parts = split(member.name)
        self.budget.take_entry()
        if len(parts) > DEPTH:
            raise ImageError(f"holds a name of more than {DEPTH} components")
        said = self._attributes(member)
        if not parts:
            if not member.isdir():
                raise ImageError("holds a root that is no directory")
            self._finish_directory(self.root, parts, member, said)
            return
        if self.whiteouts and parts[-1].startswith(WHITEOUT):
            self._add_whiteout(parts)
        elif member.isdir():
            self._add_directory(parts, member, said)
        elif member.type in SPECIAL:
            self._add_special(parts, member, said)
        elif member.issym():
            self._add_symlink(parts, member, said)
        elif member.islnk():
            self._add_link(parts, member)
        elif member.isreg():
            self._add_file(parts, member, said, archive)
        else:
            self.notes.append(f"left out {member.name!r}: an entry of the unknown type {member.type!r}")

    def _attributes(self, member: tarfile.TarInfo) -> dict[str, Any]:
        """Owner and extended attributes."""
        said: dict[str, Any] = {}
        if not (0 <= member.uid < 0xFFFF_FFFF and 0 <= member.gid < 0xFFFF_FFFF):
            raise ImageError(f"holds {member.name[:200]!r} with an owner out of bounds")
        if (member.uid, member.gid) != (0, 0):
            said["owner"] = [member.uid, member.gid]
        xattrs = {
            name[len(XATTR) :]: value.encode("utf-8", "surrogateescape").decode("latin-1")
            for name, value in member.pax_headers.items()
            if name.startswith(XATTR) and not name.startswith(XATTR + OVERLAY)
        }
        if xattrs:
            said["xattrs"] = xattrs
        return said

    def _finish(self, fd: int, parts: list[bytes], member: tarfile.TarInfo, said: dict[str, Any], kind: int) -> None:
        """Set the mode of a new file, and say what cannot be set."""
        mode = stat.S_IMODE(member.mode)
        on_host = mode & 0o777 | (0o700 if kind == stat.S_IFDIR else 0o600)
        os.fchmod(fd, on_host)
        if mode != on_host:
            said["mode"] = kind | mode
        self._say(parts, said)

    def _finish_directory(self, fd: int, parts: list[bytes], member: tarfile.TarInfo, said: dict[str, Any]) -> None:
        opaque = self._said(parts).get("xattrs", {}).get(OPAQUE_XATTR)
        if opaque:
            said.setdefault("xattrs", {})[OPAQUE_XATTR] = opaque
        self._finish(fd, parts, member, said, stat.S_IFDIR)
        self._times[tuple(parts)] = nanoseconds(member.mtime)

    def _add_directory(self, parts: list[bytes], member: tarfile.TarInfo, said: dict[str, Any]) -> None:
        parent = self._directory(parts[:-1])
        opaque = False
        try:
            status = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                opaque = self._remove(parent, parts)
        except FileNotFoundError:
            pass
        if opaque:
            self._mark_opaque(parts)
        self._finish_directory(self._directory(parts), parts, member, said)

    def _place(self, parts: list[bytes]) -> int:
        """The directory in which something new is made; nothing is at its name."""
        parent = self._directory(parts[:-1])
        try:
            os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return parent
        self._remove(parent, parts)
        return parent

    def _add_file(
        self, parts: list[bytes], member: tarfile.TarInfo, said: dict[str, Any], archive: tarfile.TarFile
    ) -> None:
        sparse = member.issparse()
        if sparse:
            self.budget.take(member.size)
        source = archive.extractfile(member)
        assert source is not None
        fd = os.open(parts[-1], NEW_FILE, 0o600, dir_fd=self._place(parts))
        try:
            self._copy(source, fd, member.size, sparse)
            self._finish(fd, parts, member, said, stat.S_IFREG)
            os.utime(fd, ns=(nanoseconds(member.mtime),) * 2)
        finally:
            os.close(fd)

    @staticmethod
    def _copy(source: Any, fd: int, size: int, sparse: bool) -> None:
        done = 0
        while done < size:
            data = source.read(min(CHUNK, size - done))
            if not data:
                raise EOFError("the archive ends in a file")
            if sparse and data == ZEROES[: len(data)]:
                os.lseek(fd, len(data), os.SEEK_CUR)
            else:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            done += len(data)
        if sparse:
            os.ftruncate(fd, size)

    def _add_symlink(self, parts: list[bytes], member: tarfile.TarInfo, said: dict[str, Any]) -> None:
        target = member.linkname.encode("utf-8", "surrogateescape")
        if not target or b"\0" in target or len(target) >= 4096:
            raise ImageError(f"holds the symbolic link {member.name[:200]!r}, whose target no link can have")
        parent = self._place(parts)
        os.symlink(target, parts[-1], dir_fd=parent)
        times = (nanoseconds(member.mtime),) * 2
        os.utime(parts[-1], ns=times, dir_fd=parent, follow_symlinks=False)
        self._say(parts, said)

    def _add_special(self, parts: list[bytes], member: tarfile.TarInfo, said: dict[str, Any]) -> None:
        """A device node or FIFO: an empty file."""
        kind = SPECIAL[member.type]
        said["mode"] = kind | stat.S_IMODE(member.mode)
        if kind != stat.S_IFIFO:
            if not (0 <= member.devmajor < 1 << 12 and 0 <= member.devminor < 1 << 20):
                raise ImageError(f"holds the device {member.name[:200]!r} with a number out of bounds")
            said["rdev"] = os.makedev(member.devmajor, member.devminor)
        self._add_empty(parts, said)

    def _add_empty(self, parts: list[bytes], said: dict[str, Any]) -> None:
        os.close(os.open(parts[-1], NEW_FILE, 0o600, dir_fd=self._place(parts)))
        self._say(parts, said)

    def _add_link(self, parts: list[bytes], member: tarfile.TarInfo) -> None:
        target = split(member.linkname)
        if target == parts:
            raise ImageError(f"holds the hard link {member.name[:200]!r} to itself")
        what = f"holds the hard link {member.name[:200]!r} to {member.linkname[:200]!r}, which is"
        if not target or self._is_whiteout(target):
            raise ImageError(f"{what} no file")
        source = os.dup(self._existing(target[:-1], what))
        try:
            # Looked at before the place is made free: that may remove the target.
            if stat.S_ISDIR(os.stat(target[-1], dir_fd=source, follow_symlinks=False).st_mode):
                raise ImageError(f"{what} a directory")
            parent = self._place(parts)
            os.link(target[-1], parts[-1], src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            raise ImageError(f"{what} not in the archive before it") from None
        finally:
            os.close(source)
        self._say(parts, dict(self._said(target)))

    def _existing(self, parts: list[bytes], what: str) -> int:
        fd = self.root
        for part in parts:
            try:
                below = os.open(part, DIRECTORY, dir_fd=fd)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP, errno.ENOENT):
                    raise
                raise ImageError(f"{what} not in the archive before it") from None
            finally:
                if fd != self.root:
                    os.close(fd)
            fd = below
        if fd != self.root:
            self.close()
            self._at, self._fd = list(parts), fd
        return fd

    def _add_whiteout(self, parts: list[bytes]) -> None:
        """Hide what the layers below have at this name, or all that they have in this directory."""
        *above, name = parts
        if name == OPAQUE:
            self._directory(above)
            self._mark_opaque(above)
            return
        if name.startswith(AUFS):
            return  # aufs kept its own books there
        hidden = name[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise ImageError(f"holds the whiteout {os.fsdecode(name)!r}, which hides no name")
        parts = [*above, hidden]
        try:
            status = os.stat(hidden, dir_fd=self._directory(above), follow_symlinks=False)
        except FileNotFoundError:
            self._add_empty(parts, {"mode": stat.S_IFCHR, "rdev": 0})
            return
        # The layer has it itself: that hides what is below, whatever comes first.
        if stat.S_ISDIR(status.st_mode):
            self._mark_opaque(parts)

    def finish(self) -> None:
        """Set the directories' times."""
        for parts, time in self._times.items():
            try:
                os.utime(self._existing(list(parts), ""), ns=(time, time))
            except ImageError:
                continue  # something else took its place


def nanoseconds(seconds: float) -> int:
    """A time out of a tar, where it may be anything."""
    if not -MAXIMUM_TIME < seconds < MAXIMUM_TIME:  # also for NaN
        return 0
    return int(seconds * 1_000_000_000)
