"""/proc: its formats against proc(5) and the host's own, and who may see what."""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from pathlib import Path

import pytest

from devices.errors import SysError
from devices.fs.procfs.mounts import mangle
from devices.fs.procfs.pid import number_of
from devices.fs.pseudo import list_text, mask_text
from devices.memory.abi import MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PROT_EXEC, PROT_READ, PROT_WRITE
from devices.signals.queue import STOP_PENDING
from devices.task.process import Credentials
from devices.task.task import Task
from devices.vfs.abi import AT_FDCWD
from devices.vfs.names import make_directory
from devices.vfs.path import walk
from devices.wait import WaitQueue
from tests.unit.devices.fs.pseudo_support import Tree, tree

MAPS = re.compile(
    r"^([0-9a-f]{8,})-([0-9a-f]{8,}) ([r-][w-][x-][sp]) ([0-9a-f]{8}) ([0-9a-f]{2,}):([0-9a-f]{2,}) (\d+) *(\S.*)?$"
)
STAT = re.compile(r"^(\d+) \((.*)\) ([RSDTZ])((?: -?\d+){49})\n$", re.DOTALL)
VERSION_DEPENDENT = {
    "Kthread", "untag_mask", "x86_Thread_features", "x86_Thread_features_locked", "HugetlbPages", "Seccomp_filters",
    "Zswap", "Zswapped", "SecPageTables", "KReclaimable", "Percpu", "FileHugePages", "FilePmdMapped", "Balloon",
    "Unaccepted", "CmaTotal", "CmaFree", "HardwareCorrupted", "AnonHugePages", "ShmemHugePages", "ShmemPmdMapped",
    "DirectMap1G", "CoreDumping", "THP_enabled", "SpeculationIndirectBranch", "Speculation_Store_Bypass", "KSM",
    "Hugetlb", "Pss_Dirty", "ProtectionKey", "NFS_Unstable", "Bounce", "WritebackTmp", "GPUActive", "GPUReclaim",
}  # fmt: skip
"""Fields that came and went with versions and configurations of the kernel."""


