"""/proc/sys: what sysctl(8) shows (Documentation/admin-guide/sysctl).

What can be written takes effect; the other files tell what pyvmm does, and cannot be written.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.fs.pseudo import TextInode, directory
from devices.memory.abi import MAX_MAP_COUNT, MMAP_MIN_ADDR
from devices.task.capabilities import CAP_SYS_ADMIN
from devices.task.rlimits import NR_OPEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.fs.pseudo import Node, PseudoFs, Show, Store
    from devices.kernel import Kernel
    from devices.task.task import Task

S_IFREG = 0o100000
UTS_LEN = 64
OVERFLOW_ID = 65534
NEVER = (1 << 64) - 1 - (1 << 24)
"""SHMMAX, SHMALL: no limit."""


class SysctlInode(TextInode):
    """test_perm() of fs/proc/proc_sysctl.c: nobody may write what cannot be written, not even root."""

    __slots__ = ()

    def permission(self, task: Task, mask: int) -> None:
        credentials = task.credentials
        mode = self.mode
        if credentials.euid == 0:
            mode >>= 6
        elif credentials.egid == 0 or 0 in credentials.groups:
            mode >>= 3
        if mask & ~mode & 7:
            raise SysError(errno.EACCES)


def node(show: Show | None, mode: int = 0o444, store: Store | None = None) -> Node:
    from devices.fs.pseudo import Node

    return Node(S_IFREG | mode, lambda fs, ino, mode: SysctlInode(fs, ino, mode, show, store))


def value(*numbers: int | bytes) -> Node:
    """A file with numbers, or a word, that stay as they are."""
    line = b"\t".join(n if isinstance(n, bytes) else b"%d" % n for n in numbers) + b"\n"
    return node(lambda task: line)


def of(read: Callable[[Kernel], int]) -> Node:
    """A file with a number of the machine's."""
    return node(lambda task: b"%d\n" % read(task.kernel))


def name(attribute: str) -> Node:
    """hostname, domainname."""

    def show(task: Task) -> bytes:
        found = task.kernel.hostname if attribute == "hostname" else task.kernel.domainname
        return found + b"\n"

    def store(task: Task, data: bytes) -> None:
        if not task.credentials.capable(CAP_SYS_ADMIN):
            raise SysError(errno.EPERM)
        setattr(task.kernel, attribute, data.split(b"\0", 1)[0].split(b"\n", 1)[0][:UTS_LEN])

    return node(show, 0o644, store)


def protected(key: str, highest: int) -> Node:
    """fs.protected_*: devices/vfs looks at them."""

    def store(task: Task, data: bytes) -> None:
        task.kernel.vfs.sysctls[key] = number(data, 0, highest)

    return node(lambda task: b"%d\n" % task.kernel.vfs.sysctls[key], 0o644, store)


def number(data: bytes, low: int, high: int) -> int:
    """The first number that was written. SysError(EINVAL) for none, and for one out of bounds."""
    words = data.strip(b"\0").split()
    try:
        found = int(words[0])
    except (IndexError, ValueError):
        raise SysError(errno.EINVAL, "not a number") from None
    if not low <= found <= high:
        raise SysError(errno.EINVAL, "out of bounds")
    return found


def uuid(task: Task) -> bytes:
    """A new random UUID each time (RFC 9562, version 4)."""
    return format_uuid(task.kernel.random.bytes(16))


def format_uuid(raw: bytes) -> bytes:
    raw = raw[:6] + bytes((raw[6] & 0xF | 0x40, raw[7], raw[8] & 0x3F | 0x80)) + raw[9:]
    digits = raw.hex().encode()
    return b"-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])) + b"\n"


def boot_id(fs: PseudoFs) -> Node:
    """A UUID of the machine's, the same until it ends."""
    kernel = fs.kernel
    known = vars(kernel).setdefault("boot_id", format_uuid(kernel.random.bytes(16)))
    return node(lambda task: known)


def uts(which: str) -> Node:
    def show(task: Task) -> bytes:
        from devices.task import syscalls

        return {"ostype": syscalls.SYSNAME, "osrelease": syscalls.RELEASE, "version": syscalls.VERSION}[which] + b"\n"

    return node(show)


def pid_max(kernel: Kernel) -> int:
    from devices.kernel import PID_MAX

    return PID_MAX


def tasks(kernel: Kernel) -> int:
    return kernel.max_tasks


def open_files(task: Task) -> bytes:
    """fs.file-nr: open descriptors (shared descriptions count for each), free ones, and how many there may be."""
    tables = {id(p.files): p.files for p in task.kernel.processes.values()}
    return b"%d\t0\t%d\n" % (sum(len(t.numbers()) for t in tables.values()), (1 << 63) - 1)


