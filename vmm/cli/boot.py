"""pyvmm boot FILE [-- ARG...]: run a program in a virtual machine.

The main thread is the host's side: it waits for signals, the time-out and the program's end on one pipe, while vCPU
threads run the guest. It uses no event loop: asyncio's import alone would cost half of the start-up budget.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING

from vmm.cli import EXIT_ERROR, UsageError, parser_of
from vmm.machine import BootError, Config, Machine

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import TextIO

TIMED_OUT = 124
GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL after a time-out."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
DONE = b"\0"
"""Written to the wake-up pipe when the program has ended; signals write their number."""


def run(words: Sequence[str]) -> int:
    """Run `pyvmm boot`; the exit status."""
    options, program = parse(words)
    trace = open_trace(options.trace)
    config = Config(
        accel=options.accel,
        memory=options.memory,
        cpus=options.cpus,
        pin=options.pin,
        trace=trace,
        stats=options.stats,
    )
    env = environment(options.env)
    try:
        machine = Machine(config)
        machine.open()
    except BootError as error:
        raise UsageError(str(error)) from error
    try:
        return _run_machine(machine, program, env, options.timeout)
    except BootError as error:
        raise UsageError(str(error)) from error
    finally:
        machine.close()
        for notice in machine.kernel.notices:
            sys.stderr.write(f"pyvmm: {notice}\n")
        if options.stats:
            sys.stderr.write(machine.report() + "\n")
        if trace is not None:
            trace.flush()


def _run_machine(machine: Machine, program: list[str], env: list[bytes], timeout: float | None) -> int:
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    machine.on_end = lambda: os.write(writer, DONE)
    old_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    old_handlers = {number: signal.signal(number, _noted) for number in FORWARDED}
    try:
        machine.start(program, env)
        status = _wait(machine, reader, timeout)
    finally:
        signal.set_wakeup_fd(old_wakeup)
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
    bugs = machine.kernel.bugs
    if bugs:
        sys.stderr.write("\n".join(bugs))
        sys.stderr.write("\npyvmm: the monitor failed (above); please report it\n")
        return EXIT_ERROR
    return status


def _noted(number: int, frame: object) -> None:
    """The signal's number is in the wake-up pipe already."""


def _wait(machine: Machine, reader: int, timeout: float | None) -> int:
    """Until the program ends: hand signals on to it, and end it when its time is up."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    deadline = None if timeout is None else time.monotonic() + timeout
    timed_out = False
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not poll.poll(left):
            machine.signal(signal.SIGKILL if timed_out else signal.SIGTERM)
            deadline = None if timed_out else time.monotonic() + GRACE
            timed_out = True
            continue
        for number in os.read(reader, 512):
            if number == DONE[0]:
                return TIMED_OUT if timed_out else machine.status
            if number in FORWARDED:
                machine.signal(number)


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the program with its arguments."""
    parser = parser_of(
        "boot",
        "Run the statically linked Linux program FILE in a virtual machine, with the arguments ARG.",
        usage="pyvmm boot [OPTION...] FILE [-- ARG...]",
        epilog="Exit status: the program's; 128 + N if signal N ended it; 124 after a time-out; 125 for an error of "
        "pyvmm's own.",
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("arguments", metavar="ARG", nargs="*")
    parser.add_argument(
        "--accel",
        choices=("auto", "kvm", "emulator"),
        default="auto",
        help="the CPU: KVM, an emulator (Unicorn), or KVM where it works (default)",
    )
    parser.add_argument("--memory", metavar="SIZE", type=size, default=2 << 30, help="guest RAM: 512M, 2G (default)")
    parser.add_argument("--cpus", metavar="N", type=int, help="CPUs that the program is told of (default: the host's)")
    parser.add_argument("--pin", metavar="CPUS", type=cpu_list, default=[], help="host CPUs for the vCPUs: 0-3,6")
    parser.add_argument(
        "--env",
        metavar="NAME[=VALUE]",
        action="append",
        default=[],
        help="set a variable, or hand on the host's; may be repeated (default: PATH and TERM only)",
    )
    parser.add_argument(
        "--trace", metavar="FILE", nargs="?", const="-", help="write every system call, as strace does (--trace=FILE)"
    )
    parser.add_argument("--stats", action="store_true", help="print counts and times in the end")
    parser.add_argument("--timeout", metavar="SECONDS", type=seconds, help="end the program after this time")
    options_end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(split_trace(words[:options_end]))
    if options.arguments:
        raise UsageError(f"boot: write -- before the program's arguments: {options.file} -- {options.arguments[0]} ...")
    if options.cpus is not None and not 1 <= options.cpus <= 1024:
        raise UsageError("boot: --cpus takes 1 to 1024")
    return options, [options.file, *words[options_end + 1 :]]


def split_trace(words: Sequence[str]) -> list[str]:
    """`--trace FILE` would swallow the program's name: only --trace=FILE takes a value."""
    return ["--trace=-" if word == "--trace" else word for word in words]


def size(text: str) -> int:
    """A number of bytes: 1048576, 64k, 512M, 2G."""
    number, unit = (text[:-1], text[-1:].lower()) if text[-1:].isalpha() else (text, "")
    if unit not in UNITS or not number.isdigit():
        raise ValueError
    return int(number) * UNITS[unit]


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise ValueError
    return value


def cpu_list(text: str) -> list[int]:
    """CPU numbers as taskset(1) takes them; each must be one that this process may use."""
    cpus: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    allowed = os.sched_getaffinity(0)
    if not cpus or not allowed.issuperset(cpus):
        raise UsageError(f"boot: --pin {text}: this process may use the CPUs {sorted(allowed)}")
    return cpus


def environment(given: Sequence[str]) -> list[bytes]:
    """The program's environment."""
    values = {
        b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        b"TERM": os.environb.get(b"TERM", b"dumb"),
    }
    for item in given:
        name, equals, value = os.fsencode(item).partition(b"=")
        if not name:
            raise UsageError(f"boot: --env {item}: a variable has a name")
        if equals:
            values[name] = value
        elif name in os.environb:
            values[name] = os.environb[name]
        else:
            raise UsageError(f"boot: --env {item}: not set on the host; write {item}=VALUE")
    return [name + b"=" + value for name, value in values.items()]


def open_trace(target: str | None) -> TextIO | None:
    if target is None:
        return None
    if target == "-":
        return sys.stderr
    try:
        return open(target, "w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise UsageError(f"boot: --trace={target}: {error.strerror}") from error
