"""pyvmm boot IMAGE [-- COMMAND...]: run a program in a virtual machine.

The main thread is the host's side: it waits for signals, the time-out and the program's end on one pipe, while vCPU
threads run the guest. It uses no event loop: asyncio's import alone would cost half of the start-up budget.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from vmm.cli import UsageError, complain, parser_of, tell
from vmm.image.model import Image, ImageError
from vmm.machine import BootError, Config, Machine

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import TextIO

    from devices.rootfs import MountSpec

TIMED_OUT = 124
GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL after a time-out."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCONT)
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
ROOT_OPTIONS = ("mount", "tmpfs", "read_only", "workdir", "user", "export")
"""Options that say something of a root file system."""
SUPPRESSED = "==SUPPRESS=="
"""argparse.SUPPRESS: no line in --help."""
DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DONE = b"\0"
"""Written to the wake-up pipe when the program has ended; signals write their number."""


class Job(NamedTuple):
    """What is to be run, from the options and the image."""

    argv: list[str]
    env: list[bytes]
    cwd: bytes
    user: str


def run(words: Sequence[str]) -> int:
    """Run `pyvmm boot`; the exit status."""
    options, arguments = parse(words)
    options.env = variables(options.env)
    trace = open_trace(options.trace)
    image = find_image(options.image)
    job = job_of(options, image, arguments)
    config = Config(
        accel=options.accel,
        memory=options.memory,
        cpus=options.cpus,
        pin=options.pin,
        trace=trace,
        stats=options.stats,
        layers=image.layers,
        attributes=image.attributes,
        read_only=options.read_only,
        mounts=mounts_of(options.mount),
        tmpfs=[os.fsencode(target) for target in options.tmpfs],
        hostname=os.fsencode(options.hostname),
    )
    try:
        machine = Machine(config)
        machine.open()
    except BootError as error:
        raise UsageError(str(error)) from error
    try:
        status = _run_machine(machine, job, options.timeout)
        if options.export:
            machine.export(options.export)
        return status
    except BootError as error:
        raise UsageError(str(error)) from error
    finally:
        machine.close()
        image.close()
        for notice in machine.kernel.notices:
            tell(f"pyvmm: {notice}\n")
        if options.stats:
            tell(machine.report() + "\n")
        if trace is not None and trace is not sys.stderr:
            trace.close()


def _run_machine(machine: Machine, job: Job, timeout: float | None) -> int:
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    machine.on_end = lambda: os.write(writer, DONE)
    old_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    old_handlers = {number: signal.signal(number, _noted) for number in FORWARDED}
    try:
        machine.start(job.argv, job.env, cwd=job.cwd, user=job.user)
        status = _wait(machine, reader, timeout)
    finally:
        signal.set_wakeup_fd(old_wakeup)
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
    bugs = machine.kernel.bugs
    if bugs:
        tell("\n".join(bugs))
        return complain("the monitor failed (above); please report it")
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


def find_image(text: str) -> Image:
    """What IMAGE means. An ELF file, `host` and a directory need nothing of vmm/image, whose imports take time."""
    if text == "host":
        return Image("host", [b"/"])
    if os.path.isdir(text):
        return Image("directory", [os.fsencode(text)])
    if is_elf(text):
        return Image("elf", elf=os.fsencode(text))
    from vmm.cli.image import progress
    from vmm.image.resolve import resolve

    shown = progress()
    try:
        return resolve(text, progress=shown)
    except ImageError as error:
        raise UsageError(f"boot: {error}") from error
    finally:
        if shown is not None:
            sys.stderr.write("\r\x1b[K")


def is_elf(path: str) -> bool:
    """Is it a readable file that begins as an ELF file does?"""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and os.pread(fd, 4, 0) == b"\x7fELF"
    finally:
        os.close(fd)


def job_of(options: argparse.Namespace, image: Image, arguments: list[str]) -> Job:
    """The program, what it is given and whom it runs as: the image's own wishes, overruled by the options."""
    own = image.config
    env = environment(own.env, options.env)
    if image.elf:
        given = [name for name in ROOT_OPTIONS if getattr(options, name)]
        if given:
            option = given[0].replace("_", "-")
            raise UsageError(f"boot: --{option} needs a root file system; {options.image} is a program")
        return Job([os.fsdecode(image.elf), *arguments], env, b"/", "")
    argv = [*own.entrypoint, *(arguments or own.cmd)]
    if not argv:
        raise UsageError(f"boot: {options.image} says no command; give one: pyvmm boot {options.image} -- COMMAND")
    cwd = options.workdir or own.working_dir or "/"
    return Job(argv, env, os.fsencode(cwd), options.user or own.user)


