"""memfd_create: files in memory without a name (mm/memfd.c)."""

from __future__ import annotations

import errno
from stat import S_IFREG
from typing import TYPE_CHECKING, Annotated

from devices.args import UINT, FlagSet, HexArg, show_string
from devices.bus import syscall
from devices.errors import SysError
from devices.fs.internal import internal_mount_of
from devices.fs.tmpfs.file import F_SEAL_EXEC, F_SEAL_SEAL, Regular, TmpfsFile
from devices.fs.tmpfs.superblock import Tmpfs
from devices.task.rlimits import RLIMIT_NOFILE
from devices.vfs.abi import O_LARGEFILE, O_RDWR
from devices.vfs.mount import unnamed_path

if TYPE_CHECKING:
    from devices.args import Call
    from devices.task.task import Task

MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_HUGETLB, MFD_NOEXEC_SEAL, MFD_EXEC = 1, 2, 4, 8, 16
MFD_ALL = 31
MFD_HUGE_MASK = 0x3F << 26
NAME_MAX = 249
"""NAME_MAX without `memfd:`."""
MemfdFlags = Annotated[int, FlagSet({n: v for n, v in list(globals().items()) if n.startswith("MFD_")}, code=UINT)]


class NameArg(HexArg):
    """A string that is read late, for the flags are looked at first."""

    def show(self, task: Task, register: int, call: Call) -> str:
        return show_string(task, register)


NamePtr = Annotated[int, NameArg("const char *")]


@syscall("memfd_create")
def memfd_create(task: Task, name: NamePtr, flags: MemfdFlags) -> int:
    """man 2 memfd_create."""
    known = MFD_ALL | (MFD_HUGE_MASK if flags & MFD_HUGETLB else 0)
    if flags & ~known or flags & (MFD_EXEC | MFD_NOEXEC_SEAL) == MFD_EXEC | MFD_NOEXEC_SEAL:
        raise SysError(errno.EINVAL, "flags")
    text = _read_name(task, name)
    if flags & MFD_HUGETLB:
        raise SysError(errno.ENOSYS, "no files of huge pages")
    mount = internal_mount_of(task.kernel, b"shm", lambda: Tmpfs(task.kernel, internal=True))
    fs = mount.sb
    assert isinstance(fs, Tmpfs)
    credentials = task.credentials
    mode = 0o666 if flags & MFD_NOEXEC_SEAL else 0o777
    node = Regular(fs, S_IFREG | mode, credentials.fsuid, credentials.fsgid)
    node.nlink = 0
    if flags & MFD_NOEXEC_SEAL:
        node.seals = F_SEAL_EXEC
    elif flags & MFD_ALLOW_SEALING:
        node.seals &= ~F_SEAL_SEAL
    file = TmpfsFile(node, O_RDWR | O_LARGEFILE).hold()
    file.attach(unnamed_path(mount, node, b"memfd:" + text))
    try:
        return task.files.install(file, task.process.rlimits[RLIMIT_NOFILE][0], cloexec=bool(flags & MFD_CLOEXEC))
    finally:
        file.put_locked()


def _read_name(task: Task, address: int) -> bytes:
    """SysError(EFAULT, EINVAL)."""
    try:
        return task.memory.read_cstring(address, NAME_MAX + 1)
    except SysError as error:
        raise SysError(errno.EFAULT if error.errno == errno.EFAULT else errno.EINVAL, "name") from error
