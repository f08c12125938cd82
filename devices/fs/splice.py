"""Moving bytes between two files without a program's buffer (fs/splice.c, fs/read_write.c).

The bytes are copied once, through a buffer of the monitor: Linux moves references to pages instead, which a program
cannot tell but by changing a page that it has given away with vmsplice.
"""

from __future__ import annotations

import errno
import signal
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFMT, S_IFREG, S_IFSOCK
from typing import TYPE_CHECKING, cast

from devices.errors import Interrupted, SysError
from devices.fs.kerneltask import KernelTask
from devices.fs.pipe import FIXED, PipeEnd
from devices.signals.send import send_locked
from devices.vfs.abi import MAX_FILE_SIZE, O_APPEND, O_NONBLOCK, SEEK_CUR
from devices.vfs.resize import limited
from devices.vfs.syscalls import do_pread, do_pwrite, do_read, do_write
from vmm.layout import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.fs.pipe import Pipe
    from devices.task.task import Task
    from devices.vfs.files import OpenFile, Segments

SPLICE_F_MOVE, SPLICE_F_NONBLOCK, SPLICE_F_MORE, SPLICE_F_GIFT = 1, 2, 4, 8
SPLICE_F_ALL = 15
CHUNK = 1 << 18
"""Bytes that are copied at once."""
U64 = 0xFFFF_FFFF_FFFF_FFFF
SPLICED_KINDS = (S_IFREG, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK)


def kind_of(file: OpenFile) -> int:
    """S_IFMT of the file; 0 for one that has no kind (epoll, eventfd...)."""
    if file.inode is not None:
        return S_IFMT(file.inode.mode)
    try:
        return S_IFMT(file.stat().st_mode)
    except SysError:
        return 0


def check_spliced(file: OpenFile) -> None:
    """Can bytes be spliced from and to such a file? SysError(EINVAL)."""
    if kind_of(file) not in SPLICED_KINDS:
        raise SysError(errno.EINVAL, "cannot be spliced")


def is_seekable(file: OpenFile) -> bool:
    try:
        file.lseek(0, SEEK_CUR)
    except SysError:
        return False
    return True


def fetch(task: Task, file: OpenFile, size: int, offset: int | None) -> bytes:
    """Read up to `size` bytes at `offset`, or at the file's position (None)."""
    buffer = bytearray(size)
    reader = cast("Task", KernelTask(task, buffer))
    segments = [(0, size)]
    count = do_read(reader, file, segments) if offset is None else do_pread(reader, file, segments, offset)
    return bytes(buffer[:count])


def store(task: Task, file: OpenFile, data: bytes, offset: int | None) -> int:
    """Write at `offset`, or at the file's position (None); the bytes written."""
    writer = cast("Task", KernelTask(task, bytearray(data)))
    segments = [(0, len(data))]
    return do_write(writer, file, segments) if offset is None else do_pwrite(writer, file, segments, offset)


def repeat(length: int, step: Callable[[int, int], tuple[int, bool]]) -> int:
    """Call `step(bytes done, bytes left)` -> (bytes moved, go on?) until all is done; what goes wrong after some
    progress only ends it."""
    done = 0
    try:
        while done < length:
            moved, more = step(done, length - done)
            done += moved
            if not moved or not more:
                break
    except (SysError, Interrupted):
        if not done:
            raise
    return done


# sendfile, copy_file_range


def copy_direct(task: Task, source: OpenFile, at: int, target: OpenFile, to: int | None, length: int) -> int:
    """Copy from a file with offsets, at `at`, to another at `to` or its position; the bytes copied."""

    def step(done: int, left: int) -> tuple[int, bool]:
        wanted = min(left, CHUNK)
        data = fetch(task, source, wanted, at + done)
        if not data:
            return 0, False
        written = store(task, target, data, None if to is None else to + done)
        return written, written == len(data)

    return repeat(length, step)


def sendfile(task: Task, target: OpenFile, source: OpenFile, at: int, length: int) -> int:
    """do_sendfile(), from position `at`; the bytes sent. SysError(EINVAL, EOVERFLOW)."""
    if at >= MAX_FILE_SIZE:
        raise SysError(errno.EOVERFLOW)
    length = min(length, MAX_FILE_SIZE - at)
    check_spliced(source)
    if isinstance(target, PipeEnd):
        nonblock = bool(source.flags & O_NONBLOCK)
        return file_to_pipe(task, source, at, target, length, nonblock)
    if not is_seekable(source):
        raise SysError(errno.EINVAL, "the source has no offsets")
    if target.flags & O_APPEND:
        raise SysError(errno.EINVAL, "O_APPEND")
    check_spliced(target)
    return copy_direct(task, source, at, target, None, length)


def copy_file_range(task: Task, source: OpenFile, at: int, target: OpenFile, to: int, length: int) -> int:
    """vfs_copy_file_range(): SysError(EISDIR, EINVAL, EBADF, EXDEV, EOVERFLOW, EFBIG)."""
    kinds = (kind_of(source), kind_of(target))
    if S_IFDIR in kinds:
        raise SysError(errno.EISDIR)
    inode, other = source.inode, target.inode
    if kinds != (S_IFREG, S_IFREG) or inode is None or other is None:
        raise SysError(errno.EINVAL, "no regular files")
    source.check_readable()
    target.check_writable()
    if target.flags & O_APPEND:
        raise SysError(errno.EBADF, "O_APPEND")
    if inode.sb is not other.sb:
        raise SysError(errno.EXDEV)
    if max(at & U64, to & U64) + length > U64:
        raise SysError(errno.EOVERFLOW)
    inode.refresh()
    length = min(length, max(inode.size - at, 0))
    length = sum(n for _, n in limited(task, [(0, length)], to))
    if inode is other and to + length > at and to < at + length:
        raise SysError(errno.EINVAL, "the ranges overlap")
    if at < 0 or to < 0:
        raise SysError(errno.EINVAL, "negative offset")
    return copy_direct(task, source, at, target, to, length)


