"""The lab's run of QEMU, with a stand-in for it; and, marked slow, the lab itself where its packages are installed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import ROOT
from tests.lab import qemu, run
from tests.lab.channel import MARK
from tests.lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable

RUN = ROOT / "tests/lab/run.py"

# qemu.py

FAKE = """\
#!/bin/sh
for word; do case $word in file,id=console,path=*) echo "a console line" >"${word#*path=}" ;; esac; done
echo "a message" >&2
"""


def test_the_command_line() -> None:
    words = qemu.command_line(qemu.Files("K", "I", "C"), 512, "/bin/qemu")
    pairs = list(pairwise(words))
    assert words[0] == "/bin/qemu"
    for pair in [("-kernel", "K"), ("-initrd", "I"), ("-m", "512"), ("-smp", "2")]:
        assert pair in pairs
    serial = [value for name, value in pairs if name == "-serial"]
    assert serial == ["chardev:console", "chardev:result"], "ttyS0 is the console, ttyS1 the result"
    assert ("-chardev", "file,id=console,path=C") in pairs
    assert "readonly=on" in words[words.index("-virtfs") + 1]
    assert words[words.index("-cpu") + 1].split(",")[0] == "max"


@pytest.mark.parametrize(("cpus", "threads"), [(1, "single"), (2, "single"), (3, "multi"), (64, "multi")])
def test_a_thread_a_cpu_only_where_the_host_has_cpus_to_spare(cpus: int, threads: str) -> None:
    assert qemu.accelerator(cpus) == f"tcg,thread={threads}"


def test_qemu_must_be_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="not installed: apt-get install qemu-system-x86"):
        qemu.find_qemu()


def fake(folder: Path, text: str) -> str:
    path = folder / "qemu"
    path.write_text(FAKE + text)
    path.chmod(0o755)
    return str(path)


def soon() -> float:
    return time.monotonic() + 30


def test_what_qemu_says_is_read_to_its_end(tmp_path: Path) -> None:
    got = bytearray()

    def feed(data: bytes) -> bool:
        got.extend(data)
        return False

    before = set(os.listdir("/proc/self/fd"))
    with qemu.Qemu(fake(tmp_path, "printf 'one '; printf two; exit 3"), b"kernel", b"", 256) as machine:
        assert machine.read(feed, soon)
        assert (bytes(got), machine.status) == (b"one two", 3)
        assert (machine.console, machine.messages) == ("a console line\n", "a message\n")
    assert set(os.listdir("/proc/self/fd")) == before


def test_reading_ends_when_enough_is_known(tmp_path: Path) -> None:
    with qemu.Qemu(fake(tmp_path, "echo end; exec sleep 1000"), b"", b"", 256) as machine:
        assert machine.read(lambda data: b"end" in data, soon)
        assert machine.status is None
        machine.kill()
        assert machine.status == -signal.SIGKILL


def test_the_deadline_ends_reading(tmp_path: Path) -> None:
    with qemu.Qemu(fake(tmp_path, "exec sleep 1000"), b"", b"", 256) as machine:
        assert not machine.read(lambda data: False, time.monotonic)


def test_qemu_never_outlives_the_block(tmp_path: Path) -> None:
    machine = qemu.Qemu(fake(tmp_path, "exec sleep 1000"), b"", b"", 256)
    with pytest.raises(KeyboardInterrupt), machine:
        raise KeyboardInterrupt
    assert machine.status == -signal.SIGKILL


def test_a_qemu_that_cannot_start_leaves_nothing_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        qemu.Qemu(str(tmp_path / "missing"), b"", b"", 256)
    assert set(os.listdir("/proc/self/fd")) == before


def test_qemu_dies_with_a_killed_parent(tmp_path: Path) -> None:
    program = fake(tmp_path, "echo $$; exec sleep 1000")
    code = (
        "import os, signal, sys, time; from tests.lab.qemu import Qemu\n"
        f"with Qemu({program!r}, b'', b'', 256) as machine:\n"
        "    machine.read(lambda data: bool(os.write(1, data)), lambda: time.monotonic() + 30)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    try:
        process = os.pidfd_open(int(done.stdout))
    except ProcessLookupError:
        return  # it is gone already
    try:
        assert select.select([process], [], [], 30)[0], "it is still running"
    finally:
        os.close(process)


def test_a_kept_run_can_be_booted_again(tmp_path: Path) -> None:
    qemu.keep(tmp_path, b"kernel", b"archive", 512)
    assert (tmp_path / "vmlinux").read_bytes() == b"kernel"
    script = tmp_path / "boot.sh"
    assert os.access(script, os.X_OK)
    assert "-initrd initramfs.cpio" in script.read_text()


# run.py


def test_the_command_line_of_the_lab() -> None:
    options = run.parse_arguments(["--timeout", "5", "--memory=512", "--verbose", "--", "sh", "-c", "x"])
    assert options == run.Options(5.0, 512, True, False, ["sh", "-c", "x"])
    assert run.parse_arguments([]) == run.Options(900.0, 2048, False, False, [])


@pytest.mark.parametrize("arguments", [["--timeout", "0"], ["--timeout", "nan"], ["--memory", "1"], ["--unknown"]])
def test_a_wrong_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.parse_arguments(arguments)
    assert "lab: error:" in capsys.readouterr().err


def test_the_environment_is_the_lab_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    values = run.environment()
    assert "SECRET" not in values
    assert values["PYVMM_LAB"] == values["PYTHONDONTWRITEBYTECODE"] == "1"
    assert values["PATH"].split(":")[0] == str(Path(sys.executable).parent)


def test_all_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(name: str) -> Callable[[], None]:
        def find() -> None:
            raise LabError(f"no {name}")

        return find

    for name in ("find_qemu", "find_kernel", "read_busybox"):
        monkeypatch.setattr(run, name, missing(name))
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert run.main([]) == 125
    out, err = capsys.readouterr()
    assert (out, err) == ("", "lab: no find_qemu; no find_kernel; no read_busybox\n")


def test_a_hanging_boot_does_not_get_all_of_the_time() -> None:
    session = run.Session(run.parse_arguments([]), "token")
    assert session.deadline() - time.monotonic() <= run.BOOT_TIMEOUT
    assert not session.feed(MARK + b"token ready 6.1.0 Y 2\n")
    assert session.deadline() - time.monotonic() > run.BOOT_TIMEOUT
    assert session.feed(MARK + b"token end 0 12.5\n")


# The lab itself


def lab(*words: str) -> subprocess.CompletedProcess[str]:
    if "PYVMM_LAB" in os.environ:
        pytest.skip("this is the lab")
    try:
        run.find_parts()
    except LabError as error:
        pytest.skip(str(error))
    return subprocess.run([sys.executable, RUN, *words], capture_output=True, text=True, timeout=110)


@pytest.mark.slow
def test_status_and_output_of_a_failure_come_back() -> None:
    done = lab("--timeout=100", "--", "sh", "-c", "echo out; echo err >&2; sleep 1000 & printf '\\001end'; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\nerr\n\x01end"), done.stderr
    assert done.stderr.count("\n") == 1
    assert "status 7" in done.stderr
    assert "kvm_amd with nested paging" in done.stderr


@pytest.mark.slow
def test_kvm_makes_a_vm_there_and_success_is_one_line() -> None:
    code = "from tests import harness; assert harness.kvm_missing() is None, harness.kvm_missing(); print('yes')"
    done = lab("--timeout=100", "--", sys.executable, "-c", code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
    assert done.stdout.startswith("lab: ")


@pytest.mark.slow
def test_a_panic_of_the_lab_is_told() -> None:
    done = lab("--timeout=100", "--", "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 100")
    assert done.returncode == 125
    assert (
        done.stderr.splitlines()[-1]
        == "lab: the lab's kernel gave up: Kernel panic - not syncing: sysrq triggered crash"
    )
