"""sendfile, copy_file_range, splice, tee and vmsplice: decode, check what is given, let the model move the bytes."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Annotated

from devices.args import UINT, Fd, FlagSet, Ptr, Size, UInt
from devices.bus import syscall
from devices.errors import SysError
from devices.fs import splice as model
from devices.fs.pipe import PipeEnd
from devices.fs.splice import SPLICE_F_ALL, SPLICE_F_NONBLOCK, is_seekable
from devices.vfs.abi import MAX_RW_COUNT, O_APPEND, O_NONBLOCK
from devices.vfs.syscalls import iovec

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs.files import OpenFile

SpliceFlags = Annotated[
    int,
    FlagSet(
        {"SPLICE_F_MOVE": 1, "SPLICE_F_NONBLOCK": 2, "SPLICE_F_MORE": 4, "SPLICE_F_GIFT": 8},
        code=UINT,
    ),
]


class Using:
    """Files stay open while a call uses them, whoever closes their descriptors meanwhile. For `with`."""

    __slots__ = ("_files",)

    def __init__(self, *files: OpenFile) -> None:
        self._files = files

    def __enter__(self) -> None:
        for file in self._files:
            file.hold()

    def __exit__(self, *exception: object) -> None:
        for file in self._files:
            file.put_locked()


def read_offset(task: Task, address: int) -> int | None:
    """The loff_t that a pointer points to; None for NULL. SysError(EFAULT)."""
    return int.from_bytes(task.memory.read(address, 8), "little", signed=True) if address else None


def write_offset(task: Task, address: int, offset: int) -> None:
    task.memory.write(address, struct.pack("<q", offset))


def check_area(offset: int, length: int) -> int:
    """rw_verify_area(): the bytes that may be moved. SysError(EINVAL)."""
    if offset < 0 or length >= 1 << 63 or offset + length >= 1 << 63:
        raise SysError(errno.EINVAL, "range")
    return min(length, MAX_RW_COUNT)


@syscall("sendfile", in_place=False)
def sendfile(task: Task, out_fd: Fd, in_fd: Fd, offset: Ptr, count: Size) -> int:
    """man 2 sendfile."""
    given = read_offset(task, offset)
    source = task.files.opened(in_fd)
    source.check_readable()
    if given is not None and not is_seekable(source):
        raise SysError(errno.ESPIPE)
    at = source.position if given is None else given
    length = check_area(at, count)
    target = task.files.opened(out_fd)
    target.check_writable()
    with Using(source, target):
        moved = model.sendfile(task, target, source, at, length)
        _advance(task, source, offset, at + moved)
    return moved


@syscall("copy_file_range", in_place=False)
def copy_file_range(task: Task, fd_in: Fd, off_in: Ptr, fd_out: Fd, off_out: Ptr, size: Size, flags: UInt) -> int:
    """man 2 copy_file_range."""
    source, target = task.files.opened(fd_in), task.files.opened(fd_out)
    given_in, given_out = read_offset(task, off_in), read_offset(task, off_out)
    if flags:
        raise SysError(errno.EINVAL, "flags")
    at = source.position if given_in is None else given_in
    to = target.position if given_out is None else given_out
    with Using(source, target):
        moved = model.copy_file_range(task, source, at, target, to, size)
        if moved:
            _advance(task, source, off_in, at + moved)
            _advance(task, target, off_out, to + moved)
    return moved


def _advance(task: Task, file: OpenFile, address: int, position: int) -> None:
    if address:
        write_offset(task, address, position)
    else:
        file.position = position


@syscall("splice", in_place=False)
def splice(task: Task, fd_in: Fd, off_in: Ptr, fd_out: Fd, off_out: Ptr, size: Size, flags: SpliceFlags) -> int:
    """man 2 splice."""
    if not size:
        return 0
    if flags & ~SPLICE_F_ALL:
        raise SysError(errno.EINVAL, "flags")
    source, target = task.files.opened(fd_in), task.files.opened(fd_out)
    if (off_in and isinstance(source, PipeEnd)) or (off_out and isinstance(target, PipeEnd)):
        raise SysError(errno.ESPIPE)
    at, to = read_offset(task, off_in), read_offset(task, off_out)
    source.check_readable()
    target.check_writable()
    with Using(source, target):
        moved = _splice(task, source, at, target, to, size, bool(flags & SPLICE_F_NONBLOCK))
    if at is not None:
        write_offset(task, off_in, at + moved)
    if to is not None:
        write_offset(task, off_out, to + moved)
    return moved


def _splice(
    task: Task, source: OpenFile, at: int | None, target: OpenFile, to: int | None, size: int, nonblock: bool
) -> int:
    """do_splice()."""
    if isinstance(source, PipeEnd):
        if not isinstance(target, PipeEnd):
            return _from_pipe(task, source, target, to, size, nonblock)
        if source.pipe is target.pipe:
            raise SysError(errno.EINVAL, "the same pipe")
        nonblock = nonblock or bool((source.flags | target.flags) & O_NONBLOCK)
        return model.pipe_to_pipe(task, source, target, size, nonblock)
    if isinstance(target, PipeEnd):
        return _to_pipe(task, source, at, target, size, nonblock)
    raise SysError(errno.EINVAL, "no pipe")


def _from_pipe(task: Task, source: PipeEnd, target: OpenFile, to: int | None, size: int, nonblock: bool) -> int:
    if to is not None and not is_seekable(target):
        raise SysError(errno.EINVAL, "no offsets")
    if target.flags & O_APPEND:
        raise SysError(errno.EINVAL, "O_APPEND")
    length = check_area(target.position if to is None else to, size)
    return model.pipe_to_file(task, source, target, to, length, nonblock)


def _to_pipe(task: Task, source: OpenFile, at: int | None, target: PipeEnd, size: int, nonblock: bool) -> int:
    if at is not None and not is_seekable(source):
        raise SysError(errno.EINVAL, "no offsets")
    length = check_area(source.position if at is None else at, size)
    model.check_spliced(source)
    return model.file_to_pipe(task, source, at, target, length, nonblock or bool(target.flags & O_NONBLOCK))


@syscall("tee", in_place=False)
def tee(task: Task, fdin: Fd, fdout: Fd, size: Size, flags: SpliceFlags) -> int:
    """man 2 tee."""
    if flags & ~SPLICE_F_ALL:
        raise SysError(errno.EINVAL, "flags")
    if not size:
        return 0
    source, target = task.files.opened(fdin), task.files.opened(fdout)
    source.check_readable()
    target.check_writable()
    if not isinstance(source, PipeEnd) or not isinstance(target, PipeEnd) or source.pipe is target.pipe:
        raise SysError(errno.EINVAL, "no two pipes")
    nonblock = bool(flags & SPLICE_F_NONBLOCK or (source.flags | target.flags) & O_NONBLOCK)
    with Using(source, target):
        return model.tee(task, source, target, size, nonblock)


@syscall("vmsplice", in_place=False)
def vmsplice(task: Task, fd: Fd, iov: Ptr, nr_segs: Size, flags: SpliceFlags) -> int:
    """man 2 vmsplice."""
    if flags & ~SPLICE_F_ALL:
        raise SysError(errno.EINVAL, "flags")
    file = task.files.opened(fd)
    segments = iovec(task, iov, nr_segs)
    if not segments:
        return 0
    if not isinstance(file, PipeEnd):
        raise SysError(errno.EBADF, "no pipe")
    nonblock = bool(flags & SPLICE_F_NONBLOCK)
    move = model.user_to_pipe if file.writes else model.pipe_to_user
    with Using(file):
        return move(task, file, segments, nonblock)
