"""A hostile program or image wants to read, write, list or name something outside of what was mounted for it.

The cases are in guest/programs/escape.c. They run with the root file system in one directory of the host and others
mounted read-write, read-only and under an overlay; beside these is what they must not reach. After each attempt the
secret has not been read, everything outside is as it was, and the monitor lived to say how the program ended.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devices.errors import SysError
from devices.fs.hostfs import HostFs
from tests.harness import GUEST, boot, kvm_missing, program
from tests.unit.devices.fs.test_overlayfs import overlay
from tests.unit.devices.fs.trees import O_CREAT, O_DIRECTORY, O_RDWR, RootKernel, directory, host_tree
from tests.unit.devices.support import world
from tests.unit.devices.vfs.oracle import Fd, Room, names_in

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence

SECRET = "the-host-keeps-this"
MARKER = "name-outside-of-the-mounts"
ACCELERATOR = "emulator" if kvm_missing() else "kvm"
"""How the CPU runs is nothing to the file systems."""
O_PATH, O_NOFOLLOW = 0o10000000, 0o400000


def cases() -> list[str]:
    names = re.findall(r"\bCASE\((\w+)\)", (GUEST / "programs" / "escape.c").read_text())
    return [name for name in names if name != "name"]


class Host:
    """Directories of the host: `image`, `rw`, `ro`, `over` are for the guest, the rest is not."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.secret = top / "secret"
        self.secret.write_text(SECRET)
        (top / MARKER).mkdir()
        (top / MARKER / "secret").write_text(SECRET)
        for name in ("image", "rw", "ro", "over"):
            (top / name).mkdir()
        self.image, self.rw, self.ro, self.over = (top / name for name in ("image", "rw", "ro", "over"))
        (self.image / "escape").write_bytes(program("escape").read_bytes())
        (self.image / "escape").chmod(0o755)
        for place in (self.ro, self.over):
            (place / "file").write_text("a file")
            (place / "second").write_text("x" * 5000)
            (place / "sub").mkdir()
            (place / "sub" / "file").write_text("below")
            os.setxattr(place / "file", "user.k", b"v")

    def outside(self) -> list[object]:
        """All that must stay as it is: everything but the read-write mount."""
        kept = [entry for entry in host_tree(os.fsencode(self.top)) if not self._is_in_rw(entry)]
        assert len(kept) > 15
        return kept

    def _is_in_rw(self, entry: object) -> bool:
        assert isinstance(entry, tuple)
        return bool(entry[0] == os.fsencode(self.rw) or entry[0].startswith(os.fsencode(self.rw) + b"/"))

    def run(self, case: str, *options: str) -> subprocess.CompletedProcess[bytes]:
        mounts = [f"--mount={self.rw}:/m:rw", f"--mount={self.ro}:/r", f"--mount={self.over}:/o:overlay"]
        return self.boot(["/escape", case, str(self.secret), str(os.getpid())], [*mounts, "--timeout=60", *options])

    def boot(self, command: Sequence[str], options: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        return boot(ACCELERATOR, [self.image, *command], options=options)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("SECRET_OF_THE_HOST", SECRET)
    return Host(tmp_path)


def check_kept_in(result: subprocess.CompletedProcess[bytes], case: str, allowed: Sequence[str] = ()) -> None:
    output = result.stdout.decode(errors="replace")
    assert SECRET not in output
    assert MARKER not in output
    assert result.stderr == b""
    assert result.returncode == 0, output
    assert output.endswith(f"tried {case}\n"), output


def test_the_attempts_find_what_is_within_reach(host: Host) -> None:
    """Otherwise no test here says anything."""
    inside = f"--mount={host.top}:{host.top}:ro"
    for case in ("absolute_symlink", "relative_symlink", "dotdot", "proc_root", "chroot_breakout", "everything_listed"):
        result = host.run(case, inside)
        assert SECRET in result.stdout.decode(errors="replace"), case
        for left in list(host.rw.iterdir()):
            left.rmdir() if left.is_dir() and not left.is_symlink() else left.unlink()
    assert MARKER in host.run("everything_listed", inside).stdout.decode(errors="replace")


SPECIAL = ("fifos", "sockets", "device_nodes", "set_id_files", "pseudo_file_systems")


@pytest.mark.parametrize("case", [case for case in cases() if case not in SPECIAL])
def test_kept_in(case: str, host: Host) -> None:
    before = host.outside()
    result = host.run(case)
    check_kept_in(result, case)
    assert host.outside() == before
    assert "wrote: " not in result.stdout.decode(errors="replace") or case in ("hard_links", "whiteouts")


def test_no_byte_reaches_a_fifo_of_the_host(host: Host) -> None:
    os.mkfifo(host.rw / "host-fifo")
    reader = os.open(host.rw / "host-fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_kept_in(result := host.run("fifos"), "fifos")
        assert b"no FIFO" not in result.stdout, "it is the guest's own"
        assert os.read(reader, 100) == b""
    finally:
        os.close(reader)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_no_socket_of_the_host_is_reached(kind: int, host: Host) -> None:
    with socket.socket(socket.AF_UNIX, kind) as server:
        here = os.getcwd()
        os.chdir(host.rw)
        try:
            server.bind("host-socket")
        finally:
            os.chdir(here)
        server.setblocking(False)
        if kind == socket.SOCK_STREAM:
            server.listen()
        check_kept_in(result := host.run("sockets"), "sockets")
        assert b"connected" not in result.stdout
        take = server.accept if kind == socket.SOCK_STREAM else lambda: server.recv(100)
        with pytest.raises(BlockingIOError):
            take()


def test_no_device_of_the_host_is_opened(host: Host) -> None:
    node = host.rw / "host-device"
    made = False
    if not os.geteuid():
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 11))  # /dev/kmsg
        made = True
    before = host.outside()
    result = host.run("device_nodes")
    output = result.stdout.decode(errors="replace")
    assert SECRET not in output
    assert "opened" not in output
    assert "read: " not in output
    check_kept_in(result, "device_nodes")
    assert host.outside() == before
    kinds = {name: stat.S_IFMT(os.lstat(host.rw / name).st_mode) for name in os.listdir(host.rw)}
    assert kinds == ({"host-device": stat.S_IFCHR} if made else {}), "no device node was made on the host"


