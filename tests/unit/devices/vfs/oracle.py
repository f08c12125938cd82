"""The same system calls to the host's Linux and to the VFS, so that the answers can be compared.

The host's are made by a child process in a mount namespace of its own, whose root is an empty tmpfs; ours by a task of
a World whose root is an empty MemFs. Both take a call as its name and arguments: bytes are C strings, `Data` is memory
to be read and `Room` memory to be written, whose contents come back; `Fd(n)` is the nth descriptor opened so far.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import struct
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tests.unit.devices.support import NUMBERS

if TYPE_CHECKING:
    from tests.unit.devices.support import World

AT_FDCWD = -100
OPENERS = ("open", "openat", "openat2", "creat", "dup", "open_tree", "fsopen", "fsmount", "fspick")
CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE, MNT_DETACH = 16384, 1 << 18, 2


class Fd(NamedTuple):
    """The descriptor that the nth successful open gave; -1: the last one."""

    number: int


class Data(NamedTuple):
    bytes: bytes


class Room(NamedTuple):
    size: int


Argument = int | bytes | Fd | Data | Room
Answer = tuple[int, list[bytes]]
"""Result or -errno; what is in each Room."""


class Kernel(Protocol):
    def call(self, name: str, *arguments: Argument) -> Answer:
        """Make a system call."""


class Descriptors:
    """Numbers of descriptors differ between kernels: they are known by the order in which they were opened."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def resolve(self, argument: Fd) -> int:
        known = -len(self.fds) <= argument.number < len(self.fds)
        return self.fds[argument.number] if known else 1000

    def note(self, name: str, result: int) -> int:
        if name not in OPENERS or result < 0:
            return result
        self.fds.append(result)
        return 0


# The host


def reason_why_not() -> str | None:
    """Why there is no such child process here; None if it can be had."""
    if os.geteuid():
        return "needs root for a mount namespace and chroot"
    child = HostKernel()
    try:
        return child.problem
    finally:
        child.close()


class HostKernel:
    def __init__(self) -> None:
        here, there = os.pipe(), os.pipe()
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                os.close(here[1])
                os.close(there[0])
                Server(here[0], there[1]).run()
                status = 0
            finally:
                os._exit(status)
        os.close(here[0])
        os.close(there[1])
        self._to = os.fdopen(here[1], "wb")
        self._from = os.fdopen(there[0], "rb")
        self.problem: str | None = pickle.load(self._from)

    def call(self, name: str, *arguments: Argument) -> Answer:
        pickle.dump((name, arguments), self._to)
        self._to.flush()
        answer: Answer = pickle.load(self._from)
        return answer

    def close(self) -> None:
        self._to.close()
        self._from.close()
        os.waitpid(self.pid, 0)