# splice, tee, vmsplice


def file_to_pipe(task: Task, source: OpenFile, at: int | None, target: PipeEnd, length: int, nonblock: bool) -> int:
    """splice_file_to_pipe(): wait for room, then read once; the bytes moved."""
    wait_for_room(task, target, nonblock)
    pipe = target.pipe
    skip = 0  # a buffer of the pipe is a part of one page of a regular file
    if kind_of(source) == S_IFREG:
        skip = (source.position if at is None else at) % PAGE_SIZE
    data = fetch(task, source, min(length, (pipe.free << PAGE_SHIFT) - skip), at)
    if data:
        head = PAGE_SIZE - skip
        pipe.put(data[:head], FIXED)
        pipe.put(data[head:], FIXED)
        pipe.filled()
    return len(data)


def wait_for_room(task: Task, target: PipeEnd, nonblock: bool) -> None:
    """wait_for_space(): SysError(EPIPE, with SIGPIPE, or EAGAIN)."""
    try:
        target.wait_room(task, 1 << 30, nonblock)
    except SysError as error:
        if error.errno == errno.EPIPE:
            send_locked(task, signal.SIGPIPE)
        raise


def pipe_to_file(task: Task, source: PipeEnd, target: OpenFile, to: int | None, length: int, nonblock: bool) -> int:
    """iter_file_splice_write(): wait for something to be in the pipe, then write what is there; the bytes moved."""
    check_spliced(target)
    pipe = source.pipe
    if not source.wait_filled(task, nonblock):
        return 0

    def step(done: int, left: int) -> tuple[int, bool]:
        was_full = not pipe.free
        data = b""
        while pipe.buffers and len(data) < min(left, CHUNK):
            data += pipe.take_buffer(min(left, CHUNK) - len(data))
        written = 0
        try:
            written = store(task, target, data, None if to is None else to + done)
        finally:
            pipe.give_back(data[written:])
            if written:
                pipe.drained(was_full)
        return written, written == len(data) and bool(pipe.buffers)

    return repeat(length, step)


def pipe_to_pipe(task: Task, source: PipeEnd, target: PipeEnd, length: int, nonblock: bool) -> int:
    """splice_pipe_to_pipe()."""
    if not _both_ready(task, source, target, nonblock):
        return 0
    one, other = source.pipe, target.pipe
    was_full = not one.free
    done = 0
    while done < length and one.buffers and other.free:
        kind = one.kinds[0]
        part = one.take_buffer(length - done)
        other.put(part, kind or FIXED)
        done += len(part)
    one.drained(was_full)
    other.filled()
    return done


def tee(task: Task, source: PipeEnd, target: PipeEnd, length: int, nonblock: bool) -> int:
    """link_pipe(): as pipe_to_pipe(), but all of it stays in the first pipe, too."""
    if not _both_ready(task, source, target, nonblock):
        return 0
    done = 0
    for buffer, kind in zip(list(source.pipe.buffers), list(source.pipe.kinds), strict=True):
        if done >= length or not target.pipe.free:
            break
        part = bytes(buffer[: length - done])
        target.pipe.put(part, kind or FIXED)
        done += len(part)
    target.pipe.filled()
    return done


def _both_ready(task: Task, source: PipeEnd, target: PipeEnd, nonblock: bool) -> bool:
    """Wait until the first pipe has something and the second one room; False at the end of the first."""
    while True:
        if not source.wait_filled(task, nonblock):
            return False
        wait_for_room(task, target, nonblock)
        if source.pipe.buffers:
            return True


def user_to_pipe(task: Task, target: PipeEnd, segments: Segments, nonblock: bool) -> int:
    """vmsplice_to_pipe(): a buffer of the pipe for each page of the program's; the bytes moved."""
    wait_for_room(task, target, nonblock)
    pipe = target.pipe
    done = 0
    try:
        for address, size in segments:
            end = address + size
            while address < end and pipe.free:
                part = task.memory.read(address, min(end - address, PAGE_SIZE - address % PAGE_SIZE))
                pipe.put(part, FIXED)
                done += len(part)
                address += len(part)
    except SysError:
        if not done:
            raise
    pipe.filled()
    return done


def pipe_to_user(task: Task, source: PipeEnd, segments: Segments, nonblock: bool) -> int:
    """vmsplice_to_user()."""
    pipe = source.pipe
    if not source.wait_filled(task, nonblock):
        return 0
    was_full = not pipe.free
    done = _copy_out(task, pipe, segments)
    pipe.drained(was_full)
    return done


def _copy_out(task: Task, pipe: Pipe, segments: Segments) -> int:
    done = 0
    try:
        for address, size in segments:
            while size and pipe.buffers:
                part = bytes(pipe.buffers[0][:size])
                task.memory.write(address, part)
                pipe.take_buffer(len(part))
                address += len(part)
                size -= len(part)
                done += len(part)
    except SysError:
        if not done:
            raise
    return done
