"""What /proc/[pid] tells of a task: stat, status, limits and the like (fs/proc/array.c, fs/proc/base.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.fs.procfs.layout import NOTHING, layout_of
from devices.fs.procfs.memory import sizes
from devices.fs.procfs.who import TICK_NS, state_of
from devices.fs.pseudo import list_text, mask_text
from devices.task.permissions import may_trace
from devices.task.policy import REALTIME, SCHED_DEADLINE, current_cpu
from devices.task.rlimits import RLIM_INFINITY, RLIMIT_RSS, RLIMIT_SIGPENDING
from vmm.layout import PAGE_SHIFT

if TYPE_CHECKING:
    from devices.fs.procfs.who import Who
    from devices.task.process import Process
    from devices.task.task import Task

PF_RANDOMIZE = 0x0040_0000
SIGCHLD = 17
SIGNALS = (1 << 64) - 1
KILOBYTES = PAGE_SHIFT - 10
LIMITS = (
    (b"Max cpu time", b"seconds"), (b"Max file size", b"bytes"), (b"Max data size", b"bytes"),
    (b"Max stack size", b"bytes"), (b"Max core file size", b"bytes"), (b"Max resident set", b"bytes"),
    (b"Max processes", b"processes"), (b"Max open files", b"files"), (b"Max locked memory", b"bytes"),
    (b"Max address space", b"bytes"), (b"Max file locks", b"locks"), (b"Max pending signals", b"signals"),
    (b"Max msgqueue size", b"bytes"), (b"Max nice priority", b""), (b"Max realtime priority", b""),
    (b"Max realtime timeout", b"us"),
)  # fmt: skip
"""By RLIMIT_* number."""


def priority_of(task: Task) -> int:
    """task_prio(): 20 + nice; for real-time policies -1 - their priority."""
    scheduling = task.scheduling
    if scheduling.policy == SCHED_DEADLINE:
        return -101
    return -1 - scheduling.priority if scheduling.policy in REALTIME else 20 + scheduling.nice


def stat(reader: Task, who: Who) -> bytes:
    """/proc/[pid]/stat, 52 fields; addresses are 0 for who may not trace the process."""
    process, task = who.process, who.task
    scheduling, actions = task.scheduling, process.actions
    visible = not who.ended and may_trace(reader, task)
    layout = layout_of(process) if visible else NOTHING
    brk = process.memory.brk_start if visible else 0
    ticks = who.cpu_ns() // TICK_NS
    signals = (task.pending.bits, task.sigmask, actions.ignored, actions.caught)
    fields = [
        process.parent_pid, process.pgid, process.sid, 0, -1, PF_RANDOMIZE, 0, 0, 0, 0,
        ticks, 0, process.children_ns // TICK_NS, 0, priority_of(task), scheduling.nice, len(process.tasks), 0,
        task.start_ns // TICK_NS,
        process.memory.total_vm << PAGE_SHIFT, process.memory.resident, process.rlimits[RLIMIT_RSS][0],
        *layout[:2], layout.start_stack, 0, 0, *(mask & 0x7FFF_FFFF for mask in signals), 0, 0, 0,
        SIGCHLD if who.group else -1, current_cpu(task), scheduling.priority, scheduling.policy, 0, 0, 0,
        *layout[2:4], brk, *layout[5:], process.status if visible else 0,
    ]  # fmt: skip
    head = b"%d (%s) %c " % (who.tid, who.name, state_of(who)[0])
    return head + b" ".join(b"%d" % value for value in fields) + b"\n"


def status(reader: Task, who: Who) -> bytes:
    """/proc/[pid]/status."""
    lines = [*identity_lines(who)]
    if not who.ended:
        lines += memory_lines(who)
    lines += [*signal_lines(who), *capability_lines(who), *cpu_lines(who)]
    return b"".join(name + b":\t" + value + b"\n" for name, value in lines)


def identity_lines(who: Who) -> list[tuple[bytes, bytes]]:
    process, task = who.process, who.task
    c = task.credentials
    number = b"%d" % who.tid
    return [
        (b"Name", escaped(who.name)),
        (b"Umask", b"%04o" % process.umask),
        (b"State", state_of(who)),
        (b"Tgid", b"%d" % process.pid),
        (b"Ngid", b"0"),
        (b"Pid", number),
        (b"PPid", b"%d" % process.parent_pid),
        (b"TracerPid", b"0"),
        (b"Uid", b"%d\t%d\t%d\t%d" % (c.uid, c.euid, c.suid, c.fsuid)),
        (b"Gid", b"%d\t%d\t%d\t%d" % (c.gid, c.egid, c.sgid, c.fsgid)),
        (b"FDSize", b"%d" % task.files.capacity()),
        (b"Groups", b" ".join(b"%d" % gid for gid in c.groups) + b" "),
        (b"NStgid", b"%d" % process.pid),
        (b"NSpid", number),
        (b"NSpgid", b"%d" % process.pgid),
        (b"NSsid", b"%d" % process.sid),
        (b"Kthread", b"0"),
    ]


def escaped(name: bytes) -> bytes:
    """A name as `Name:` shows it (ESCAPE_SPACE | ESCAPE_SPECIAL of newline and backslash)."""
    return name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")


def memory_lines(who: Who) -> list[tuple[bytes, bytes]]:
    """task_mem(). How large the process was at most is not kept: VmPeak is what is in use now."""
    process = who.process
    s = sizes(process)
    most = max(s.resident, process.resident)
    pages = [
        (b"VmPeak", s.total), (b"VmSize", s.total), (b"VmLck", s.locked), (b"VmPin", 0), (b"VmHWM", most),
        (b"VmRSS", s.resident), (b"RssAnon", s.anonymous), (b"RssFile", s.file), (b"RssShmem", s.shared_memory),
        (b"VmData", s.data), (b"VmStk", s.stack), (b"VmExe", s.text), (b"VmLib", s.library),
        (b"VmPTE", process.memory.table.tables), (b"VmSwap", 0), (b"HugetlbPages", 0),
    ]  # fmt: skip
    return [
        *((name, b"%8d kB" % (count << KILOBYTES)) for name, count in pages),
        (b"CoreDumping", b"0"),
        (b"THP_enabled", b"%d" % (not process.thp_disable)),
        (b"untag_mask", b"0xffffffffffffffff"),
    ]


def signal_lines(who: Who) -> list[tuple[bytes, bytes]]:
    process, task = who.process, who.task
    queued = process.pending.queued + sum(t.pending.queued for t in process.tasks.values())
    masks = (
        (b"SigPnd", task.pending.bits), (b"ShdPnd", process.pending.bits), (b"SigBlk", task.sigmask),
        (b"SigIgn", process.actions.ignored), (b"SigCgt", process.actions.caught),
    )  # fmt: skip
    return [
        (b"Threads", b"%d" % len(process.tasks)),
        (b"SigQ", b"%d/%d" % (queued, process.rlimits[RLIMIT_SIGPENDING][0])),
        *((name, b"%016x" % (mask & SIGNALS)) for name, mask in masks),
    ]


def capability_lines(who: Who) -> list[tuple[bytes, bytes]]:
    task = who.task
    c = task.credentials
    sets = (
        (b"CapInh", c.inheritable), (b"CapPrm", c.permitted), (b"CapEff", c.effective), (b"CapBnd", c.bounding),
        (b"CapAmb", c.ambient),
    )  # fmt: skip
    return [
        *((name, b"%016x" % value) for name, value in sets),
        (b"NoNewPrivs", b"%d" % task.no_new_privs),
        (b"Seccomp", b"0"),
        (b"Seccomp_filters", b"0"),
        (b"Speculation_Store_Bypass", b"unknown"),
        (b"SpeculationIndirectBranch", b"unknown"),
    ]


def cpu_lines(who: Who) -> list[tuple[bytes, bytes]]:
    """Switches between tasks are the host's affair and not counted."""
    affinity = who.task.scheduling.affinity
    return [
        (b"Cpus_allowed", mask_text(affinity, who.process.kernel.cpus)),
        (b"Cpus_allowed_list", list_text(affinity)),
        (b"Mems_allowed", b"1"),
        (b"Mems_allowed_list", b"0"),
        (b"voluntary_ctxt_switches", b"0"),
        (b"nonvoluntary_ctxt_switches", b"0"),
    ]


