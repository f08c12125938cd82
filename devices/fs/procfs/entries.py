"""The tables of /proc/[pid] and /proc/[pid]/task/[tid] (tgid_base_stuff and tid_base_stuff of fs/proc/base.c)."""

from __future__ import annotations

import errno
from stat import S_IFDIR, S_IFLNK, S_IFREG
from typing import TYPE_CHECKING, NamedTuple

from devices.errors import SysError
from devices.fs.procfs import memory, mounts, task
from devices.fs.procfs.layout import layout_of
from devices.fs.procfs.pid import FdDirectory, PidDirectory, PidLink, PidText, TaskDirectory
from devices.fs.pseudo import TableDirectory
from devices.task.capabilities import CAP_SYS_RESOURCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.fs.procfs.superblock import ProcFs
    from devices.fs.procfs.who import Who
    from devices.fs.pseudo import PseudoInode
    from devices.task.task import Task
    from devices.vfs.path import Path

    Show = Callable[[Task, Who], bytes]
    Store = Callable[[Task, Who, bytes], None]

COMM_LEN = 15
NOBODY = b"4294967295"


class PidNode(NamedTuple):
    """An entry of a table."""

    mode: int
    make: Callable[[ProcFs, Who, int, PidNode], PseudoInode]
    show: Show | None = None
    store: Store | None = None
    traced: bool = False
    """Only who may trace the process may open it."""
    watches_mounts: bool = False


def text(
    show: Show, mode: int = 0o444, store: Store | None = None, *, traced: bool = False, watches: bool = False
) -> PidNode:
    return PidNode(S_IFREG | mode, PidText, show, store, traced, watches)


def link(target: Callable[[Who], Path]) -> PidNode:
    return PidNode(S_IFLNK | 0o777, lambda fs, who, ino, node: PidLink(fs, who, ino, target))


# Texts that are made here


def cmdline(reader: Task, who: Who) -> bytes:
    """The arguments as they are in the program's memory now; a program that has overwritten the last NUL has gone on
    into the environment (get_mm_cmdline(), setproctitle(3))."""
    layout = layout_of(who.process)
    if who.ended or not layout.arg_end:
        return b""
    space = who.process.memory
    arguments = peek(space.read_partial, layout.arg_start, layout.arg_end)
    if not arguments or arguments[-1] == 0:
        return arguments
    joined = arguments + peek(space.read_partial, layout.env_start, layout.env_end)
    return joined.split(b"\0", 1)[0]


def environ(reader: Task, who: Who) -> bytes:
    layout = layout_of(who.process)
    return b"" if who.ended else peek(who.process.memory.read_partial, layout.env_start, layout.env_end)


def peek(read: Callable[[int, int], bytes], start: int, end: int) -> bytes:
    """What there is of the program's memory."""
    try:
        return read(start, end - start) if end > start else b""
    except SysError:
        return b""


def set_comm(writer: Task, who: Who, data: bytes) -> None:
    """A process may name its own tasks only."""
    if writer.process is not who.process:
        raise SysError(errno.EINVAL, "another's task")
    who.task.comm = data[:COMM_LEN].split(b"\0", 1)[0]
    if who.tid == who.process.pid:
        who.process.comm = who.task.comm


def number_in(data: bytes) -> int:
    """The decimal number that was written. SysError(EINVAL)."""
    try:
        return int(data.strip(b"\0 \t\n"))
    except ValueError:
        raise SysError(errno.EINVAL, "not a number") from None


def set_oom_score_adj(writer: Task, who: Who, data: bytes) -> None:
    value = number_in(data)
    if not -1000 <= value <= 1000:
        raise SysError(errno.EINVAL, "from -1000 to 1000")
    if value < task.oom_adjustment(who.process) and not writer.credentials.capable(CAP_SYS_RESOURCE):
        raise SysError(errno.EACCES, "CAP_SYS_RESOURCE")
    vars(who.process)["oom_score_adj"] = value


def set_timer_slack(writer: Task, who: Who, data: bytes) -> None:
    value = number_in(data)
    if value < 0:
        raise SysError(errno.EINVAL, "negative")
    who.task.timer_slack_ns = value or who.task.default_timer_slack_ns


def exe(who: Who) -> Path:
    path = who.process.exe_path
    if path is None:
        raise SysError(errno.ENOENT, "it runs no file of the tree")
    return path


def always(contents: bytes) -> Show:
    return lambda reader, who: contents


def net(fs: ProcFs, who: Who, ino: int, node: PidNode) -> PseudoInode:
    from devices.fs.procfs.net import TABLE

    return TableDirectory(fs, ino, node.mode, lambda fs: TABLE)


ID_MAP = always(b"%10d %10d %10d\n" % (0, 0, 0xFFFF_FFFF))

SINGLE: dict[bytes, PidNode] = {
    b"fd": PidNode(S_IFDIR | 0o500, FdDirectory),
    b"fdinfo": PidNode(S_IFDIR | 0o555, FdDirectory),
    b"net": PidNode(S_IFDIR | 0o555, net),
    b"environ": text(environ, 0o400, traced=True),
    b"auxv": text(lambda reader, who: who.process.auxv, 0o400, traced=True),
    b"status": text(task.status),
    b"personality": text(always(b"00000000\n"), 0o400, traced=True),
    b"limits": text(task.limits),
    b"sched": text(task.sched),
    b"comm": text(lambda reader, who: who.name + b"\n", 0o644, set_comm),
    b"cmdline": text(cmdline),
    b"stat": text(task.stat),
    b"statm": text(memory.statm),
    b"maps": text(memory.maps, traced=True),
    b"cwd": link(lambda who: who.process.fs.cwd),
    b"root": link(lambda who: who.process.fs.root),
    b"exe": link(exe),
    b"mounts": text(mounts.mounts, watches=True),
    b"mountinfo": text(mounts.mountinfo, watches=True),
    b"smaps": text(memory.smaps, traced=True),
    b"smaps_rollup": text(memory.smaps_rollup, traced=True),
    b"wchan": text(always(b"0")),
    b"schedstat": text(task.schedstat),
    b"cgroup": text(always(b"0::/\n")),
    b"oom_score": text(task.oom_score),
    b"oom_score_adj": text(lambda reader, who: b"%d\n" % task.oom_adjustment(who.process), 0o644, set_oom_score_adj),
    b"loginuid": text(always(NOBODY), 0o444),
    b"sessionid": text(always(NOBODY)),
    b"uid_map": text(ID_MAP),
    b"gid_map": text(ID_MAP),
    b"setgroups": text(always(b"allow\n")),
}
"""Of a task."""

GROUP: dict[bytes, PidNode] = {
    b"task": PidNode(S_IFDIR | 0o555, TaskDirectory),
    **SINGLE,
    b"mountstats": text(mounts.mountstats, 0o400),
    b"timerslack_ns": text(lambda reader, who: b"%d\n" % who.task.timer_slack_ns, 0o666, set_timer_slack),
}
"""Of a process."""
SINGLE[b"children"] = text(task.children)

__all__ = ["GROUP", "SINGLE", "PidDirectory", "PidNode"]
