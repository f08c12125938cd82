"""pyvmm boot host and DIRECTORY: programs of Debian in a root file system, and the options that shape it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.harness import boot, native

PROBE = """
import hashlib, json, mmap, os, sqlite3, sys, tempfile, threading
with tempfile.TemporaryDirectory() as folder:
    base = sqlite3.connect(os.path.join(folder, "base"))
    print(base.execute("pragma journal_mode=wal").fetchone())
    base.execute("create table numbers(n)")
    base.executemany("insert into numbers values(?)", ((n,) for n in range(1000)))
    base.commit()
    print(base.execute("select sum(n), count(*) from numbers").fetchone(), sorted(os.listdir(folder)))
    base.close()
    path = os.path.join(folder, "mapped")
    with open(path, "w+b") as file:
        file.truncate(10000)
        with mmap.mmap(file.fileno(), 10000) as view:
            view[5000:5005] = b"hello"
            print(os.pread(file.fileno(), 5, 5000))
            os.pwrite(file.fileno(), b"J", 5000)
            print(view[5000:5005])
total = []
def work(n):
    total.append(sum(range(n)))
threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sum(total), hashlib.sha256(b"x" * 100000).hexdigest())
print(json.dumps({"a": [1, 2.5, None]}), sys.stdin.read())
"""

SAME = [
    ["ls", "-l", "/etc/passwd"],
    ["ls", "/usr/lib"],
    ["sha256sum", "/usr/bin/ls", "/etc/passwd"],
    ["sort", "-r", "/etc/passwd"],
    ["wc", "-c", "/usr/bin/python3"],
    ["find", "/etc/passwd", "/etc/hostname", "-size", "-100", "-printf", "%p %s %m\\n"],
    ["grep", "-rn", "root", "/etc/passwd", "/etc/group"],
    ["stat", "-c", "%a %u %g %s %F", "/etc/passwd", "/tmp", "/bin", "/usr/bin/ls"],
    ["readlink", "-f", "/bin/sh", "/usr/bin/python3"],
    ["od", "-An", "-tx1", "-N64", "/usr/bin/ls"],
    ["expr", "6", "*", "7"],
    ["base64", "/etc/debian_version"],
    ["tail", "-n", "3", "/etc/passwd"],
    ["cut", "-d:", "-f1", "/etc/passwd"],
    ["cat", "/nonexistent"],
    ["/usr/bin/python3", "-c", "import sys; print(sys.version)"],
    ["perl", "-e", "print join(',', map { $_ * $_ } 1..10), qq(\\n)"],
    ["tar", "-cf", "-", "--mtime=@0", "/etc/hostname"],
    ["gzip", "-c", "-n", "/etc/passwd"],
]


@pytest.mark.parametrize("command", SAME, ids=lambda c: c[0])
def test_same_as_on_the_host(command: list[str], accelerator: str) -> None:
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    expected = native(command, env=environment)
    result = boot(accelerator, ["host", *command], env=environment)
    assert result.stdout == expected.stdout
    assert result.stderr == expected.stderr
    assert result.returncode == expected.returncode


def test_python_at_work(accelerator: str) -> None:
    python = "/usr/bin/python3"
    expected = native([python, "-c", PROBE], input=b"input", env={"LC_ALL": "C"})
    result = boot(accelerator, ["host", python, "-c", PROBE], input=b"input", env={"LC_ALL": "C"})
    assert result.stderr == expected.stderr == b""
    assert result.stdout == expected.stdout


def test_the_host_is_not_changed(accelerator: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    script = f"import os; open('{file}', 'a').write('new'); os.mkdir('{tmp_path}/made'); print(open('{file}').read())"
    result = boot(accelerator, ["host", "/usr/bin/python3", "-c", script])
    assert (result.stdout, result.stderr) == (b"oldnew\n", b"")
    assert file.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["file"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small root file system: busybox and a file."""
    folder = tmp_path / "root"
    (folder / "bin").mkdir(parents=True)
    (folder / "etc").mkdir()
    shutil.copy("/bin/busybox", folder / "bin")
    (folder / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\nann:x:1000:100::/home/ann:/bin/sh\n")
    (folder / "etc" / "group").write_text("root:x:0:\nusers:x:100:\nwheel:x:10:ann\n")
    return folder


def run(accelerator: str, root: Path, *command: str, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
    result = boot(accelerator, [root, "/bin/busybox", *command], options=options)
    return result.returncode, result.stdout.decode(), result.stderr.decode()


def test_a_directory_as_root(accelerator: str, root: Path) -> None:
    assert run(accelerator, root, "ls", "/") == (0, "bin\ndev\netc\nproc\nsys\n", "")
    assert sorted(os.listdir(root)) == ["bin", "etc"]


def test_mounts(accelerator: str, root: Path, tmp_path: Path) -> None:
    for name in ("ro", "rw", "overlay"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("host\n")
    options = tuple(f"--mount={tmp_path}/{mode}:/mnt/{mode}:{mode}" for mode in ("ro", "rw", "overlay"))
    script = (
        "for m in ro rw overlay; do cat /mnt/$m/file; echo guest > /mnt/$m/file; read x < /mnt/$m/file; echo $x; done"
    )
    status, out, err = run(accelerator, root, "sh", "-c", script.replace("cat /mnt/$m/file;", ""), options=options)
    assert (status, out) == (0, "host\nguest\nguest\n")
    assert err.count("Read-only file system") == 1
    assert [(tmp_path / mode / "file").read_text() for mode in ("ro", "rw", "overlay")] == [
        "host\n",
        "guest\n",
        "host\n",
    ]


def test_a_file_mounted(accelerator: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("content\n")
    options = (f"--mount={tmp_path}/one:/deep/er/two",)
    assert run(accelerator, root, "cat", "/deep/er/two", options=options) == (0, "content\n", "")


def test_read_only_and_tmpfs(accelerator: str, root: Path) -> None:
    script = "echo x > /file; echo y > /scratch/file && read y < /scratch/file && echo $y"
    status, out, err = run(accelerator, root, "sh", "-c", script, options=("--read-only", "--tmpfs=/scratch"))
    assert (status, out) == (0, "y\n")
    assert "Read-only file system" in err


def test_user_workdir_and_hostname(accelerator: str, root: Path) -> None:
    options = ("--user=ann", "--workdir=/etc", "--hostname=box")
    assert run(accelerator, root, "pwd", options=options)[1] == "/etc\n"
    assert run(accelerator, root, "uname", "-n", options=options)[1] == "box\n"
    assert run(accelerator, root, "id", "-u", options=options)[1] == "1000\n"
    assert run(accelerator, root, "id", "-G", options=options)[1] == "100 10\n"
    assert run(accelerator, root, "id", "-g", options=("--user=7:8",))[1] == "8\n"


def test_export(accelerator: str, root: Path, tmp_path: Path) -> None:
    (root / "gone").write_text("x")
    script = "echo new > /etc/new; echo more >> /etc/passwd"
    assert run(accelerator, root, "sh", "-c", script, options=(f"--export={tmp_path}/out",))[0] == 0
    assert run(accelerator, root, "rm", "/gone", options=(f"--export={tmp_path}/removed",))[0] == 0
    assert (tmp_path / "out/etc/new").read_text() == "new\n"
    assert (tmp_path / "out/etc/passwd").read_text().endswith("more\n")
    assert not (tmp_path / "out/etc/group").exists()
    assert (tmp_path / "removed/.wh.gone").exists()
    assert (root / "gone").exists()


@pytest.mark.parametrize(
    ("options", "words", "part"),
    [
        (["--mount=/nonexistent:/x"], ["true"], "does not exist"),
        (["--mount=/etc"], ["true"], "SRC:DST"),
        (["--mount=/etc:x"], ["true"], "absolute"),
        (["--mount=/etc:/x:rx"], ["true"], "ro, rw, overlay"),
        (["--workdir=/nonexistent"], ["true"], "No such file"),
        (["--user=nobody-knows"], ["true"], "no such name"),
        (["--hostname="], ["true"], "--hostname"),
        ([], ["/nonexistent"], "No such file"),
        ([], ["nonexistent"], "No such file"),
        ([], ["/etc"], "Permission denied"),
        ([], ["/etc/passwd"], "Permission denied"),
    ],
)
def test_misuse(root: Path, options: list[str], words: list[str], part: str) -> None:
    result = boot("emulator", [root, *words], options=options)
    assert result.returncode == 125
    assert result.stderr.decode().count("\n") == 1
    assert part in result.stderr.decode()


def test_no_command() -> None:
    result = boot("emulator", ["host"])
    assert result.returncode == 125
    assert b"give one" in result.stderr
