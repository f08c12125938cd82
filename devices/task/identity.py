"""The calls about who a task is: user and group ids, capabilities, process groups and sessions, and the umask.

kernel/sys.c, kernel/groups.c, kernel/capability.c. The rules are in setid.py and capabilities.py.
"""

from __future__ import annotations

import errno
from struct import Struct
from typing import TYPE_CHECKING

from devices.args import Int, Mode, Pid, Ptr, Uid
from devices.bus import syscall
from devices.errors import SysError
from devices.task import setid
from devices.task.capabilities import may_set
from devices.task.permissions import find_task

if TYPE_CHECKING:
    from devices.task.process import Credentials, Process
    from devices.task.task import Task

SUID_DUMPABLE = 0
"""What `dumpable` becomes when a process changes who it is (/proc/sys/fs/suid_dumpable)."""


def commit(task: Task, new: Credentials) -> int:
    """commit_creds(): the task is `new` from now on. Returns 0."""
    old = task.credentials
    if new is not old:
        changed = (new.euid, new.egid, new.fsuid, new.fsgid) != (old.euid, old.egid, old.fsuid, old.fsgid)
        if changed or new.permitted & ~old.permitted:
            task.process.dumpable = SUID_DUMPABLE
            task.pdeath_signal = 0
        task.credentials = new
    return 0


# Ids


@syscall("getuid")
def getuid(task: Task) -> int:
    """man 2 getuid."""
    return task.credentials.uid


@syscall("geteuid")
def geteuid(task: Task) -> int:
    """man 2 geteuid."""
    return task.credentials.euid


@syscall("getgid")
def getgid(task: Task) -> int:
    """man 2 getgid."""
    return task.credentials.gid


@syscall("getegid")
def getegid(task: Task) -> int:
    """man 2 getegid."""
    return task.credentials.egid


@syscall("setuid")
def setuid(task: Task, uid: Uid) -> int:
    """man 2 setuid."""
    return commit(task, setid.setuid(task.credentials, uid))


@syscall("setgid")
def setgid(task: Task, gid: Uid) -> int:
    """man 2 setgid."""
    return commit(task, setid.setgid(task.credentials, gid))


@syscall("setreuid")
def setreuid(task: Task, ruid: Uid, euid: Uid) -> int:
    """man 2 setreuid."""
    return commit(task, setid.setreuid(task.credentials, ruid, euid))


@syscall("setregid")
def setregid(task: Task, rgid: Uid, egid: Uid) -> int:
    """man 2 setregid."""
    return commit(task, setid.setregid(task.credentials, rgid, egid))


@syscall("setresuid")
def setresuid(task: Task, ruid: Uid, euid: Uid, suid: Uid) -> int:
    """man 2 setresuid."""
    return commit(task, setid.setresuid(task.credentials, ruid, euid, suid))


@syscall("setresgid")
def setresgid(task: Task, rgid: Uid, egid: Uid, sgid: Uid) -> int:
    """man 2 setresgid."""
    return commit(task, setid.setresgid(task.credentials, rgid, egid, sgid))


@syscall("getresuid")
def getresuid(task: Task, ruid: Ptr, euid: Ptr, suid: Ptr) -> int:
    """man 2 getresuid."""
    who = task.credentials
    return _write_ids(task, (ruid, who.uid), (euid, who.euid), (suid, who.suid))


@syscall("getresgid")
def getresgid(task: Task, rgid: Ptr, egid: Ptr, sgid: Ptr) -> int:
    """man 2 getresgid."""
    who = task.credentials
    return _write_ids(task, (rgid, who.gid), (egid, who.egid), (sgid, who.sgid))


def _write_ids(task: Task, *ids: tuple[int, int]) -> int:
    for address, value in ids:
        task.memory.write_u32(address, value)
    return 0


@syscall("setfsuid")
def setfsuid(task: Task, fsuid: Uid) -> int:
    """man 2 setfsuid: returns the id before, whatever happens."""
    before = task.credentials.fsuid
    commit(task, setid.setfsuid(task.credentials, fsuid))
    return before


@syscall("setfsgid")
def setfsgid(task: Task, fsgid: Uid) -> int:
    """man 2 setfsgid: returns the id before, whatever happens."""
    before = task.credentials.fsgid
    commit(task, setid.setfsgid(task.credentials, fsgid))
    return before


@syscall("getgroups")
def getgroups(task: Task, size: Int, list: Ptr) -> int:
    """man 2 getgroups."""
    groups = task.credentials.groups
    if size < 0:
        raise SysError(errno.EINVAL, "negative size")
    if size:
        if len(groups) > size:
            raise SysError(errno.EINVAL, "more groups than that")
        task.memory.write(list, b"".join(gid.to_bytes(4, "little") for gid in groups))
    return len(groups)


