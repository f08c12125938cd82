"""What a run in the lab comes to: an exit status and a line."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from tests.lab.channel import Channel, End, Failure, Ready, panic_line, pytest_counts
from tests.lab.qemu import CPUS

TIMED_OUT, LAB_FAILED = 124, 125


class Outcome(NamedTuple):
    """How a run ended: the exit status and one line about it."""

    status: int
    line: str


class Task(NamedTuple):
    """What was run: the command, and whether it is the lab's own choice of tests."""

    command: Sequence[str]
    by_default: bool

    def __str__(self) -> str:
        if self.by_default:
            return "the guest tests"
        text = " ".join(shlex.join(self.command).split())
        return text if len(text) <= 60 else f"{text[:57]}..."


class Times(NamedTuple):
    """Seconds of the host's clock: until the command started (None: it did not), and in all."""

    boot: float | None
    total: float


def timed_out(task: Task, times: Times) -> Outcome:
    """The line for a run that had to be killed."""
    if times.boot is None:
        return Outcome(LAB_FAILED, f"the lab's kernel was not up after {times.total:.0f} s: killed")
    return Outcome(TIMED_OUT, f"{task}: not ended after {times.total:.0f} s: killed")


def failure(channel: Channel, console: str, messages: str, qemu_status: int | None) -> Outcome | None:
    """Why the command did not run to its end where it should; None when it did.

    console is what the lab's kernel printed, messages what QEMU itself printed.
    """
    failed, ready = channel.last(Failure), channel.last(Ready)
    if failed is not None:
        return Outcome(LAB_FAILED, failed.reason)
    if ready is not None and not ready.nested_paging:
        return Outcome(LAB_FAILED, f"kvm_amd runs without nested paging (npt={ready.npt}): this is no hardware KVM")
    if ready is not None and channel.last(End) is not None:
        return None
    panic = panic_line(console)
    if panic is not None:
        return Outcome(LAB_FAILED, f"the lab's kernel gave up: {panic}")
    if qemu_status:
        last = messages.strip().splitlines()[-1:] or ["no message"]
        return Outcome(LAB_FAILED, f"QEMU ended with status {qemu_status}: {last[0]}")
    return Outcome(LAB_FAILED, "the lab's machine stopped before the command ended")


def summary(task: Task, channel: Channel, times: Times, qemu: str) -> Outcome:
    """The line for a command that ended."""
    end, ready = channel.last(End), channel.last(Ready)
    assert end is not None
    assert ready is not None
    counts = pytest_counts(channel.output.decode(errors="replace"))
    what = ", ".join(f"{count} {word}" for word, count in counts.items()) if counts else f"status {end.status}"
    line = (
        f"{task}: {what} in {end.uptime - ready.uptime:.1f} s (boot {times.boot:.1f} s, {times.total:.1f} s in all);"
        f" Linux {ready.release}, kvm_amd with nested paging, {CPUS} CPUs, under QEMU {qemu}"
    )
    if task.by_default and end.status == 0 and not (counts or {}).get("passed"):
        return Outcome(LAB_FAILED, f"{line}: no test passed, so this shows nothing")
    return Outcome(end.status, line)