def test_no_privileged_program_is_left_on_the_host(host: Host) -> None:
    for name, mode in (("host-suid", 0o4755), ("host-sgid", 0o2755)):
        (host.rw / name).write_text("#!/bin/true\n")
        (host.rw / name).chmod(mode)
    check_kept_in(host.run("set_id_files"), "set_id_files")
    left = {path.name: path.lstat().st_mode for path in host.rw.iterdir()}
    assert {"s1", "s3", "s4", "host-suid"} <= set(left)
    assert not [name for name, mode in left.items() if mode & 0o6000]
    assert not [name for name in left if "security.capability" in os.listxattr(host.rw / name, follow_symlinks=False)]


def test_the_hosts_kernel_file_systems_are_not_in_its_root(host: Host) -> None:
    result = host.run("pseudo_file_systems", "--mount=/:/h:ro")
    check_kept_in(result, "pseudo_file_systems")
    output = result.stdout.decode(errors="replace")
    assert "there: " not in output
    assert set(re.findall("name: (.*)", output)) <= {".", ".."}


# Hostile images


@pytest.mark.parametrize("target", ["{top}/secret", "../secret", "/../secret", "../../../../../../../{top}/secret"])
def test_an_image_whose_files_are_links_out(target: str, host: Host) -> None:
    """The monitor itself reads the image's files: the program, its interpreter, /etc/passwd."""
    link = target.format(top=host.top)
    (host.image / "etc").mkdir()
    (host.image / "etc" / "passwd").symlink_to(link)
    (host.image / "program").symlink_to(link)
    (host.image / "script").write_text(f"#!{link} x\n")
    (host.image / "script").chmod(0o755)
    host.secret.write_text(f"{SECRET}:x:0:0::/:/bin/sh\n")
    host.secret.chmod(0o755)
    before = host.outside()
    for command, options in (
        (["/program"], []),
        (["/script"], []),
        (["/escape", "dotdot", "/x", "1"], [f"--user={SECRET}"]),
        ([str(host.secret)], []),
        (["/escape", "dotdot", "/x", "1"], ["--workdir=/etc/passwd"]),
    ):
        result = host.boot(command, options)
        assert result.returncode == 125, (command, result)
        assert b"root:" not in result.stderr
    assert host.outside() == before


@pytest.mark.parametrize("place", ["m", "proc", "dev", "sys", "r", "o", "tmp"])
def test_an_image_whose_mount_points_are_links_out(place: str, host: Host) -> None:
    """Nothing is made on the host where such a link leads; it is followed within the guest."""
    (host.image / place).symlink_to(f"../{MARKER}")
    before = host.outside()
    result = host.run("dotdot", "--tmpfs=/tmp")
    assert SECRET not in result.stdout.decode(errors="replace")
    assert host.outside() == before