def fields(text: str) -> dict[str, str]:
    """`Name: value` lines."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def other_user(t: Tree, uid: int = 1000) -> Task:
    task = t.world.new_process()
    task.credentials = Credentials(uid, uid)
    task.process.fs = t.task.process.fs.copy()
    t.world.data = task.memory.mmap(t.world.data, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    return task


def failing(number: int) -> pytest.RaisesExc[SysError]:
    return pytest.raises(SysError, check=lambda e: e.errno == number)


# Formats


@pytest.mark.parametrize("name", ["self/status", "meminfo", "self/smaps_rollup", "self/smaps"])
def test_fields_are_those_of_the_host(name: str) -> None:
    with tree() as t:
        ours = set(fields(t.read(f"/proc/{name}")))
    theirs = set(fields(Path("/proc", name).read_text()))
    ours, theirs = ({n for n in s if not re.match("[0-9a-f]+-", n)} for s in (ours, theirs))
    assert ours - theirs <= VERSION_DEPENDENT
    assert theirs - ours <= VERSION_DEPENDENT


@pytest.mark.parametrize("name", ["self/status", "meminfo", "self/smaps_rollup"])
def test_fields_are_in_the_hosts_order(name: str) -> None:
    with tree() as t:
        ours = list(fields(t.read(f"/proc/{name}")))
    theirs = list(fields(Path("/proc", name).read_text()))
    assert [n for n in ours if n in theirs] == [n for n in theirs if n in ours]


def test_columns_are_those_of_the_host() -> None:
    """Where values stand in lines is what scanf and awk scripts rely on: compare with the digits blotted out."""

    def shape(line: str) -> str:
        return re.sub(r" *\d+", lambda m: "#" * len(m[0]), line)

    with tree() as t:
        for name, start in (("meminfo", "MemTotal"), ("self/limits", "Limit"), ("self/limits", "Max nice")):
            ours, theirs = (
                next(line for line in text.splitlines() if line.startswith(start))
                for text in (t.read(f"/proc/{name}"), Path("/proc", name).read_text())
            )
            assert shape(ours) == shape(theirs)


def test_stat_of_a_process() -> None:
    with tree() as t:
        match = STAT.match(t.read("/proc/self/stat"))
        assert match is not None
        assert (int(match[1]), match[2], match[3]) == (t.task.tid, "a (b) c", "R")
        values = [int(word) for word in match[4].split()]
        host = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        assert len(values) == len(host) - 1
        assert values[16] == 1  # num_threads
        assert values[19] == t.task.memory.total_vm * 4096
        assert values[20] == t.task.memory.resident


def test_stat_tells_real_time_priorities_and_masks() -> None:
    with tree() as t:
        t.task.scheduling.policy, t.task.scheduling.priority = 1, 7
        t.task.sigmask = 1 << 33 | 5
        values = t.read("/proc/self/stat").rpartition(")")[2].split()
        assert (values[15], values[37], values[38]) == ("-8", "7", "1")
        assert values[29] == "5"


def test_statm_agrees_with_status() -> None:
    with tree() as t:
        size, resident, shared, _, zero, data, _ = map(int, t.read("/proc/self/statm").split())
        status = fields(t.read("/proc/self/status"))
        assert status["VmSize"] == f"{size * 4} kB"
        assert status["VmRSS"] == f"{resident * 4} kB"
        assert int(status["RssFile"].split()[0]) + int(status["RssShmem"].split()[0]) == shared * 4
        assert (zero, data) == (0, t.task.memory.data_vm + 33)  # and the stack


def test_maps_lists_every_area() -> None:
    with tree() as t:
        memory = t.task.memory
        memory.set_brk_start(0x5555_0000_0000)
        memory.brk(0x5555_0000_2000)
        shared = memory.mmap(0, 8192, PROT_READ, MAP_SHARED | MAP_ANONYMOUS)
        code = memory.mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS)
        lines = [MAPS.match(line) for line in t.read("/proc/self/maps").splitlines()]
        found = {int(m[1], 16): m for m in lines if m}
        assert len(found) == len(lines) == len(memory.vmas)
        assert found[0x5555_0000_0000][8] == "[heap]"
        assert found[shared].group(3, 5, 6, 8) == ("r--s", "00", "01", "/dev/zero (deleted)")
        assert found[code].group(3, 8) == ("r-xp", None)
        assert [m[8] for m in lines if m][-1] == "[stack]"
        offset = len(t.read("/proc/self/maps").splitlines()[-1]) - len("[stack]")
        assert offset == 73


def test_maps_of_a_file_shows_what_stat_does() -> None:
    with tree() as t:
        t.open("/file", 0o102).put_locked()
        file = t.open("/file", 2)
        fd = t.task.files.install(file, 10)
        t.world.call("ftruncate", fd, 8192)
        address = t.world.call("mmap", 0, 4096, PROT_READ, MAP_PRIVATE, fd, 4096)
        line = next(x for x in t.read("/proc/self/maps").splitlines() if x.startswith(f"{address:08x}"))
        match = MAPS.match(line)
        assert match is not None
        inode = t.inode("/file")
        assert match.group(4, 7, 8) == ("00001000", str(inode.ino), "/file")
        assert int(match[5], 16) << 8 | int(match[6], 16) == inode.sb.dev


def test_smaps_counts_pages_by_who_has_them() -> None:
    with tree() as t:
        address = t.world.data
        for page in range(3):
            t.task.memory.write(address + 4096 * page, b"x")

        def area() -> dict[str, str]:
            text = t.read("/proc/self/smaps", size=512)
            part = text[text.index(f"{address:08x}-") :].split("VmFlags")[0]
            return fields(part)

        before = area()
        assert int(before["Rss"].split()[0]) == int(before["Private_Dirty"].split()[0]) >= 12
        child = t.task.memory.fork()
        after = area()
        assert after["Rss"] == before["Rss"] == after["Shared_Dirty"]
        assert int(after["Pss"].split()[0]) == int(before["Pss"].split()[0]) // 2
        child.teardown()


def test_machine_files_have_the_hosts_names() -> None:
    with tree() as t:
        stat_lines = t.read("/proc/stat").splitlines()
        names = [line.split()[0] for line in stat_lines]
        host = [line.split()[0] for line in Path("/proc/stat").read_text().splitlines()]
        assert names == ["cpu", "cpu0", "cpu1", *(n for n in host if not n.startswith("cpu"))]
        assert all(len(line.split()) == 11 for line in stat_lines[:3])
        assert re.fullmatch(r"\d+\.\d\d \d+\.\d\d\n", t.read("/proc/uptime"))
        assert re.fullmatch(r"(\d+\.\d\d ){3}\d+/\d+ \d+\n", t.read("/proc/loadavg"))
        assert t.read("/proc/version").startswith("Linux version ")
        assert t.read("/proc/swaps") == Path("/proc/swaps").read_text().splitlines(True)[0]
        host_vmstat = {line.split()[0] for line in Path("/proc/vmstat").read_text().splitlines()}
        assert {line.split()[0] for line in t.read("/proc/vmstat").splitlines()} <= host_vmstat


@pytest.mark.parametrize("name", ["dev", "tcp", "tcp6", "udp", "udp6", "raw", "unix", "route", "arp", "packet"])
def test_network_tables_have_the_hosts_heads(name: str) -> None:
    path = Path("/proc/net", name)
    if not path.exists():
        pytest.skip(f"the host has no {path}")
    with tree() as t:
        ours = t.read(f"/proc/net/{name}").splitlines(True)
    assert ours[0] == path.read_text().splitlines(True)[0]


def test_cpuinfo_has_a_block_for_each_cpu() -> None:
    with tree() as t:
        blocks = t.read("/proc/cpuinfo").split("\n\n")
        assert blocks[-1] == ""
        parsed = [fields(block) for block in blocks[:-1]]
        assert [block["processor"] for block in parsed] == ["0", "1"]
        assert "sse2" in parsed[0]["flags"].split()
        assert "vmx" not in parsed[0]["flags"].split()
        t.kernel.accelerator.name = "emulator"
        assert not [flag for flag in fields(t.read("/proc/cpuinfo"))["flags"].split() if "avx" in flag]


def test_memory_adds_up() -> None:
    with tree() as t:
        before = fields(t.read("/proc/meminfo"))
        t.task.memory.write(t.task.memory.stack_top - 4096, b"x")
        after = fields(t.read("/proc/meminfo"))

        def kb(values: dict[str, str], name: str) -> int:
            return int(values[name].split()[0])

        assert kb(after, "MemTotal") == t.kernel.memory.total * 4
        taken = kb(before, "MemFree") - kb(after, "MemFree")
        assert taken >= 4
        assert taken == sum(kb(after, n) - kb(before, n) for n in ("AnonPages", "PageTables"))
        assert kb(after, "MemFree") <= kb(after, "MemAvailable") <= kb(after, "MemTotal")


# The tree


def test_walking_meets_every_file_and_reads_it() -> None:
    """getdents and lookup agree on kinds and inode numbers, the numbers are all different, and no text fails."""
    with tree() as t:
        seen: dict[int, str] = {}
        for path, inode in t.walk("/proc"):
            assert seen.setdefault(inode.ino, path) == path
            if stat.S_ISREG(inode.mode):
                t.read(path)
        assert "/proc/sys/kernel/random/boot_id" in seen.values()
        assert f"/proc/{t.task.tid}/task/{t.task.tid}/status" in seen.values()


def test_self_and_thread_self() -> None:
    with tree() as t:
        child = Task(t.task.process, t.kernel.new_pid_locked(), t.task.credentials)
        t.kernel.add_task_locked(child)
        assert t.inode("/proc/self").readlink(child) == b"%d" % t.task.tid
        assert t.inode("/proc/thread-self").readlink(child) == b"%d/task/%d" % (t.task.tid, child.tid)
        assert t.names("/proc/self/task") == [str(t.task.tid), str(child.tid)]
        assert t.inode("/proc/self/task").nlink == 4
        assert fields(t.read("/proc/self/status"))["Threads"] == "2"
        assert fields(t.read(f"/proc/self/task/{child.tid}/status"))["Pid"] == str(child.tid)
        # A thread has a directory of its own in the root, which is not listed
        assert fields(t.read(f"/proc/{child.tid}/status"))["Tgid"] == str(t.task.tid)
        assert str(child.tid) not in t.names("/proc")


def test_the_same_inode_while_it_is_used_and_another_after_it_ended() -> None:
    with tree() as t:
        other = t.world.new_process()
        path = f"/proc/{other.tid}/status"
        file = t.open(path)
        assert t.inode(path) is file.inode
        directory = t.open(f"/proc/{other.tid}/task", 0o200000)
        assert t.names(f"/proc/{other.tid}/task") == [str(other.tid)]
        assert [e.name for e in directory.getdents(t.task)][2:] == [b"%d" % other.tid]
        t.kernel.abandon_locked(other.process)
        with failing(errno.ESRCH):
            file.read(t.task, [(t.world.data, 100)])
        with failing(errno.ENOENT):
            t.open(path)
        file.put_locked()
        directory.put_locked()


def test_names_that_are_no_numbers() -> None:
    assert [number_of(name) for name in (b"0", b"17", b"017", b"-1", b"1x", b"", b"9" * 30, "²".encode())] == [
        0, 17, -1, -1, -1, -1, -1, -1,
    ]  # fmt: skip


def test_states() -> None:
    with tree() as t:
        other = t.world.new_process()
        path = f"/proc/{other.tid}/status"

        def state() -> str:
            return fields(t.read(path))["State"]

        assert state() == "R (running)"
        other._asleep = True
        assert state() == "S (sleeping)"
        other.process.pending.stop_signal = 19
        other.pending.bits |= STOP_PENDING
        assert state() == "S (sleeping)"
        other.pending.bits &= ~STOP_PENDING
        queue = other.process.pending.stopped = WaitQueue()
        other.check_may_wait_locked()
        from devices.wait import Waiter

        queue.add(Waiter(other))
        assert state() == "T (stopped)"
        other._asleep = False


def test_reading_in_pieces_sees_one_moment() -> None:
    with tree() as t:
        file = t.open("/proc/self/comm")
        assert file.read(t.task, [(t.world.data, 3)]) == 3
        t.task.comm = b"xyz"
        assert file.read(t.task, [(t.world.data + 3, 100)]) == 5
        assert t.task.memory.read(t.world.data, 8) == b"a (b) c\n"
        assert file.pread(t.task, [(t.world.data, 2), (t.world.data + 2, 100)], 0) == 4
        assert t.task.memory.read(t.world.data, 4) == b"xyz\n"
        assert file.lseek(0, 0) == 0
        assert file.read(t.task, [(t.world.data, 100)]) == 4
        with failing(errno.EFAULT):
            file.pread(t.task, [(8, 100)], 0)
        file.put_locked()


# What was started


def start_program(t: Tree, argv: list[bytes], env: list[bytes]) -> None:
    """As exec leaves it: strings at the end of the stack, and the vector that says where they end."""
    process = t.task.process
    blob = b"".join(s + b"\0" for s in (*argv, *env, b"/bin/x"))
    at = process.memory.stack_top - 8 - len(blob)
    t.task.memory.write(at, blob)
    process.argv, process.environ = argv, env
    process.auxv = struct.pack("<8Q", 9, t.world.data, 15, at - 16, 31, at + len(blob) - 7, 0, 0)


def test_arguments_are_read_from_the_programs_memory() -> None:
    with tree() as t:
        assert t.read("/proc/self/cmdline") == ""
        start_program(t, [b"prog", b"-x", b""], [b"A=1", b"B=22"])
        assert t.read("/proc/self/cmdline") == "prog\0-x\0\0"
        assert t.read("/proc/self/environ") == "A=1\0B=22\0"
        assert len(t.read("/proc/self/auxv")) == 64
        values = [int(word) for word in t.read("/proc/self/stat").rpartition(")")[2].split()[45:49]]
        assert values[0] == t.task.process.memory.stack_top - 8 - 25
        assert (values[1] - values[0], values[3] - values[2]) == (9, 9)


def test_a_program_may_write_over_its_arguments() -> None:
    with tree() as t:
        start_program(t, [b"prog", b"x"], [b"LONG=environment"])
        start = int(t.read("/proc/self/stat").rpartition(")")[2].split()[45])
        t.task.memory.write(start, b"title: busy\0")
        assert t.read("/proc/self/cmdline") == "title: busy"


# Writing


def test_comm_can_be_set_and_is_cut() -> None:
    with tree() as t:
        assert t.write("/proc/self/comm", b"a much longer name than fits\n") == 29
        assert t.read("/proc/self/comm") == "a much longer n\n"
        t.write("/proc/self/comm", b"x\n\0y")
        assert t.read("/proc/self/comm") == "x\n\n"
        assert fields(t.read("/proc/self/status"))["Name"] == "x\\n"
        t.write("/proc/self/comm", b"a much longer name than fits\n")
        assert fields(t.read("/proc/self/status"))["Name"] == "a much longer n"
        other = t.world.new_process()
        with failing(errno.EINVAL):
            t.write(f"/proc/{other.tid}/comm", b"x")


def test_oom_score_adj_is_bounded_and_moves_the_score() -> None:
    with tree() as t:
        before = int(t.read("/proc/self/oom_score"))
        t.write("/proc/self/oom_score_adj", b"300\n")
        assert t.read("/proc/self/oom_score_adj") == "300\n"
        assert abs(int(t.read("/proc/self/oom_score")) - before - 200) <= 1
        for bad in (b"1001", b"-1001", b"x", b""):
            with failing(errno.EINVAL):
                t.write("/proc/self/oom_score_adj", bad)
        user = other_user(t)
        t.write(f"/proc/{user.tid}/oom_score_adj", b"10", user)
        with failing(errno.EACCES):
            t.write(f"/proc/{user.tid}/oom_score_adj", b"9", user)


def test_sysctls_that_take_effect_can_be_written_the_others_not_even_by_root() -> None:
    with tree() as t:
        t.write("/proc/sys/kernel/hostname", b"other\n")
        assert t.kernel.hostname == b"other"
        assert t.read("/proc/sys/kernel/hostname") == "other\n"
        t.write("/proc/sys/fs/protected_symlinks", b"1\n")
        assert t.kernel.vfs.sysctls["protected_symlinks"] == 1
        for bad in (b"2", b"-1", b"yes", b"\n"):
            with failing(errno.EINVAL):
                t.write("/proc/sys/fs/protected_symlinks", bad)
        for path, inode in t.walk("/proc/sys"):
            if stat.S_ISREG(inode.mode) and not inode.mode & 0o200:
                with failing(errno.EACCES):
                    t.open(path, 1)
        with failing(errno.EACCES):
            t.write("/proc/sys/kernel/hostname", b"x", other_user(t))


def test_random_ids() -> None:
    form = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\n")
    with tree() as t:
        uuids = {t.read("/proc/sys/kernel/random/uuid") for _ in range(3)}
        boots = {t.read("/proc/sys/kernel/random/boot_id") for _ in range(3)}
        assert (len(uuids), len(boots)) == (3, 1)
        assert all(form.fullmatch(text) for text in uuids | boots)


def test_nothing_can_be_made_or_removed() -> None:
    with tree() as t:
        for path in ("/proc/x", "/proc/self/x", "/proc/sys/vm/x", "/proc/self/fd/x"):
            with failing(errno.ENOENT):
                t.open(path, 0o101)
            with failing(errno.ENOENT):
                make_directory(t.task, AT_FDCWD, path.encode(), 0o755)
        with failing(errno.EPERM):
            make_directory(t.task, AT_FDCWD, b"/sys/x", 0o755)
        with failing(errno.EACCES):
            t.open("/sys/x", 0o101)
        t.task.memory.write(t.world.data, b"/proc/self/comm\0")
        with failing(errno.EPERM):
            t.world.call("unlink", t.world.data)
        with failing(errno.EPERM):
            t.world.call("chmod", t.world.data, 0o777)


# Descriptors


def test_descriptors_are_links_to_what_they_are_open_on() -> None:
    with tree() as t:
        fd = t.task.files.install(t.open("/file", 0o102), 10)
        path = f"/proc/self/fd/{fd}"
        link = t.inode(path)
        assert stat.S_ISLNK(link.mode)
        assert stat.S_IMODE(link.mode) == 0o700
        assert link.readlink(t.task) == b"/file"
        again = t.open(path, 0)
        opened = t.task.files.get(fd)
        assert (again is not opened, again.inode) == (True, opened.inode)
        assert again.flags & 3 == 0
        opened.position = 7
        info = fields(t.read(f"/proc/self/fdinfo/{fd}"))
        assert info == {"pos": "7", "flags": "0100002", "mnt_id": str(opened.path.mount.id), "ino": str(link_ino(t))}  # type: ignore[union-attr]
        assert t.inode("/proc/self/fd").size == 1
        again.put_locked()


def link_ino(t: Tree) -> int:
    return t.inode("/file").ino


def test_a_removed_file_is_reached_through_its_descriptor() -> None:
    with tree() as t:
        fd = t.task.files.install(t.open("/gone", 0o102), 10)
        t.task.memory.write(t.world.data, b"/gone\0")
        t.world.call("unlink", t.world.data)
        assert t.inode(f"/proc/self/fd/{fd}").readlink(t.task) == b"/gone (deleted)"
        t.write(f"/proc/self/fd/{fd}", b"still")
        assert t.read(f"/proc/self/fd/{fd}") == "still"
        t.task.files.close_locked(fd)
        with failing(errno.ENOENT):
            t.inode(f"/proc/self/fd/{fd}")


def test_cwd_and_root_are_magic_links() -> None:
    with tree() as t:
        make_directory(t.task, AT_FDCWD, b"/jail", 0o755)
        t.task.process.fs.set_cwd_locked(walk(t.task, AT_FDCWD, b"/jail"))
        assert t.inode("/proc/self/cwd").readlink(t.task) == b"/jail"
        assert t.inode("/proc/self/cwd", follow=True) is t.inode("/jail")
        assert t.inode("/proc/self/root", follow=True) is t.inode("/")
        with failing(errno.ENOENT):
            t.inode("/proc/self/exe").readlink(t.task)


# Who may see what


def test_another_users_process_shows_only_its_outside() -> None:
    with tree() as t:
        user = other_user(t)
        root = f"/proc/{t.task.tid}"
        assert fields(t.read(f"{root}/status", user))["Uid"].split() == ["0"] * 4
        values = t.read(f"{root}/stat", user).rpartition(")")[2].split()
        assert values[23:26] == ["0", "0", "0"]
        for name in ("maps", "environ", "auxv", "smaps", "fd", "personality"):
            with failing(errno.EACCES):
                t.open(f"{root}/{name}", 0, user)
        for name in ("cwd", "exe", "root"):
            with failing(errno.EACCES):
                t.inode(f"{root}/{name}").readlink(user)
        own = t.inode(f"/proc/{user.tid}/environ")
        assert (own.uid, own.gid, own.mode) == (1000, 1000, stat.S_IFREG | 0o400)
        user.process.dumpable = 0
        own.refresh()
        assert (own.uid, own.gid) == (0, 0)
        assert t.names("/proc/self/fd", user) == []  # one's own are always there


# Mounts


def test_mounts_and_mountinfo() -> None:
    with tree() as t:
        make_directory(t.task, AT_FDCWD, b"/a b", 0o755)
        t.mount(b"/a b", b"tmpfs")
        mounts = [line.split(" ") for line in t.read("/proc/mounts").splitlines()]
        assert all(len(line) == 6 for line in mounts)
        assert [line[1] for line in mounts] == ["/", "/proc", "/sys", "/dev", "/a\\040b"]
        assert mounts[1][:3] == ["proc", "/proc", "proc"]
        info = [line.split(" ") for line in t.read("/proc/self/mountinfo").splitlines()]
        form = re.compile(r"\d+ \d+ \d+:\d+ /\S* /\S* (rw|ro)\S*( \S+)* - \S+ \S+ (rw|ro)\S*")
        assert all(form.fullmatch(" ".join(line)) for line in info)
        assert info[0][4] == "/"
        assert {line[1] for line in info[1:]} == {info[0][0]}
        file = t.open("/proc/self/mounts")
        assert not file.poll() & 2
        t.mount(b"/a b", b"tmpfs")
        assert file.poll() & 0xA == 0xA  # POLLPRI | POLLERR
        assert not file.poll() & 2
        file.put_locked()


def test_escapes_of_mount_names() -> None:
    assert mangle(b"a b\tc\nd\\e#f") == rb"a\040b\011c\012d\134e\043f"


def test_locks_are_listed() -> None:
    with tree() as t:
        fd = t.task.files.install(t.open("/locked", 0o102), 10)
        t.world.call("flock", fd, 2)
        t.task.memory.write(t.world.data, struct.pack("<hh4xqqi4x", 0, 0, 10, 5, 0))
        t.world.call("fcntl", fd, 6, t.world.data)
        inode = t.inode("/locked")
        place = f"{inode.sb.dev >> 8:02x}:{inode.sb.dev & 0xFF:02x}:{inode.ino}"
        assert t.read("/proc/locks") == (
            f"1: POSIX  ADVISORY  READ  {t.task.tid} {place} 10 14\n"
            f"2: FLOCK  ADVISORY  WRITE {t.task.tid} {place} 0 EOF\n"
        )


# Formats of sets


def test_sets_of_cpus() -> None:
    assert [list_text(mask) for mask in (0, 1, 0b1011, 0xF0)] == [b"", b"0", b"0-1,3", b"4-7"]
    assert mask_text(3, 2) == b"3"
    assert mask_text(1 << 33 | 5, 40) == b"02,00000005"
    allowed = fields(Path("/proc/self/status").read_text())
    cpus = os.sched_getaffinity(0)
    assert list_text(sum(1 << cpu for cpu in cpus)) == allowed["Cpus_allowed_list"].encode()
