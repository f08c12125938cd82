"""The host's time-stamp counter: may the guest's clocks be made of it, and how fast is it?"""

from __future__ import annotations

import time

from vmm.memory.atomics import read_tsc

CLOCKSOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"


def host_trusts_tsc() -> bool:
    """Does the host make its own clocks of the TSC: same on all CPUs, constant rate, never stopped?"""
    try:
        with open(CLOCKSOURCE, encoding="ascii") as file:
            return file.read().strip() == "tsc"
    except OSError:
        return False


class Stopwatch:
    """Measures the TSC's frequency between its making and `khz()`; after 5 ms it is right to some 1/10,000."""

    def __init__(self) -> None:
        self._tsc, self._ns = sample()

    def khz(self) -> int:
        """kHz, rounded."""
        tsc, ns = sample()
        return round((tsc - self._tsc) * 1_000_000 / (ns - self._ns))


def sample() -> tuple[int, int]:
    """TSC and CLOCK_MONOTONIC in ns at one instant: of three tries the one that took the least."""
    tries = []
    for _ in range(3):
        before = read_tsc()
        ns = time.monotonic_ns()
        after = read_tsc()
        tries.append((after - before, (before + after) // 2, ns))
    _, tsc, ns = min(tries)
    return tsc, ns
