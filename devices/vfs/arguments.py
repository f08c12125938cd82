"""What the path calls share: paths that may be NULL, AT_* flags, and the file that a descriptor or a path means."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Annotated

from devices.args import PATH_MAX, StringArg
from devices.errors import SysError
from devices.vfs.abi import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_FOLLOW, AT_SYMLINK_NOFOLLOW
from devices.vfs.path import LOOKUP_EMPTY, LOOKUP_FOLLOW, walk

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs.path import Path


class NullableStringArg(StringArg):
    """A C string, or NULL: None."""

    def __init__(self) -> None:
        super().__init__()
        self.code = f"task.memory.read_cstring({{r}}, {PATH_MAX}) if {{r}} else None"


NullablePath = Annotated[bytes | None, NullableStringArg()]


def is_empty(path: bytes | None, flags: int) -> bool:
    """Does AT_EMPTY_PATH with an empty path, or NULL, mean the descriptor? SysError(EFAULT) for NULL without it."""
    if path is None and not flags & AT_EMPTY_PATH:
        raise SysError(errno.EFAULT)
    return not path and bool(flags & AT_EMPTY_PATH)


def place_at(task: Task, dirfd: int, path: bytes | None, flags: int) -> Path:
    """The file that `path` names, by AT_SYMLINK_NOFOLLOW (following otherwise) and AT_EMPTY_PATH."""
    lookup = 0 if flags & AT_SYMLINK_NOFOLLOW else LOOKUP_FOLLOW
    if is_empty(path, flags):
        lookup |= LOOKUP_EMPTY
    return walk(task, dirfd, path or b"", lookup)


def place_following(task: Task, dirfd: int, path: bytes | None, flags: int) -> Path:
    """The same for calls that follow a trailing link only with AT_SYMLINK_FOLLOW."""
    return place_at(task, dirfd, path, flags if flags & AT_SYMLINK_FOLLOW else flags | AT_SYMLINK_NOFOLLOW)


def is_descriptor(dirfd: int, path: bytes | None, flags: int) -> bool:
    """Is a descriptor meant, which may be of a file that has no place (a pipe)?"""
    return is_empty(path, flags) and dirfd != AT_FDCWD
