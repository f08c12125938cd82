"""The command line: what a person may get wrong is answered with one clear line and status 125."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT, boot, built_image


def pyvmm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "vmm", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, stdin=subprocess.DEVNULL)


def assert_one_line(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 125, result
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("pyvmm: ")
    for part in parts:
        assert part in result.stderr


def elf_header(machine: int = 62, kind: int = 2) -> bytes:
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    return ident + kind.to_bytes(2, "little") + machine.to_bytes(2, "little") + bytes(44)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello\n", "not an ELF file"),
        (b"#!/bin/sh\necho\n", "not an ELF file"),
        (elf_header()[:30], "truncated"),
        (elf_header(machine=183), "aarch64"),
        (elf_header(kind=1), "not a program"),
        (b"\x7fELF", "truncated"),
    ],
)
def test_files_that_are_no_programs(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "image"
    file.write_bytes(content)
    assert_one_line(pyvmm("boot", file), str(file), reason)


def test_a_truncated_program(tmp_path: Path) -> None:
    file = tmp_path / "short"
    file.write_bytes(built_image("hello").read_bytes()[:200])
    assert_one_line(pyvmm("boot", file), "truncated")


def test_missing_directory_and_unreadable(tmp_path: Path) -> None:
    assert_one_line(pyvmm("boot", tmp_path / "no"), "No such file")
    assert_one_line(pyvmm("boot", tmp_path), "no command")
    os.mkfifo(tmp_path / "fifo")
    assert_one_line(pyvmm("boot", tmp_path / "fifo"), "not a regular file")


def test_a_dynamic_program_names_its_loader() -> None:
    assert_one_line(pyvmm("boot", "/bin/ls"), "dynamically linked", "ld-linux")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["frobnicate"], "no command"),
        (["boot"], "IMAGE"),
        (["boot", "--accel=xen", "x"], "--accel"),
        (["boot", "--memory=lots", "x"], "--memory"),
        (["boot", "--memory=1M", "/bin/busybox"], "memory"),
        (["boot", "--memory=999999999G", "/bin/busybox"], "memory"),
        (["boot", "--cpus=0", "x"], "--cpus"),
        (["boot", "--pin=4000", "x"], "--pin"),
        (["boot", "--pin=a", "x"], "--pin"),
        (["boot", "--timeout=-1", "x"], "--timeout"),
        (["boot", "--timeout=soon", "x"], "--timeout"),
        (["boot", "--env==x", "x"], "--env"),
        (["boot", "--env=PYVMM_TEST_UNSET", "x"], "not set"),
        (["boot", "--trace=/nonexistent/file", "x"], "--trace"),
        (["boot", "--nonsense", "x"], "--nonsense"),
        (["boot", "/bin/busybox", "echo", "x"], "--"),
        (["syscalls", "frob"], "frob"),
        (["syscalls", "--level=most"], "--level"),
        (["doctor", "--nonsense"], "--nonsense"),
    ],
)
def test_misuse_gets_one_line(words: list[str], part: str) -> None:
    assert_one_line(pyvmm(*words), part)


@pytest.mark.parametrize("words", [["--help"], ["boot", "--help"], ["doctor", "--help"], ["syscalls", "--help"]])
def test_help(words: list[str]) -> None:
    result = pyvmm(*words)
    assert (result.returncode, result.stderr) == (0, "")
    assert "usage: pyvmm" in result.stdout


def test_syscalls_lists_the_table() -> None:
    lines = pyvmm("syscalls").stdout.splitlines()
    assert any(line.split()[:3] == ["39", "getpid", "full"] for line in lines)
    assert any(line.split()[:3] == ["425", "io_uring_setup", "enosys"] for line in lines)
    assert pyvmm("syscalls", "getpid").stdout.split()[:2] == ["39", "getpid"]
    assert '"name": "getpid"' in pyvmm("syscalls", "--json", "39").stdout


def test_doctor_says_what_runs() -> None:
    result = pyvmm("doctor")
    assert result.returncode == 0
    assert "emulator" in result.stdout


def test_status_and_streams(accelerator: str) -> None:
    assert boot(accelerator, ["/bin/busybox", "sh", "-c", "exit 7"]).returncode == 7
    result = boot(accelerator, ["/bin/busybox", "sh", "-c", "echo out; echo err >&2"])
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


def test_environment(accelerator: str) -> None:
    result = boot(accelerator, ["/bin/busybox", "env"], env={"A": "1", "B": "x=y"})
    lines = result.stdout.decode().split()
    assert "A=1" in lines
    assert "B=x=y" in lines
    assert not any(line.startswith("HOME=") for line in lines)


def test_trace_and_stats(accelerator: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    result = boot(accelerator, ["/bin/busybox", "echo", "hi"], options=["--stats", f"--trace={trace}"])
    assert result.stdout == b"hi\n"
    lines = trace.read_text().splitlines()
    assert 'write(1, "hi\\n", 3)                     = 3' in lines
    assert lines[-1] == "+++ exited with 0 +++"
    assert lines[-2] == "exit_group(0)                           = ?"
    assert any(line.split()[-1:] == ["write"] for line in result.stderr.decode().splitlines())
    assert b"exits: " in result.stderr
