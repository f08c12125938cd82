"""Where the files of an image are kept: the directory of an OCI layout, or an archive of one or of `docker save`."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from typing import TYPE_CHECKING, Protocol

from vmm.image.model import ImageError
from vmm.image.streams import Slice, TarStream, kind_of
from vmm.image.tar import members

if TYPE_CHECKING:
    import tarfile

    from vmm.image.streams import Budget

MAXIMUM_MEMBERS = 20_000
MAXIMUM_LINKS = 8
IN_AN_ARCHIVE = re.compile(
    r"(blobs(/.*)?|oci-layout|index\.json|manifest\.json|repositories|[0-9a-f]{64}(/.*)?|[0-9a-f]{64}\.(tar|json))"
)
"""What the archives of images hold at their top; the first other name tells a root file system."""


class Layout(Protocol):
    """Named files."""

    def open(self, name: str) -> Slice:
        """A file's contents, valid until `close`. ImageError when there is no such file."""

    def has(self, name: str) -> bool: ...

    def close(self) -> None: ...


class Directory:
    """An OCI layout as a directory. Links in it are not followed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open: list[int] = []

    def has(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self._path, name))

    def open(self, name: str) -> Slice:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            fd = os.open(os.path.join(self._path, name), flags)
        except OSError as error:
            raise ImageError(f"has no file {name} ({error.strerror})") from None
        self._open.append(fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"has no regular file {name}")
        return Slice(fd, 0, status.st_size)

    def close(self) -> None:
        for fd in self._open:
            os.close(fd)
        self._open.clear()


class Archive:
    """A tar, not compressed, of whose members only the headers are read until one is opened. Takes `fd` over."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._members: dict[str, tarfile.TarInfo] = {}
        with os.fdopen(os.dup(fd), "rb") as file:
            file.seek(0)
            for member, _ in members(file, seekable=True):
                if len(self._members) == MAXIMUM_MEMBERS:
                    raise ImageError(f"holds more than {MAXIMUM_MEMBERS} files for an image")
                self._members[posixpath.normpath(member.name)] = member
        self._size = os.fstat(fd).st_size

    def _find(self, name: str) -> tarfile.TarInfo | None:
        """The member with the contents of `name`: older archives share layers by symbolic links among their members."""
        for _ in range(MAXIMUM_LINKS):
            member = self._members.get(posixpath.normpath(name))
            if member is None or member.isreg():
                return member
            if member.issym():
                name = posixpath.join(posixpath.dirname(name), member.linkname)
            elif member.islnk():
                name = member.linkname
            else:
                return None
        return None

    def has(self, name: str) -> bool:
        return self._find(name) is not None

    def open(self, name: str) -> Slice:
        member = self._find(name)
        if member is None or member.issparse():
            raise ImageError(f"has no file {name}")
        if member.offset_data + member.size > self._size:
            raise ImageError("is truncated")
        return Slice(self._fd, member.offset_data, member.size)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_image_archive(fd: int, budget: Budget) -> bool:
    """Is the tar, compressed or not, the archive of an image, and not of a root file system? Most often the first
    name tells."""
    size = os.fstat(fd).st_size
    seekable = kind_of(os.pread(fd, 512, 0)) == "tar"
    names: set[str] = set()
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        source = file if seekable else TarStream(Slice(fd, 0, size), budget).tar
        for member, _ in members(source, seekable):
            name = posixpath.normpath(member.name)
            if name != "." and not IN_AN_ARCHIVE.fullmatch(name):
                return False
            if "/" not in name:
                names.add(name)
    return "manifest.json" in names or {"index.json", "oci-layout"} <= names


def spooled(fd: int, folder: str, budget: Budget) -> int:
    """A descriptor of a file without a name in `folder` with what the compressed file `fd` decompresses to."""
    import tempfile

    stream = TarStream(Slice(fd, 0, os.fstat(fd).st_size), budget)
    with tempfile.TemporaryFile(dir=folder) as file:
        while data := stream.tar.read(1 << 20):
            file.write(data)
        file.flush()
        return os.dup(file.fileno())
