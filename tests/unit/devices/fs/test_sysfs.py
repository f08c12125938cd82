"""/sys: the files that programs ask for CPUs, caches and memory, compared with the host's where it has them."""

from __future__ import annotations

import errno
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devices.errors import SysError
from tests.unit.devices.fs.pseudo_support import Tree, tree

if TYPE_CHECKING:
    from collections.abc import Iterator

CPU = "/sys/devices/system/cpu"
NOT_ALWAYS = {"drawer_id", "book_id", "ppin"}


@pytest.fixture
def t() -> Iterator[Tree]:
    with tree() as made:
        yield made


def test_every_file_can_be_read_and_has_its_own_number(t: Tree) -> None:
    seen: dict[int, str] = {}
    for path, inode in t.walk("/sys"):
        assert seen.setdefault(inode.ino, path) == path
        if stat.S_ISREG(inode.mode):
            assert inode.size == 4096
            assert t.read(path).endswith("\n")
    assert len(seen) > 50


def test_which_cpus_there_are(t: Tree) -> None:
    assert {t.read(f"{CPU}/{name}") for name in ("online", "possible", "present")} == {"0-1\n"}
    assert [name for name in t.names(CPU) if re.fullmatch(r"cpu\d+", name)] == ["cpu0", "cpu1"]
    assert t.read(f"{CPU}/cpu1/online") == "1\n"
    assert "online" not in t.names(f"{CPU}/cpu0")


def test_topology_has_the_hosts_files(t: Tree) -> None:
    host = {path.name for path in Path(CPU, "cpu0/topology").iterdir()}
    ours = set(t.names(f"{CPU}/cpu1/topology"))
    assert host - ours <= NOT_ALWAYS
    assert t.read(f"{CPU}/cpu1/topology/core_cpus") == "2\n"
    assert t.read(f"{CPU}/cpu1/topology/package_cpus_list") == "0-1\n"


def test_caches_are_the_hosts_shared_as_the_guests_cpus_are(t: Tree) -> None:
    root = Path(CPU, "cpu0/cache")
    if not root.is_dir():
        pytest.skip(f"the host has no {root}")
    for index in sorted(path.name for path in root.glob("index*")):
        for name in ("level", "size", "type", "coherency_line_size"):
            assert t.read(f"{CPU}/cpu1/cache/{index}/{name}") == (root / index / name).read_text()
        shared = "0-1\n" if (root / index / "level").read_text() == "3\n" else "1\n"
        assert t.read(f"{CPU}/cpu1/cache/{index}/shared_cpu_list") == shared


def test_the_memory_node(t: Tree) -> None:
    node = "/sys/devices/system/node/node0"
    lines = t.read(f"{node}/meminfo").splitlines()
    values = {line.split()[2]: int(line.split()[3]) for line in lines}
    assert all(line.startswith("Node 0 ") for line in lines)
    assert values["MemTotal:"] - values["MemFree:"] == values["MemUsed:"]
    assert values["MemTotal:"] == t.kernel.memory.total * 4
    host = Path(node, "meminfo")
    if host.exists():
        assert {line.split()[2] for line in lines} <= {line.split()[2] for line in host.read_text().splitlines()}
    assert t.read(f"{node}/cpulist") == "0-1\n"


def test_nothing_can_be_changed(t: Tree) -> None:
    user = t.world.new_process()
    user.process.fs = t.task.process.fs.copy()
    user.credentials = t.task.credentials.copy()
    user.credentials.effective = 0
    user.credentials.fsuid = 1000
    for flags, path in ((1, f"{CPU}/online"), (0o102, f"{CPU}/new")):
        with pytest.raises(SysError, check=lambda e: e.errno == errno.EACCES):
            t.open(path, flags, user)
    file = t.open(f"{CPU}/online", 1)
    with pytest.raises(SysError, check=lambda e: e.errno == errno.EINVAL):
        file.write(t.task, [(t.world.data, 1)])
    file.put_locked()