def mounts_of(given: Sequence[str]) -> list[MountSpec]:
    """--mount SRC:DST[:MODE]."""
    if not given:
        return []
    from devices.rootfs import parse_mount

    try:
        return [parse_mount(text) for text in given]
    except ValueError as error:
        raise UsageError(f"boot: --mount: {error}") from error


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the words behind `--`."""
    parser = parser_of(
        "boot",
        "Run a program in a virtual machine. IMAGE is an ELF file (a static program, which gets the words behind -- as "
        "its arguments), `host` (the host's own root file system, which is not changed), a directory, an archive of a "
        "root file system, an OCI or docker archive, or a name from `pyvmm image list`; then COMMAND is run in it.",
        usage="pyvmm boot [OPTION...] IMAGE [-- COMMAND [ARG...]]",
        epilog="Exit status: the program's; 128 + N if signal N ended it; 124 after a time-out; 125 for an error of "
        "pyvmm's own.",
    )
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("arguments", nargs="*", default=[], help=SUPPRESSED)
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
    parser.add_argument(
        "--mount",
        metavar="SRC:DST[:MODE]",
        action="append",
        default=[],
        help="show a directory or file of the host in the guest: MODE is ro (default), rw, or overlay (the guest may "
        "write, the host does not see it)",
    )
    parser.add_argument("--tmpfs", metavar="DST", action="append", default=[], help="an empty directory in memory")
    parser.add_argument("--read-only", action="store_true", help="nothing in the root file system can be written")
    parser.add_argument("--workdir", metavar="DIR", help="the directory that the command starts in")
    parser.add_argument("--user", metavar="USER[:GROUP]", default="", help="whom it runs as (default: root)")
    parser.add_argument("--hostname", metavar="NAME", default="pyvmm", help="the guest's host name")
    parser.add_argument("--export", metavar="DIR", help="in the end, write what the guest has changed to DIR")
    parser.add_argument("--timeout", metavar="SECONDS", type=seconds, help="end the program after this time")
    options_end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(split_trace(words[:options_end]))
    if options.arguments:
        word = options.arguments[0]
        raise UsageError(f"boot: write -- before the command or its arguments: {options.image} -- {word} ...")
    if options.cpus is not None and not 1 <= options.cpus <= 1024:
        raise UsageError("boot: --cpus takes 1 to 1024")
    if not 0 < len(os.fsencode(options.hostname)) <= 64:
        raise UsageError("boot: --hostname takes 1 to 64 bytes")
    return options, list(words[options_end + 1 :])


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


def variables(given: Sequence[str]) -> dict[bytes, bytes]:
    """What --env says."""
    values = {}
    for item in given:
        name, equals, value = os.fsencode(item).partition(b"=")
        if not name:
            raise UsageError(f"boot: --env {item}: a variable has a name")
        if not equals and name not in os.environb:
            raise UsageError(f"boot: --env {item}: not set on the host; write {item}=VALUE")
        values[name] = value if equals else os.environb[name]
    return values


def environment(image: Sequence[str], given: dict[bytes, bytes]) -> list[bytes]:
    """The program's environment: the image's, then what --env says."""
    values = {b"PATH": DEFAULT_PATH, b"TERM": os.environb.get(b"TERM", b"dumb")}
    for item in image:
        name, _, value = os.fsencode(item).partition(b"=")
        values[name] = value
    return [name + b"=" + value for name, value in {**values, **given}.items()]


def open_trace(target: str | None) -> TextIO | None:
    if target is None:
        return None
    if target == "-":
        return sys.stderr
    try:
        return open(target, "w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise UsageError(f"boot: --trace={target}: {error.strerror}") from error
