"""A hostile or broken guest: it ends as it would on Linux, in bounded time, and the monitor lives.

The cases are in guest/programs/hostile.c; the host's kernel says how each must end. What must not be done to the host
(spin, eat all memory) is checked against what Linux documents.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.harness import GUEST, ROOT, boot, native, program, shell_status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GUEST_ONLY = {
    "spin_for_ever",
    "spin_in_syscalls",
    "sleep_for_ever",
    "many_spinners",
    "threads_without_end",
    "eat_memory",
}
NOT_EMULATED = {
    "alignment_check": "Unicorn (QEMU's TCG) does not check alignment",
    "sse_exception": "Unicorn (QEMU's TCG) does not raise unmasked SSE exceptions",
}


def cases() -> list[str]:
    names = re.findall(r"\bCASE\((\w+)\)", (GUEST / "programs" / "hostile.c").read_text())
    return [name for name in names if name not in GUEST_ONLY and name != "name"]


@pytest.mark.parametrize("case", cases())
def test_ends_as_on_the_host(case: str, accelerator: str) -> None:
    if accelerator == "emulator" and case in NOT_EMULATED:
        pytest.skip(NOT_EMULATED[case])
    argv: list[str | Path] = [program("hostile"), case]
    expected = native(argv)
    result = boot(accelerator, argv, options=["--timeout=30"])
    assert (result.returncode, result.stdout) == (shell_status(expected.returncode), expected.stdout)
    assert result.stderr == b""


@pytest.mark.parametrize("case", ["spin_for_ever", "spin_in_syscalls", "sleep_for_ever", "many_spinners"])
def test_time_out_ends_it(case: str, accelerator: str) -> None:
    start = time.monotonic()
    result = boot(accelerator, [program("hostile"), case], options=["--timeout=1"])
    assert (result.returncode, result.stderr) == (124, b"")
    assert time.monotonic() - start < 30


def test_eating_memory_ends_the_eater(accelerator: str) -> None:
    result = boot(accelerator, [program("hostile"), "eat_memory"], options=["--memory=64M"])
    assert result.returncode == 128 + signal.SIGKILL
    assert b"out of memory" in result.stderr
    assert result.stderr.count(b"\n") == 1


def test_threads_without_end_get_eagain(accelerator: str) -> None:
    result = boot(accelerator, [program("hostile"), "threads_without_end"], timeout=110)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"EAGAIN\n", b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_program(number: signal.Signals, accelerator: str) -> None:
    with started(accelerator, "spin_for_ever") as process:
        process.send_signal(number)
        assert process.wait(30) == 128 + number


def test_a_killed_monitor_leaves_nothing(accelerator: str) -> None:
    with started(accelerator, "many_spinners") as process:
        group = os.getpgid(process.pid)
        process.kill()
        process.wait(30)
        with pytest.raises(ProcessLookupError):
            os.killpg(group, 0)


@contextlib.contextmanager
def started(accelerator: str, case: str) -> Iterator[subprocess.Popen[bytes]]:
    """A booted hostile program that does not end, in a process group of its own, and running."""
    words = ["boot", f"--accel={accelerator}", "--trace", str(program("hostile")), "--", case]
    command = [sys.executable, "-m", "vmm", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, cwd=ROOT) as process:
        assert process.stderr is not None
        assert process.stderr.readline()  # its first system call
        try:
            yield process
        finally:
            process.kill()