def test_an_image_with_special_files_for_directories(host: Host) -> None:
    os.mkfifo(host.image / "etc")
    os.mkfifo(host.image / "program")
    for command, options in ((["/program"], []), (["/escape", "dotdot", "/x", "1"], ["--user=root"])):
        before = host.outside()
        assert host.boot(command, [*options, "--timeout=20"]).returncode in (0, 125)
        assert host.outside() == before


def test_what_is_exported_stays_in_its_directory(host: Host, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whiteouts are not forged, links are not followed, and no program gets power on the host."""
    target = tmp_path_factory.mktemp("exported")
    before = host.outside()
    for case in ("whiteouts", "set_id_files", "absolute_symlink", "device_nodes", "overlay_writes"):
        result = boot(
            ACCELERATOR,
            [host.image, "/escape", case, str(host.secret), "1"],
            options=[f"--export={target}", "--tmpfs=/m", "--tmpfs=/r", "--tmpfs=/o"],
        )
        assert SECRET not in result.stdout.decode(errors="replace")
        for place, _, files in os.walk(target):
            for name in files:
                mode = os.lstat(os.path.join(place, name)).st_mode
                assert stat.S_IFMT(mode) in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO)
                assert not mode & 0o6000
                assert not name.startswith(".wh.")
        assert any(target.iterdir())
        shutil.rmtree(target)
        assert host.outside() == before


# Without a machine: the host's side of it


@pytest.fixture
def shared() -> Iterator[tuple[bytes, RootKernel]]:
    """A directory of the host that is mounted read-write; beside it is a secret."""
    with directory() as top, world() as w:
        path = os.path.join(top, b"shared")
        os.mkdir(path)
        with open(os.path.join(top, b"secret"), "w") as file:
            file.write(SECRET)
        kernel = RootKernel(w, HostFs(w.kernel.new_dev_locked(), path, read_only=False))
        yield path, kernel
        with open(os.path.join(top, b"secret")) as file:
            assert file.read() == SECRET
        assert sorted(os.listdir(top)) == [b"secret", b"shared"]
        kernel.sb.shutdown()


def read_all(kernel: RootKernel, path: bytes) -> bytes:
    if kernel("open", path, 0, 0) < 0:
        return b""
    count, rooms = kernel.call("pread64", Fd(-1), Room(100), 100, 0)
    kernel("close", Fd(-1))
    return rooms[0][:count] if count > 0 else b""


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/../../secret", b"/", b"../secret"])
def test_hostfs_takes_no_path_for_a_name(name: bytes, shared: tuple[bytes, RootKernel]) -> None:
    """Should the VFS ever hand one on."""
    path, kernel = shared
    root, task = kernel.sb.root, kernel.task
    os.mkdir(os.path.join(path, b"d"))
    child = root.lookup(task, b"d")
    assert child is not None
    attempts: tuple[Callable[[], object], ...] = (
        lambda: root.lookup(task, name), lambda: root.create(task, name, 0o600), lambda: root.mkdir(task, name, 0o700),
        lambda: root.mknod(task, name, stat.S_IFIFO | 0o600, 0), lambda: root.symlink(task, name, b"x"),
        lambda: root.link(task, name, child), lambda: root.unlink(task, name, child),
        lambda: root.rmdir(task, name, child), lambda: root.rename(task, name, child, root, b"new", None, 0),
        lambda: root.rename(task, b"d", child, root, name, None, 0),
    )  # fmt: skip
    for attempt in attempts:
        with pytest.raises(SysError, match="EINVAL"):
            attempt()


def test_the_host_swaps_a_directory_for_a_link_in_the_middle_of_walks(shared: tuple[bytes, RootKernel]) -> None:
    path, kernel = shared
    os.mkdir(os.path.join(path, b"d"))
    os.symlink(b"..", os.path.join(path, b"l"))
    os.symlink(os.path.join(path, b"../secret"), os.path.join(path, b"s"))
    stop = threading.Event()

    def swap() -> None:
        names = [os.path.join(path, name) for name in (b"d", b"l", b"spare")]
        while not stop.is_set():
            os.rename(names[0], names[2])
            os.rename(names[1], names[0])
            os.rename(names[0], names[1])
            os.rename(names[2], names[0])

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(1500):
            for name in (b"/d/secret", b"/l/secret", b"/d/../secret", b"/l/../secret", b"/s"):
                assert SECRET.encode() not in read_all(kernel, name)
            kernel("open", b"/d/made", O_RDWR | O_CREAT, 0o600)
            kernel("close", Fd(-1))
            kernel("unlink", b"/d/made")
    finally:
        stop.set()
        thread.join()


def test_the_host_moves_a_directory_out_while_it_is_in_use(shared: tuple[bytes, RootKernel]) -> None:
    """The guest may still use that very directory, but goes nowhere from there."""
    path, kernel = shared
    os.mkdir(os.path.join(path, b"d"))
    assert kernel("chdir", b"/d") == 0
    os.rename(os.path.join(path, b"d"), os.path.join(path, b"../moved"))
    try:
        for name in (b"../secret", b"../../secret", b"secret"):
            assert read_all(kernel, name) == b""
        assert kernel("open", b"..", O_DIRECTORY, 0) == 0
        count, rooms = kernel.call("getdents64", Fd(-1), Room(1000), 1000)
        assert b"secret" not in names_in(rooms[0], count)
    finally:
        os.rmdir(os.path.join(path, b"../moved"))


def test_the_host_replaces_a_file_after_it_was_found(shared: tuple[bytes, RootKernel]) -> None:
    """What was looked up is what is opened and changed."""
    path, kernel = shared
    name = os.path.join(path, b"f")
    with open(name, "w") as file:
        file.write("first")
    assert kernel("open", b"/f", O_PATH, 0) == 0
    inode = kernel.sb.root.lookup(kernel.task, b"f")
    os.unlink(name)
    os.symlink(b"../secret", name)
    assert kernel("fchownat", Fd(0), b"", 1, 1, 0x1000) in (0, -errno.EPERM)
    view = memoryview(bytearray(100))
    assert bytes(view[: inode.read_into(view, 0)]) == b"first"  # type: ignore[union-attr]  # it is a HostInode
    assert read_all(kernel, b"/f") == b""
    assert os.lstat(os.path.join(path, b"../secret")).st_uid == os.geteuid()


def test_one_mount_is_not_the_other(shared: tuple[bytes, RootKernel]) -> None:
    """No link or rename from what is read-only to what is not, though both are one file system of the host."""
    path, kernel = shared
    with directory() as other:
        with open(os.path.join(other, b"f"), "w") as file:
            file.write("x")
        ro = HostFs(kernel.world.kernel.new_dev_locked(), other, read_only=True)
        found = ro.root.lookup(kernel.task, b"f")
        assert found is not None
        with pytest.raises(SysError, match="EXDEV"):
            kernel.sb.root.link(kernel.task, b"stolen", found)
        with pytest.raises(SysError, match="EROFS"):
            ro.root.rename(kernel.task, b"f", found, kernel.sb.root, b"stolen", None, 0)
        ro.shutdown()
    assert os.listdir(path) == []


@pytest.mark.parametrize("path", [b"/proc", b"/proc/self", b"/sys", b"/dev/null", b"/proc/self/environ"])
def test_the_hosts_kernel_cannot_be_mounted(path: bytes) -> None:
    if not os.path.exists(path):
        pytest.skip("not there")
    with world() as w, pytest.raises(OSError, match=r"kernel|special"):
        HostFs(w.kernel.new_dev_locked(), path, read_only=False)


def test_below_the_hosts_root_its_kernel_is_hidden() -> None:
    with world() as w:
        kernel = RootKernel(w, HostFs(w.kernel.new_dev_locked(), b"/", read_only=False))
        proc = kernel.sb.root.lookup(kernel.task, b"proc")
        assert proc is not None
        assert list(proc.iterate(kernel.task, 0)) == []
        assert proc.lookup(kernel.task, b"self") is None
        for attempt in (
            lambda: proc.mkdir(kernel.task, b"x", 0o700), lambda: proc.setattr(mode=0o700),
            lambda: proc.setxattr(kernel.task, b"user.a", b"v", 0), lambda: proc.tmpfile(kernel.task, 0o600),
        ):  # fmt: skip
            with pytest.raises(SysError, match="EACCES"):
                attempt()
        kernel.sb.shutdown()


def test_a_layer_that_says_that_a_fifo_is_a_file() -> None:
    """The host's FIFO would block whoever opens it."""
    with directory() as path, directory() as side:
        os.mkfifo(os.path.join(path, b"f"))
        os.symlink(b"/etc/passwd", os.path.join(path, b"l"))
        sidecar = os.path.join(side, b"x.json")
        with open(sidecar, "w") as file:
            regular = '{"": {"mode": 33188}}'
            file.write(f'{{"version": 1, "owner": [0, 0], "tree": {{"f": {regular}, "l": {regular}}}}}')
        with world() as w:
            kernel = overlay(w, path, attributes=sidecar)
            for name in (b"/f", b"/l"):
                assert kernel("open", name, 0, 0) == -errno.EINVAL
            assert kernel("open", b"/l", O_RDWR, 0) == -errno.EINVAL
            assert kernel("open", b"/f", O_RDWR, 0) == 0, "a copy of an empty file"
