"""A file that processes run: kept open for them, and closed to writers meanwhile (deny_write_access())."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.memory.abi import MAP_PRIVATE, PROT_READ
from devices.vfs.abi import O_RDONLY
from devices.vfs.open import finish_open

if TYPE_CHECKING:
    from devices.memory.backing import Backing
    from devices.task.task import Task
    from devices.vfs.files import OpenFile
    from devices.vfs.path import Path


def open_program(task: Task, place: Path) -> tuple[OpenFile, Backing]:
    """Open a file whose permissions were checked to map it as a program or loader; the caller puts it back."""
    file = finish_open(task, place, O_RDONLY).hold()
    try:
        return file, file.mmap_backing(task, PROT_READ, MAP_PRIVATE, 0, 0)
    except BaseException:
        file.put_locked()
        raise


class Executable:
    """mm->exe_file: what a process runs, shared with the processes that it forks."""

    __slots__ = ("contents", "file", "path", "users")

    def __init__(self, task: Task, place: Path) -> None:
        """SysError(ETXTBSY) while the file is open for writing."""
        if place.inode.writers > 0:
            raise SysError(errno.ETXTBSY)
        self.file, self.contents = open_program(task, place)
        self.path = place
        self.users = 1
        place.inode.writers -= 1

    def share(self) -> Executable:
        self.users += 1
        return self

    def release_locked(self) -> None:
        """A process runs something else, or has ended."""
        self.users -= 1
        if not self.users:
            self.path.inode.writers += 1
            self.file.put_locked()
