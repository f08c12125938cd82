"""How long the monitor takes to start, what it imports, how much memory it needs: with the image `hello`.

The first byte of hello's output is what shows that the guest runs; its first instruction was some 0.2 ms earlier.
"""

from __future__ import annotations

import re
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import images
from tests.bench.report import Limit, Row
from tests.bench.session import Failed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.bench.session import Session

IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", re.ASCII)
TIMEOUT = 20.0
EMPTY = [sys.executable, "-c", "pass"]
RESIDENT = (
    "import os, sys; null = os.open(os.devnull, os.O_RDWR); "
    "to = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)]; "
    "pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=to); "
    "_, status, usage = os.wait4(pid, 0); "
    "print('resident', usage.ru_maxrss, 'KiB', file=sys.stderr); sys.exit(os.waitstatus_to_exitcode(status) != 0)"
)
"""A small process starts the monitor: a child's ru_maxrss is never below the memory of the one that forked it."""


def hello(accelerator: str, *options: str) -> list[str]:
    """The command that boots `hello`."""
    return [sys.executable, *options, "-m", "vmm", "boot", f"--accel={accelerator}", images.path("hello")]


def resident(session: Session, accelerator: str) -> float:
    """Most MiB that were resident at once in a monitor that ran `hello`."""
    values = session.run([sys.executable, "-S", "-c", RESIDENT, *hello(accelerator)])
    return values["resident"] / 1024


def rows(session: Session) -> list[Row]:
    """Start-up: to the first byte, to the exit, and the share of the imports."""
    starts: dict[str, list[float]] = {}
    ends: dict[str, list[float]] = {}
    imports: dict[str, list[dict[str, int]]] = {}
    commands = {"native": EMPTY} | {name: hello(name) for name in session.accelerators()}
    common = imported(session, [sys.executable, "-X", "importtime", "-c", "pass"])
    for turn in range(6 if session.quick else 20):
        for way, command in list(commands.items()):
            session.left()
            try:
                first, end = timed(command, session.env)
                own = imported(session, hello(way, "-X", "importtime")) if way != "native" and turn % 2 else {}
            except Failed as failure:
                session.report.note(f"{way}: start: {failure}")
                del commands[way]
                continue
            if turn:  # the first one compiles the modules
                starts.setdefault(way, []).append(first)
                ends.setdefault(way, []).append(end)
            if own:
                imports.setdefault(way, []).append({name: took for name, took in own.items() if name not in common})
    starts.pop("native", None)
    best = {way: least_of_each(runs) for way, runs in imports.items()}
    for way, own in best.items():
        session.report.note(f"{way}: dearest of {len(own)} imports (ms): {top(own)}")
    return [
        Row("start of hello to its first byte", "ms", least(starts), [Limit("kvm", 100)], starts),
        Row("start to exit (native: python -c pass)", "ms", least(ends), (), ends),
        Row(
            "modules imported for that, each at its best",
            "ms",
            {way: sum(own.values()) / 1000 for way, own in best.items()},
            [Limit("kvm", 50)],
            {way: [sum(own.values()) / 1000 for own in runs] for way, runs in imports.items()},
        ),
    ]


def least(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {way: min(values) for way, values in samples.items()}


def least_of_each(runs: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The smallest value of each name."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: min(run[name] for run in runs if name in run) for name in names}


def timed(command: Sequence[str], env: Mapping[str, str]) -> tuple[float, float]:
    """Milliseconds from a command's start to the first byte of its output (or its end), and to its end."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=env) as child:
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], TIMEOUT)
        first = time.perf_counter()
        if not ready:
            child.kill()
            raise Failed(f"{' '.join(command)}: nothing after {TIMEOUT:.0f} s")
        child.wait()
        end = time.perf_counter()
    if child.returncode:
        raise Failed(f"{' '.join(command)}: status {child.returncode}")
    return (first - begin) * 1000, (end - begin) * 1000


def imported(session: Session, command: Sequence[str]) -> dict[str, int]:
    """Microseconds of each module that a command run with -X importtime imported, without what it imports in turn."""
    return import_times(session.output(command, stream="stderr"))


def import_times(text: str) -> dict[str, int]:
    """What -X importtime prints: the self time in microseconds by module."""
    return {found[2]: int(found[1]) for found in IMPORT.finditer(text)}


def top(own: Mapping[str, int], count: int = 8) -> str:
    """The dearest modules."""
    ordered = sorted(own.items(), key=lambda item: -item[1])[:count]
    return ", ".join(f"{name} {took / 1000:.1f}" for name, took in ordered)