@syscall("setgroups")
def setgroups(task: Task, size: Int, list: Ptr) -> int:
    """man 2 setgroups."""
    setid.setgroups(task.credentials, ())  # EPERM comes before all else
    if not 0 <= size <= setid.NGROUPS_MAX:
        raise SysError(errno.EINVAL, "too many groups")
    raw = task.memory.read(list, 4 * size)
    return commit(task, setid.setgroups(task.credentials, memoryview(raw).cast("I")))


# Capabilities

HEADER = Struct("<Ii")
"""struct __user_cap_header_struct: version, pid."""
VERSIONS = {0x1998_0330: 1, 0x2007_1026: 2, 0x2008_0522: 2}
"""_LINUX_CAPABILITY_VERSION_1 to 3, and how many 32-bit parts a set has."""
NEWEST_VERSION = 0x2008_0522
VALID = (1 << 41) - 1


def _cap_header(task: Task, header: int) -> int:
    """The parts of a set in the version that the caller speaks; EINVAL, having told the newest, for an unknown one."""
    parts = VERSIONS.get(task.memory.read_u32(header))
    if parts is None:
        task.memory.write_u32(header, NEWEST_VERSION)
        raise SysError(errno.EINVAL, "unknown version")
    return parts


@syscall("capget")
def capget(task: Task, hdrp: Ptr, datap: Ptr) -> int:
    """man 2 capget."""
    try:
        parts = _cap_header(task, hdrp)
    except SysError as error:
        if not datap and error.errno == errno.EINVAL:
            return 0  # how a program asks for the version
        raise
    if not datap:
        return 0
    pid = task.memory.read_i32(hdrp + 4)
    if pid < 0:
        raise SysError(errno.EINVAL, "negative pid")
    who = find_task(task, pid).credentials
    words = [
        value >> 32 * part & 0xFFFF_FFFF
        for part in range(parts)
        for value in (who.effective, who.permitted, who.inheritable)
    ]
    task.memory.write(datap, b"".join(word.to_bytes(4, "little") for word in words))
    return 0


@syscall("capset")
def capset(task: Task, hdrp: Ptr, datap: Ptr) -> int:
    """man 2 capset."""
    parts = _cap_header(task, hdrp)
    pid = task.memory.read_i32(hdrp + 4)
    if pid not in (0, task.tid):
        raise SysError(errno.EPERM, "only one's own")
    words = memoryview(task.memory.read(datap, 12 * parts)).cast("I")
    effective, permitted, inheritable = (
        sum(words[3 * part + which] << 32 * part for part in range(parts)) & VALID for which in range(3)
    )
    old = task.credentials
    if not may_set(old, effective, inheritable, permitted):
        raise SysError(errno.EPERM)
    new = old.copy()
    new.effective, new.permitted, new.inheritable = effective, permitted, inheritable
    new.ambient &= permitted & inheritable
    return commit(task, new)


# Process groups and sessions


@syscall("getpgrp")
def getpgrp(task: Task) -> int:
    """man 2 getpgrp."""
    return task.process.pgid


@syscall("getpgid")
def getpgid(task: Task, pid: Pid) -> int:
    """man 2 getpgid."""
    return _process_of(task, pid).pgid


@syscall("getsid")
def getsid(task: Task, pid: Pid) -> int:
    """man 2 getsid."""
    return _process_of(task, pid).sid


def _process_of(task: Task, pid: int) -> Process:
    """The process of a task, alive or waited for by its parent; 0 means the caller. ESRCH."""
    return task.kernel.processes.get(pid) or find_task(task, pid).process


@syscall("setpgid")
def setpgid(task: Task, pid: Pid, pgid: Pid) -> int:
    """man 2 setpgid."""
    own = task.process
    pid = pid or own.pid
    pgid = pgid or pid
    if pgid < 0:
        raise SysError(errno.EINVAL, "negative group")
    target = _process_of(task, pid)
    if target.pid != pid:
        raise SysError(errno.EINVAL, "a thread that does not lead its process")
    if target.parent_pid == own.pid:
        if target.sid != own.sid:
            raise SysError(errno.EPERM, "a child in another session")
        if target.did_exec:
            raise SysError(errno.EACCES, "a child that has called execve")
    elif target is not own:
        raise SysError(errno.ESRCH, "not a child")
    if target.sid == target.pid:
        raise SysError(errno.EPERM, "a session leader")
    if pgid != pid and not any(p.pgid == pgid and p.sid == own.sid for p in task.kernel.processes.values()):
        raise SysError(errno.EPERM, "no such group in the session")
    target.pgid = pgid
    return 0


@syscall("setsid")
def setsid(task: Task) -> int:
    """man 2 setsid."""
    own = task.process
    if own.sid == own.pid or any(p.pgid == own.pid for p in task.kernel.processes.values()):
        raise SysError(errno.EPERM, "a leader of a session or a group")
    own.sid = own.pgid = own.pid
    return own.sid


@syscall("umask")
def umask(task: Task, mask: Mode) -> int:
    """man 2 umask."""
    before, task.process.umask = task.process.umask, mask & 0o777
    return before
