"""Whom a program runs as, from what a person or an image writes: USER[:GROUP], by number or by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.memory.abi import MAP_PRIVATE, PROT_READ
from devices.task.elf import NotLoadable
from devices.task.process import Credentials
from devices.vfs.abi import AT_FDCWD, O_RDONLY
from devices.vfs.path import LOOKUP_FOLLOW, walk

if TYPE_CHECKING:
    from devices.memory.backing import Backing
    from devices.task.task import Task

LONGEST_FILE = 1 << 20
LARGEST_ID = (1 << 32) - 2


def credentials_of(task: Task, user: str) -> Credentials:
    """The credentials for USER[:GROUP], looked up in the guest's /etc/passwd and /etc/group. NotLoadable says what is
    unknown."""
    name, _, group = user.partition(":")
    entry = next((line for line in lines(task, b"/etc/passwd") if name in (line[0], line[2])), None)
    uid = number(name) if entry is None else int(entry[2])
    gid = int(entry[3]) if entry is not None else 0
    if uid is None:
        raise NotLoadable(f"cannot run as the user {name!r}: the image's /etc/passwd has no such name")
    groups = lines(task, b"/etc/group")
    if group:
        found = next((int(line[2]) for line in groups if group in (line[0], line[2])), number(group))
        if found is None:
            raise NotLoadable(f"cannot run as the group {group!r}: the image's /etc/group has no such name")
        gid = found
    login = entry[0] if entry is not None else ""
    supplementary = tuple(int(line[2]) for line in groups if login and len(line) > 3 and login in line[3].split(","))
    return Credentials(uid, gid, supplementary if not group else ())


def number(text: str) -> int | None:
    return int(text) if text.isdigit() and int(text) <= LARGEST_ID else None


def lines(task: Task, path: bytes) -> list[list[str]]:
    """The lines of a colon-separated file, those with a number in the third field; none where there is no such file."""
    try:
        place = walk(task, AT_FDCWD, path, LOOKUP_FOLLOW)
        file = place.inode.open(task, place, O_RDONLY)
        contents: Backing = file.mmap_backing(task, PROT_READ, MAP_PRIVATE, 0, 0)
    except SysError:
        return []
    buffer = bytearray(LONGEST_FILE)
    text = buffer[: contents.read_into(memoryview(buffer), 0)].decode(errors="replace")
    rows = [line.split(":") for line in text.splitlines()]
    numbers = (2, 3) if path.endswith(b"passwd") else (2,)
    return [row for row in rows if len(row) > numbers[-1] and all(row[n].isdigit() for n in numbers)]
