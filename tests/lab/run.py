#!/usr/bin/env python3
"""Run the guest tests, or any command, on hardware-KVM semantics: see tests/lab/__init__.py.

Exit status: the command's; 124 when the time is up, 125 for a failure of the lab itself, 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.lab.channel import Channel, End, Failure, Ready
from tests.lab.errors import LabError
from tests.lab.initramfs import Job, build, hidden, read_busybox, scratch_folders
from tests.lab.kernel import Kernel, bootable, find_kernel
from tests.lab.qemu import Qemu, find_qemu, keep, qemu_version
from tests.lab.selection import default_command, prepare_bytecode
from tests.lab.verdict import LAB_FAILED, TIMED_OUT, Outcome, Task, Times, failure, summary, timed_out

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BOOT_TIMEOUT = 120.0  # seconds; 3 to 5 are usual
CONSOLE_TAIL = 15  # lines of the kernel's console shown with a failure

T = TypeVar("T")


class Options(NamedTuple):
    """The command line; timeout in seconds, memory in MiB."""

    timeout: float
    memory: int
    verbose: bool
    keep: bool
    command: list[str]


def parse_arguments(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="lab",
        description="Run a command (default: the guest tests) under Debian's kernel with kvm_amd, in QEMU.",
    )
    parser.add_argument("--timeout", type=float, default=900.0, metavar="S", help="end it after S seconds (900)")
    parser.add_argument("--memory", type=int, default=2048, metavar="MiB", help="the lab's memory (2048)")
    parser.add_argument("--verbose", action="store_true", help="show the output as it comes")
    parser.add_argument("--keep", action="store_true", help="keep kernel, initramfs, console and a boot script")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="what to run, after --")
    result = Options(**vars(parser.parse_args(arguments)))
    if not 0 < result.timeout < 1e6:
        parser.error("--timeout must be more than 0 seconds")
    if result.memory < 256:
        parser.error("--memory must be at least 256 MiB")
    return result


def environment() -> dict[str, str]:
    """The command's whole environment."""
    values = {
        "HOME": "/tmp",
        "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",  # its default is in the checkout
        "LANG": "C.UTF-8",
        # The interpreter as it was called, not resolved: a virtual environment is known by it.
        "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",  # what was printed before a hang must come out
        "PYVMM_LAB": "1",
        "TERM": "dumb",
    }
    if "PYTHONPATH" in os.environ:
        values["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return values


def make_job(command: Sequence[str]) -> Job:
    """What the lab is to do; the checkout and the interpreter stay visible even where they lie under /tmp."""
    scratch = scratch_folders()
    needed = [ROOT, Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).parent]
    return Job(command, ROOT, environment(), scratch, hidden(needed, scratch))


def find_parts() -> tuple[str, Kernel, bytes]:
    """QEMU, the kernel and busybox. Raises LabError with all that is wanting in one line."""
    problems = []

    def attempt(find: Callable[[], T]) -> T | None:
        try:
            return find()
        except LabError as error:
            problems.append(str(error))
            return None

    qemu, kernel, busybox = attempt(find_qemu), attempt(find_kernel), attempt(read_busybox)
    if qemu is None or kernel is None or busybox is None:
        raise LabError("; ".join(problems))
    return qemu, kernel, busybox


class Session:
    """One run: takes the serial line's bytes and knows when the time is up."""

    def __init__(self, options: Options, token: str) -> None:
        self.channel = Channel(token)
        self._begin = time.monotonic()
        self._booted: float | None = None
        self._timeout = options.timeout
        self._verbose = options.verbose

    def feed(self, data: bytes) -> bool:
        """The next bytes; True when nothing more is worth waiting for."""
        self.show(self.channel.feed(data))
        if self._booted is None and self.channel.last(Ready):
            self._booted = time.monotonic()
        return self.channel.last(End) is not None or self.channel.last(Failure) is not None

    def deadline(self) -> float:
        """In terms of time.monotonic(); a kernel that hangs does not get all of the time."""
        return self._begin + (self._timeout if self._booted else min(self._timeout, BOOT_TIMEOUT))

    def show(self, output: bytes) -> None:
        if self._verbose:
            sys.stdout.buffer.write(output)
            sys.stdout.buffer.flush()

    def times(self) -> Times:
        boot = None if self._booted is None else self._booted - self._begin
        return Times(boot, time.monotonic() - self._begin)


def run(options: Options) -> Outcome:
    """Boot the lab, run the command there; prints the output where it is wanted. Raises LabError."""
    token = secrets.token_hex(8)
    session = Session(options, token)
    qemu, kernel, busybox = find_parts()
    prepare_bytecode(ROOT)
    task = Task(options.command or default_command(ROOT), not options.command)
    image = bootable(kernel.image.read_bytes())
    initramfs = build(busybox, kernel.modules, token, make_job(task.command))
    with Qemu(qemu, image, initramfs, options.memory) as machine:
        in_time = machine.read(session.feed, session.deadline)
        session.show(session.channel.close())
        times = session.times()
        if in_time:
            outcome = failure(session.channel, machine.console, machine.messages, machine.status)
            outcome = outcome or summary(task, session.channel, times, qemu_version(qemu))
        else:
            outcome = timed_out(task, times)
        machine.kill()
        if outcome.status:
            show_failure(session.channel, machine.console, options.verbose, outcome.status)
        if options.keep:
            folder = Path(tempfile.mkdtemp(prefix="pyvmm-lab-"))
            keep(folder, image, initramfs, options.memory)
            (folder / "console.log").write_text(machine.console)
            (folder / "output.log").write_bytes(session.channel.output)
            print(f"lab: kept in {folder}", file=sys.stderr)
    return outcome


def show_failure(channel: Channel, console: str, verbose: bool, status: int) -> None:
    """All that helps to understand a failure: the output, unless it was shown already, and the kernel's last lines."""
    if not verbose:
        if channel.cut:
            print(f"[{channel.cut} bytes of output dropped]")
        sys.stdout.flush()
        sys.stdout.buffer.write(channel.output)
        sys.stdout.buffer.flush()
    if status in (TIMED_OUT, LAB_FAILED):
        for line in console.splitlines()[-CONSOLE_TAIL:]:
            print(f"console: {line}", file=sys.stderr)


def on_signal(number: int, _: object) -> NoReturn:
    """SIGTERM and SIGHUP leave as Ctrl-C does: through the `with` that ends QEMU."""
    raise SystemExit(128 + number)


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    try:
        outcome = run(options)
    except LabError as error:
        outcome = Outcome(LAB_FAILED, str(error))
    except KeyboardInterrupt:
        outcome = Outcome(128 + signal.SIGINT, "interrupted")
    print(f"lab: {outcome.line}", file=sys.stderr if outcome.status else sys.stdout)
    return outcome.status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