KERNEL: dict[bytes, Node] = {
    b"arch": value(b"x86_64"),
    b"cap_last_cap": value(40),
    b"core_pattern": value(b"core"),
    b"core_pipe_limit": value(0),
    b"core_uses_pid": value(0),
    b"dmesg_restrict": value(0),
    b"domainname": name("domainname"),
    b"hostname": name("hostname"),
    b"io_uring_disabled": value(0),
    b"kptr_restrict": value(0),
    b"msgmax": value(8192),
    b"msgmnb": value(16384),
    b"msgmni": value(32000),
    b"ngroups_max": value(65536),
    b"osrelease": uts("osrelease"),
    b"ostype": uts("ostype"),
    b"overflowgid": value(OVERFLOW_ID),
    b"overflowuid": value(OVERFLOW_ID),
    b"panic": value(0),
    b"perf_event_paranoid": value(4),
    b"pid_max": of(pid_max),
    b"printk": value(4, 4, 1, 7),
    b"pty": directory(lambda fs: {b"max": value(4096), b"nr": value(0), b"reserve": value(1024)}),
    b"random": directory(
        lambda fs: {
            b"boot_id": boot_id(fs),
            b"entropy_avail": value(256),
            b"poolsize": value(256),
            b"uuid": node(uuid),
        }
    ),
    b"randomize_va_space": value(2),
    b"sched_rr_timeslice_ms": value(100),
    b"sem": value(32000, 1024000000, 500, 32000),
    b"shmall": value(NEVER),
    b"shmmax": value(NEVER),
    b"shmmni": value(4096),
    b"tainted": value(0),
    b"threads-max": of(tasks),
    b"unprivileged_bpf_disabled": value(2),
    b"version": uts("version"),
}
FS: dict[bytes, Node] = {
    b"aio-max-nr": value(65536),
    b"aio-nr": value(0),
    b"epoll": directory(lambda fs: {b"max_user_watches": value(1 << 20)}),
    b"file-max": value((1 << 63) - 1),
    b"file-nr": node(open_files),
    b"inode-nr": value(0, 0),
    b"inotify": directory(
        lambda fs: {
            b"max_queued_events": value(16384),
            b"max_user_instances": value(128),
            b"max_user_watches": value(1 << 16),
        }
    ),
    b"lease-break-time": value(45),
    b"mount-max": value(100000),
    b"mqueue": directory(
        lambda fs: {
            b"msg_default": value(10),
            b"msg_max": value(10),
            b"msgsize_default": value(8192),
            b"msgsize_max": value(8192),
            b"queues_max": value(256),
        }
    ),
    b"nr_open": value(NR_OPEN),
    b"overflowgid": value(OVERFLOW_ID),
    b"overflowuid": value(OVERFLOW_ID),
    b"pipe-max-size": value(1 << 20),
    b"pipe-user-pages-hard": value(0),
    b"pipe-user-pages-soft": value(16384),
    b"protected_fifos": protected("protected_fifos", 2),
    b"protected_hardlinks": protected("protected_hardlinks", 1),
    b"protected_regular": protected("protected_regular", 2),
    b"protected_symlinks": protected("protected_symlinks", 1),
    b"suid_dumpable": value(0),
}
VM: dict[bytes, Node] = {
    b"dirty_background_ratio": value(10),
    b"dirty_ratio": value(20),
    b"max_map_count": value(MAX_MAP_COUNT),
    b"min_free_kbytes": value(0),
    b"mmap_min_addr": value(MMAP_MIN_ADDR),
    b"nr_hugepages": value(0),
    b"nr_overcommit_hugepages": value(0),
    b"overcommit_kbytes": value(0),
    b"overcommit_memory": value(0),
    b"overcommit_ratio": value(50),
    b"panic_on_oom": value(0),
    b"swappiness": value(60),
    b"vfs_cache_pressure": value(100),
}
CORE: dict[bytes, Node] = {
    b"optmem_max": value(131072),
    b"rmem_default": value(212992),
    b"rmem_max": value(212992),
    b"somaxconn": value(4096),
    b"wmem_default": value(212992),
    b"wmem_max": value(212992),
}
IPV4: dict[bytes, Node] = {
    b"ip_forward": value(0),
    b"ip_local_port_range": value(32768, 60999),
    b"ip_unprivileged_port_start": value(1024),
    b"ping_group_range": value(1, 0),
    b"tcp_fin_timeout": value(60),
    b"tcp_rmem": value(4096, 131072, 6291456),
    b"tcp_wmem": value(4096, 16384, 4194304),
}
NET: dict[bytes, Node] = {
    b"core": directory(lambda fs: CORE),
    b"ipv4": directory(lambda fs: IPV4),
    b"unix": directory(lambda fs: {b"max_dgram_qlen": value(10)}),
}
TREE: dict[bytes, Node] = {
    b"fs": directory(lambda fs: FS),
    b"kernel": directory(lambda fs: KERNEL),
    b"net": directory(lambda fs: NET),
    b"vm": directory(lambda fs: VM),
}