def limits(reader: Task, who: Who) -> bytes:
    """/proc/[pid]/limits."""

    def row(name: bytes, soft: bytes, hard: bytes, unit: bytes) -> bytes:
        return b"%-25s %-20s %-20s " % (name, soft, hard) + (b"%-10s\n" % unit if unit else b"\n")

    def value(limit: int) -> bytes:
        return b"unlimited" if limit == RLIM_INFINITY else b"%d" % limit

    rows = [row(b"Limit", b"Soft Limit", b"Hard Limit", b"Units")]
    for (name, unit), (soft, hard) in zip(LIMITS, who.process.rlimits, strict=True):
        rows.append(row(name, value(soft), value(hard), unit))
    return b"".join(rows)


def sched(reader: Task, who: Who) -> bytes:
    """/proc/[pid]/sched, as far as the monitor knows: the host's kernel schedules, and says how long a task ran."""
    task = who.task
    head = b"%s (%d, #threads: %d)\n" % (who.name, who.tid, len(who.process.tasks))
    ran = who.cpu_ns()
    values = (
        (b"se.sum_exec_runtime", b"%d.%06d" % (ran // 10**6, ran % 10**6)),
        (b"policy", b"%d" % task.scheduling.policy),
        (b"prio", b"%d" % (priority_of(task) + 100)),
    )
    return head + b"-" * 67 + b"\n" + b"".join(b"%-45s:%21s\n" % value for value in values)


def schedstat(reader: Task, who: Who) -> bytes:
    """/proc/[pid]/schedstat: ns on a CPU; how long it waited for one and how often it got one are not known."""
    return b"%d 0 0\n" % who.cpu_ns()


def oom_score(reader: Task, who: Who) -> bytes:
    """/proc/[pid]/oom_score: 2/3 of 1000 and of what share of the machine's memory the process has (oom_badness())."""
    process = who.process
    total = process.kernel.memory.total
    used = process.memory.resident + process.memory.table.tables
    return b"%d\n" % max(0, (1000 + used * 1000 // total + oom_adjustment(process)) * 2 // 3)


def oom_adjustment(process: Process) -> int:
    """oom_score_adj, from -1000 to 1000."""
    return int(vars(process).get("oom_score_adj", 0))


def children(reader: Task, who: Who) -> bytes:
    """/proc/[pid]/task/[tid]/children."""
    return b"".join(b"%d " % child.pid for child in who.process.children if child.parent_task is who.task)
