"""Runs programs that time themselves, in several ways by turns, and keeps to the time that there is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from tests.bench.report import percentile
from tests.harness import ACCELERATORS, program

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.bench.report import Report
    from tests.bench.ways import Way

LINE = re.compile(r"([a-z_0-9.]+) (\d[-+.e\d]*) (\w+)")
EXCEPTION = re.compile(r"[\w.]+(Error|Exception|Unavailable)\b")
RUN_TIMEOUT = 40.0
SLOW = 2


class Failed(Exception):
    """A command that did not give its figures; the text says why."""


class Samples:
    """What a program's runs printed: by way and name, one value a run."""

    def __init__(self) -> None:
        self._taken: dict[str, dict[str, list[float]]] = {}

    def add(self, way: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._taken.setdefault(name, {}).setdefault(way, []).append(value)

    def all(self, name: str, scale: float = 1) -> dict[str, list[float]]:
        """Every run's value of `name` by way, times `scale`."""
        return {way: [value * scale for value in values] for way, values in self._taken.get(name, {}).items()}

    def best(self, name: str, scale: float = 1) -> dict[str, float]:
        """The smallest value of each way."""
        return {way: min(values) for way, values in self.all(name, scale).items()}

    def median(self, name: str) -> dict[str, float]:
        return {way: percentile(values, 50) for way, values in self.all(name).items()}


class Session:
    """One run of the benchmarks."""

    def __init__(
        self, ways: Sequence[Way], report: Report, env: Mapping[str, str], *, quick: bool, seconds: float
    ) -> None:
        self.ways = list(ways)
        self.report = report
        self.env = dict(env)
        self.quick = quick
        self.repetitions = 2 if quick else 5
        self.milliseconds = "100" if quick else "300"
        """How long a program goes on measuring, as its argument."""
        self._deadline = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until the run must be over. Raises Failed when it must."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Failed("out of time")
        return left

    def accelerators(self) -> list[str]:
        return [way.name for way in self.ways if way.name in ACCELERATORS]

    def sample(self, name: str, *arguments: str, without: Iterable[str] = (), more: Iterable[Way] = ()) -> Samples:
        """Run guest/programs/NAME.c by turns in every way but those `without`, and in `more`; in Qiling SLOW times."""
        samples = Samples()
        ways = [*(way for way in self.ways if way.name not in without), *more]
        for turn in range(self.repetitions):
            for way in list(ways):
                if way.name == "qiling" and turn >= SLOW:
                    continue
                try:
                    samples.add(way.name, self.run(way.command(program(name), arguments)))
                except Failed as failure:
                    self.report.note(f"{way.name}: {name}: {failure}")
                    ways.remove(way)
        return samples

    def run(self, command: Sequence[str], timeout: float = RUN_TIMEOUT) -> dict[str, float]:
        """Run a command to its end and return the figures it printed on stderr. Raises Failed."""
        errors = self.output(command, timeout, stream="stderr")
        values = parse(errors)
        if not values:
            raise Failed("it printed no figures")
        return values

    def output(self, command: Sequence[str], timeout: float = RUN_TIMEOUT, *, stream: str = "stdout") -> str:
        """Run a command to its end and return what it wrote to one stream. Raises Failed."""
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if stream == "stdout" else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self.env,
            start_new_session=True,
        )
        with child:
            try:
                output, errors = child.communicate(timeout=min(timeout, self.left()))
            except subprocess.TimeoutExpired as expired:
                raise Failed(f"no end after {expired.timeout:.0f} s") from expired
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
        if child.returncode:
            raise Failed(f"status {child.returncode}: {reason(errors.decode(errors='replace'))}")
        written: bytes = output if stream == "stdout" else errors
        return written.decode(errors="replace")


def reason(errors: str) -> str:
    """The line that tells most of what a command wrote on stderr: a traceback's exception, or else the last one."""
    lines = [line for line in errors.splitlines() if line.strip()] or ["it said nothing"]
    exceptions = [line for line in lines if EXCEPTION.match(line)]
    return (exceptions or lines)[-1].strip()


def parse(text: str) -> dict[str, float]:
    """The lines `name value unit` of a program's output; others are a peer's chatter."""
    values = {}
    for line in text.splitlines():
        found = LINE.fullmatch(line.strip())
        if found:
            values[found[1]] = float(found[2])
    return values