class Server:
    """What runs in the child."""

    def __init__(self, requests: int, answers: int) -> None:
        self.requests, self.answers = requests, answers
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.proc = os.open("/proc", os.O_PATH)

    def run(self) -> None:
        descriptors = Descriptors()
        with os.fdopen(self.requests, "rb") as requests, os.fdopen(self.answers, "wb") as answers:
            pickle.dump(self.prepare(), answers)
            answers.flush()
            while True:
                try:
                    name, arguments = pickle.load(requests)
                except EOFError:
                    return
                pickle.dump(self.serve(descriptors, name, arguments), answers)
                answers.flush()

    def prepare(self) -> str | None:
        place = b"/mnt" if os.path.isdir("/mnt") else b"/tmp"
        steps = (
            ("unshare", (CLONE_NEWNS,)),
            ("mount", (None, b"/", None, MS_REC | MS_PRIVATE, None)),
            ("mount", (b"none", place, b"tmpfs", 0, b"mode=755")),
            ("chdir", (place,)),
            ("pivot_root", (b".", b".")),
            ("umount2", (b".", MNT_DETACH)),
            ("chdir", (b"/",)),
        )
        for name, arguments in steps:
            call = self.libc.syscall if name == "pivot_root" else getattr(self.libc, name)
            numbered = (NUMBERS[name], *arguments) if name == "pivot_root" else arguments
            if call(*numbered):
                return f"{name}: {os.strerror(ctypes.get_errno())}"
        os.umask(0o022)
        self.libc.setgroups(0, None)
        return None

    def serve(self, descriptors: Descriptors, name: str, arguments: Any) -> Answer:
        if name == "mountinfo":
            with open(os.open("self/mountinfo", os.O_RDONLY, dir_fd=self.proc), "rb") as file:
                return 0, [file.read()]
        rooms: list[Any] = []
        values: list[Any] = []
        for argument in arguments:
            if isinstance(argument, Fd):
                values.append(ctypes.c_long(descriptors.resolve(argument)))
            elif isinstance(argument, Data):
                values.append(ctypes.create_string_buffer(argument.bytes, len(argument.bytes)))
            elif isinstance(argument, Room):
                rooms.append(ctypes.create_string_buffer(argument.size))
                values.append(rooms[-1])
            elif isinstance(argument, bytes):
                values.append(ctypes.c_char_p(argument))
            else:
                values.append(ctypes.c_long(argument))
        self.libc.syscall.restype = ctypes.c_long
        result = self.libc.syscall(ctypes.c_long(NUMBERS[name]), *values)
        if result < 0:
            result = -ctypes.get_errno()
        return descriptors.note(name, result), [room.raw for room in rooms]


# Ours


class OurKernel:
    def __init__(self, world: World) -> None:
        from devices.vfs.fs_struct import first_fs_locked
        from devices.vfs.mount import set_root_locked
        from tests.unit.devices.vfs.memfs import MEMFS, MemFs

        kernel = world.kernel
        kernel.filesystems[b"tmpfs"] = MEMFS
        self.fs = MemFs(kernel)
        set_root_locked(kernel, self.fs)
        self.world = world
        self.task = world.task
        self.task.process.fs.release_locked()
        self.task.process.fs = first_fs_locked(kernel)
        self.data = self.task.memory.mmap(0, 1 << 20, 3, 0x22)
        self.descriptors = Descriptors()

    def call(self, name: str, *arguments: Argument) -> Answer:
        from devices.errors import SysError

        memory = self.task.memory
        if name == "mountinfo":
            from devices.fs.procfs.mounts import mountinfo
            from devices.fs.procfs.who import Who

            return 0, [mountinfo(self.task, Who(self.task.process, self.task, True))]
        at = self.data
        values: list[int] = []
        rooms: list[tuple[int, int]] = []
        for argument in arguments:
            if isinstance(argument, Fd):
                values.append(self.descriptors.resolve(argument))
                continue
            if isinstance(argument, int):
                values.append(argument)
                continue
            if isinstance(argument, Room):
                content = bytes(argument.size)
                rooms.append((at, argument.size))
            elif isinstance(argument, Data):
                content = argument.bytes
            else:
                content = argument + b"\0"
            memory.write(at, content)
            values.append(at)
            at += len(content) + 64 & -16
        try:
            result = self.world.call(name, *values, task=self.task)
        except SysError as error:
            result = -error.errno
        return self.descriptors.note(name, result), [memory.read(address, size) for address, size in rooms]


# What is compared


STAT_FIELDS = struct.Struct("<QQQIIIIQqqqqQqQqQ24x")


def stat_of(raw: bytes) -> tuple[int, ...]:
    """Of a struct stat what both kernels must agree on: links, mode, owner, and a file's size."""
    values = STAT_FIELDS.unpack(raw)
    size = values[8] if values[3] & 0o170000 != 0o040000 else 0
    return values[2], values[3], values[4], values[5], size


def names_in(raw: bytes, count: int) -> list[bytes]:
    """The names in what getdents64 wrote."""
    found = []
    at = 0
    while at < count:
        (length,) = struct.unpack_from("<H", raw, at + 16)
        found.append(raw[at + 19 : at + length].split(b"\0")[0])
        at += length
    return sorted(found)
