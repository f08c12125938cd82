"""--stats: counts and times of a run, kept only when asked for (a plain run pays nothing)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from devices.errors import SysError
from devices.table import TABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.bus import Declaration, Handler
    from devices.task.task import Task
    from vmm.cpu import Exit


class CallStats:
    """Of one system call: how often, how often it failed, host time in ns (waiting included)."""

    __slots__ = ("count", "errors", "name", "total_ns")

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = self.errors = self.total_ns = 0


class Stats:
    """What a machine did."""

    def __init__(self) -> None:
        self.calls: dict[str, CallStats] = {}
        self.exits: dict[str, int] = {}
        self.tasks = 0
        """Tasks that were ever started."""

    def counting(self, declaration: Declaration, call: Handler) -> Handler:
        """`call`, counted and timed."""
        stats = self.calls.setdefault(declaration.name, CallStats(declaration.name))
        now = time.perf_counter_ns

        def counted(task: Task, registers: memoryview) -> int:
            stats.count += 1
            start = now()
            try:
                result = call(task, registers)
            except SysError:
                stats.errors += 1
                raise
            finally:
                stats.total_ns += now() - start
            if result < 0:
                stats.errors += 1
            return result

        return counted

    def counting_run(self, run: Callable[[], Exit]) -> Callable[[], Exit]:
        """`Cpu.run`, with its exits counted by reason."""
        exits = self.exits

        def counted() -> Exit:
            stop = run()
            name = type(stop).__name__
            exits[name] = exits.get(name, 0) + 1
            return stop

        return counted

    def report(self, unknown: dict[int, int]) -> str:
        """The table that --stats prints; `unknown` counts calls by number that are not served."""
        lines = [f"{'calls':>9} {'errors':>7} {'total ms':>10} {'mean us':>9}  system call"]
        for call in sorted(self.calls.values(), key=lambda c: -c.total_ns):
            if call.count:
                mean = call.total_ns / call.count / 1e3
                lines.append(f"{call.count:9} {call.errors:7} {call.total_ns / 1e6:10.3f} {mean:9.2f}  {call.name}")
        for number, count in sorted(unknown.items()):
            name = TABLE[number].name if number in TABLE else f"number {number}"
            lines.append(f"{count:9} {count:7} {'-':>10} {'-':>9}  {name} (ENOSYS)")
        lines.append("exits: " + (", ".join(f"{name} {n}" for name, n in sorted(self.exits.items())) or "none"))
        lines.append(f"tasks: {self.tasks}")
        return "\n".join(lines)

    def as_dict(self, unknown: dict[int, int]) -> dict[str, Any]:
        """The same as plain data, for programs."""
        return {
            "calls": {
                c.name: {"count": c.count, "errors": c.errors, "total_ns": c.total_ns}
                for c in self.calls.values()
                if c.count
            },
            "unknown": dict(unknown),
            "exits": dict(self.exits),
            "tasks": self.tasks,
        }
