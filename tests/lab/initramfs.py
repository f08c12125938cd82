"""The initramfs of the lab: a newc cpio archive made in memory.

Source: Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.lab.errors import LabError
from tests.lab.kernel import decompress, is_static, module_name

INIT = Path(__file__).with_name("init.sh")
FOLDERS = ("bin", "dev", "lab", "modules", "lower", "host", "proc", "sys")

# What the lab lays a fresh tmpfs over: programs write there, and the shared root is read-only.
SCRATCH = ("/tmp", "/var/tmp", "/run")


class Job(NamedTuple):
    """What init.sh is to do: a command, where, with which environment, and what of the host must stay visible."""

    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    scratch: Sequence[Path]
    visible: Sequence[Path]


class Archive:
    """A newc archive: entries are appended, the bytes are the file. Owner and times are 0, so equal input is equal."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def add(self, name: str, mode: int, data: bytes = b"") -> None:
        """Append one entry; mode is st_mode with the file type."""
        self._inode += 1
        path = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(path), 0)
        self._data += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self._pad()
        self._data += data
        self._pad()

    def add_folder(self, name: str) -> None:
        self.add(name, stat.S_IFDIR | 0o755)

    def add_file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self.add(name, stat.S_IFREG | mode, data)

    def close(self) -> bytes:
        """The whole archive, with its trailer."""
        self.add("TRAILER!!!", 0)
        return bytes(self._data)

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)


def scratch_folders(candidates: Iterable[str] = SCRATCH) -> list[Path]:
    """Those of the candidates that exist, resolved: init.sh mounts outside of the chroot, where links would mislead."""
    return list(dict.fromkeys(Path(path).resolve() for path in candidates if os.path.isdir(path)))


def hidden(paths: Iterable[Path], scratch: Iterable[Path]) -> list[Path]:
    """The paths, as named and as resolved, that a tmpfs over the scratch folders would hide; none inside another."""
    folders = set(scratch)
    both = {form for path in paths for form in (path, path.resolve())}
    below = {path for path in both if not folders.isdisjoint(path.parents)}
    return sorted(path for path in below if below.isdisjoint(path.parents))


def script(job: Job) -> str:
    """The shell text that the lab runs in the chroot: nothing of the lab's environment, exactly the job's command."""
    words = ["env", "-i", *(f"{name}={value}" for name, value in job.environment.items()), *job.command]
    return f"cd {shlex.quote(str(job.folder))} || exit 125\nexec {shlex.join(words)}\n"


def lines(values: Iterable[object]) -> bytes:
    """One value a line, as init.sh reads them. Raises LabError for a value with a line break."""
    texts = [str(value) for value in values]
    for text in texts:
        if "\n" in text:
            raise LabError(f"a path with a line break in it cannot be taken into the lab: {text!r}")
    return "".join(f"{text}\n" for text in texts).encode()


def read_busybox(path: Path = Path("/bin/busybox")) -> bytes:
    """The static busybox that is the lab's whole user space. Raises LabError with what to do."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}: apt-get install busybox-static") from None
    if not is_static(data):
        raise LabError(f"{path} needs shared libraries: apt-get install busybox-static")
    return data


def build(busybox: bytes, modules: Sequence[Path], token: str, job: Job) -> bytes:
    """The archive. token is what the records of init.sh begin with, see channel.py."""
    archive = Archive()
    for folder in FOLDERS:
        archive.add_folder(folder)
    archive.add_file("bin/busybox", busybox, 0o755)
    archive.add_file("init", INIT.read_bytes(), 0o755)
    names = []
    for path in modules:
        name = f"{module_name(path.name)}.ko"
        archive.add_file(f"modules/{name}", decompress(path.read_bytes()))
        names.append(name)
    archive.add_file("lab/modules", lines(names))
    archive.add_file("lab/token", token.encode())
    archive.add_file("lab/scratch", lines(job.scratch))
    archive.add_file("lab/visible", lines(job.visible))
    archive.add_file("lab/command", script(job).encode())
    return archive.close()
