"""The tables of /sys."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from devices.fs.pseudo import Node, TextInode, directory, list_text, mask_text, text
from devices.fs.pseudo import fixed as plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from devices.fs.pseudo import PseudoFs
    from devices.task.task import Task

    Table = Mapping[bytes, Node]

FILE_SIZE = 4096
HOST_CACHE = "/sys/devices/system/cpu/cpu0/cache"
CACHE_FILES = (
    b"coherency_line_size", b"id", b"level", b"number_of_sets", b"physical_line_partition", b"size", b"type",
    b"ways_of_associativity",
)  # fmt: skip
LAST_LEVEL = b"3"


def folder(nodes: Table) -> Node:
    """A directory with these entries."""
    return directory(lambda fs: nodes, 0o755)


def file(show: bytes) -> Node:
    """A file with a line, of the size that sysfs gives all of them."""
    return sized(plain(show))


def sized(node: Node) -> Node:
    def make(fs: PseudoFs, ino: int, mode: int) -> TextInode:
        inode = node.make(fs, ino, mode)
        assert isinstance(inode, TextInode)
        inode.size = FILE_SIZE
        return inode

    return Node(node.mode, make)


# CPUs


def cpus(fs: PseudoFs) -> Table:
    """/sys/devices/system/cpu: all CPUs are there and online, in one package, a core each."""
    count = fs.kernel.cpus
    everyone = list_text((1 << count) - 1)
    table = {b"cpu%d" % number: directory(lambda fs, n=number: cpu(fs, n), 0o755) for number in range(count)}  # type: ignore[misc]  # mypy infers no default
    names = {
        b"isolated": b"", b"kernel_max": b"%d" % (count - 1), b"nohz_full": b"(null)", b"offline": b"",
        b"online": everyone, b"possible": everyone, b"present": everyone,
    }  # fmt: skip
    return {**table, **{name: file(line) for name, line in names.items()}}


def cpu(fs: PseudoFs, number: int) -> Table:
    table = {
        b"cache": directory(lambda fs: caches(fs, number), 0o755),
        b"topology": directory(lambda fs: topology(fs, number), 0o755),
    }
    if number:
        table[b"online"] = file(b"1")
    return table


def topology(fs: PseudoFs, number: int) -> Table:
    count = fs.kernel.cpus
    own, everyone = 1 << number, (1 << count) - 1
    table = {b"core_id": b"%d" % number, b"physical_package_id": b"0", b"die_id": b"0", b"cluster_id": b"65535"}
    for name, mask in (
        (b"core_cpus", own), (b"thread_siblings", own), (b"cluster_cpus", own), (b"core_siblings", everyone),
        (b"package_cpus", everyone), (b"die_cpus", everyone),
    ):  # fmt: skip
        table[name] = mask_text(mask, count)
        table[name + b"_list"] = list_text(mask)
    return {name: file(line) for name, line in table.items()}


def caches(fs: PseudoFs, number: int) -> Table:
    """The host's caches: the guest's programs run in them. The last level is shared by all CPUs."""
    count = fs.kernel.cpus
    table = {}
    for index in range(8):
        values = host_cache(index)
        if not values:
            break
        everyone = values.get(b"level") == LAST_LEVEL
        shared = (1 << count) - 1 if everyone else 1 << number
        values[b"id"] = b"%d" % (0 if everyone else number)
        values[b"shared_cpu_map"], values[b"shared_cpu_list"] = mask_text(shared, count), list_text(shared)
        table[b"index%d" % index] = folder({name: file(line) for name, line in values.items()})
    return table


def host_cache(index: int) -> dict[bytes, bytes]:
    """What the host tells of a cache of its first CPU; nothing where it has none of that number."""
    found = {}
    for name in CACHE_FILES:
        try:
            with open(os.path.join(HOST_CACHE, f"index{index}", name.decode()), "rb") as host:
                found[name] = host.read().strip()
        except OSError:
            continue
    return found


# Memory


def nodes(fs: PseudoFs) -> Table:
    """/sys/devices/system/node: one memory node with all CPUs."""
    names = (b"has_cpu", b"has_memory", b"has_normal_memory", b"online", b"possible")
    return {b"node0": directory(node, 0o755), **{name: file(b"0") for name in names}}


def node(fs: PseudoFs) -> Table:
    count = fs.kernel.cpus
    everyone = (1 << count) - 1
    return {
        b"cpulist": file(list_text(everyone)),
        b"cpumap": file(mask_text(everyone, count)),
        b"distance": file(b"10"),
        b"meminfo": sized(text(node_meminfo)),
    }


def node_meminfo(task: Task) -> bytes:
    """The lines of /proc/meminfo that are of a node, each with its number before it."""
    from devices.fs.procfs.system import meminfo

    skipped = (
        b"MemAvailable", b"Buffers", b"Cached", b"Commit", b"Vmalloc", b"Swap", b"DirectMap", b"Percpu", b"Zswap",
        b"Hugepagesize", b"Balloon", b"Hugetlb", b"HugePages_Rsvd",
    )  # fmt: skip
    lines = [b"Node 0 " + line for line in meminfo(task).splitlines(True) if not line.startswith(skipped)]
    total, free = (int(line.split()[3]) for line in lines[:2])
    lines.insert(2, b"Node 0 MemUsed:        %8d kB\n" % (total - free))
    return b"".join(lines)


# The network

LOOPBACK = {
    b"addr_assign_type": b"0", b"addr_len": b"6", b"address": b"00:00:00:00:00:00", b"broadcast": b"00:00:00:00:00:00",
    b"carrier": b"1", b"dev_id": b"0x0", b"dev_port": b"0", b"flags": b"0x9", b"ifindex": b"1", b"iflink": b"1",
    b"link_mode": b"0", b"mtu": b"65536", b"operstate": b"unknown", b"tx_queue_len": b"1000", b"type": b"772",
}  # fmt: skip
STATISTICS = (
    b"collisions", b"multicast", b"rx_bytes", b"rx_dropped", b"rx_errors", b"rx_packets", b"tx_bytes", b"tx_dropped",
    b"tx_errors", b"tx_packets",
)  # fmt: skip


def loopback(fs: PseudoFs) -> Table:
    counts = folder({name: file(b"0") for name in STATISTICS})
    return {**{name: file(line) for name, line in LOOPBACK.items()}, b"statistics": counts}


# The tree

HUGE_PAGES = {
    b"defrag": b"always defer defer+madvise [madvise] never", b"enabled": b"[always] madvise never",
    b"hpage_pmd_size": b"2097152", b"shmem_enabled": b"always within_size advise [never] deny force",
    b"use_zero_page": b"1",
}  # fmt: skip
EMPTY = folder({})
DEVICES = {
    b"system": folder({b"cpu": directory(cpus, 0o755), b"node": directory(nodes, 0o755)}),
    b"virtual": EMPTY,
}
KERNEL = {
    b"mm": folder({b"transparent_hugepage": folder({name: file(line) for name, line in HUGE_PAGES.items()})}),
}
ROOT: Table = {
    b"block": EMPTY,
    b"bus": EMPTY,
    b"class": folder({b"block": EMPTY, b"net": folder({b"lo": directory(loopback, 0o755)}), b"tty": EMPTY}),
    b"dev": folder({b"block": EMPTY, b"char": EMPTY}),
    b"devices": folder(DEVICES),
    b"firmware": EMPTY,
    b"fs": folder({b"cgroup": EMPTY}),
    b"kernel": folder(KERNEL),
    b"module": EMPTY,
}
