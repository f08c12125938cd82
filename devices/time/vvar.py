"""The page from which the vDSO reads the clocks, and the guest's time line that it is a part of.

The page says: at TSC `cycle_last` CLOCK_MONOTONIC was `base_ns`, and a cycle is `mult / 2^shift` ns. It is good for
`cycle_limit` cycles; then the vDSO makes the real system call, which writes the page anew.

**The time line.** While there is a page, the page *is* the guest's time: a clock_gettime that reaches the monitor
reads the TSC as the guest would and answers by the page too. So the two ways to ask can never disagree, and time
never runs backwards, neither in a thread nor between threads, as far as the CPUs' TSCs agree. What is left is at
most the difference of the TSCs at the instant of two reads (0 where the host itself uses the TSC as its clock, which
is the condition for having a page at all) and 1 ns of rounding where one page takes over from another.

**Following the host.** A refresh reads TSC and host clock together, learns the TSC's rate from the refresh before, and:

* if the old page was still good, the new one starts at exactly the time that the old one gave, with the rate bent a
  little so that the difference to the host's clock (NTP, errors of the readings: some 100 ns) shrinks to nothing;
* if the guest is far behind, or the old page was stale and nobody can have read a later time from it than the host's,
  the new page starts at the host's time;
* the guest is ahead of the host only by what it could have read already, and then runs slower.

The first page lasts 1/20 s and each further one twice as long, up to a second, so that the TSC's nominal rate is
soon replaced by the measured one. CLOCK_REALTIME, BOOTTIME and TAI are MONOTONIC plus what they differ by on the
host, MONOTONIC_RAW plus what it differed by at the start: the page has one rate for all. A step of the host's
CLOCK_REALTIME reaches the guest at the next refresh, within a second.

Rejected: answering system calls from the host's clock. It differs from the page by up to microseconds, and the
program would see its clock go back when a stale page sends it to the system call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from devices.time.abi import CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW, CLOCK_REALTIME, CLOCK_TAI, NSEC_PER_SEC
from guest.vvar import (
    VVAR_BOOTTIME,
    VVAR_MONOTONIC,
    VVAR_MONOTONIC_RAW,
    VVAR_REALTIME,
    VVAR_SYSCALL,
    VVAR_TAI,
    VVAR_TSC,
    Vvar,
    scale,
)

if TYPE_CHECKING:
    from devices.time.clock import HostClocks
    from vmm.cpu import Cpu

FIRST_LIFE_NS = NSEC_PER_SEC // 20
LIFE_NS = NSEC_PER_SEC
"""How long a page lasts, the first one and later ones; half of it is over when a system call refreshes it."""
BEND = 1 / 10
"""A page's rate differs from the measured one by at most this part."""
STEP_NS = 1_000_000
"""A guest that is this far behind is set to the host's time at once."""
NOMINAL_ERROR = 1 / 1000
"""A measured rate that differs from the nominal one by more than this part is not believed (suspend, a TSC that
jumped)."""
SHORTEST_BASELINE_NS = FIRST_LIFE_NS // 4
"""A rate is measured over at least this time."""
SAMPLES = 5
GOOD_SAMPLE_NS = 500
"""TSC and host clock are read together up to SAMPLES times, or until two TSC readings are this near."""
TSC_SLACK = 1 << 16
"""As in guest/vdso/vdso.c: a TSC that is this little below `cycle_last` means that no time has passed."""
SETTABLE = (CLOCK_REALTIME, CLOCK_TAI)
"""Clocks that may go back."""
DISTRUST = 3
"""After so many refreshes in a row at which the TSC made no sense, the page is switched off for good. (Once may be a
suspended host.)"""


class TscSource(Protocol):
    """The TSC as the guest reads it."""

    khz: int
    """Its nominal rate."""

    def read(self, cpu: Cpu) -> int:
        """What RDTSC would give on `cpu` now; called on that CPU's own thread."""


class VvarPage:
    """Writes struct vvar (guest/vdso/vvar.h) and answers by it. `view` is the frame's memory, at least sizeof(Vvar)."""

    __slots__ = (
        "_baseline",
        "_clocks",
        "_distrust",
        "_floor",
        "_host",
        "_last",
        "_life_ns",
        "_limit",
        "_mult",
        "_nominal",
        "_now",
        "_offsets",
        "_page",
        "_rate",
        "_refresh_after",
        "_shift",
        "_tsc",
    )

    def __init__(self, view: memoryview, tsc: TscSource | None, clocks: HostClocks) -> None:
        """`tsc` None: there is no TSC that the guest could use; the page sends every reader to the system call."""
        self._page = Vvar.from_buffer(view)
        self._page.mode = VVAR_SYSCALL
        self._page.resolution_ns = clocks.resolution_ns
        self._page.coarse_ns = clocks.coarse_ns
        self._clocks = clocks
        self._tsc = tsc
        self._last: int | None = None
        """cycle_last; None before the first page."""
        self._now = 0
        """CLOCK_MONOTONIC at `_last`."""
        self._floor = 0
        """A switched-off page's last time: no answer is earlier."""
        self._life_ns = FIRST_LIFE_NS
        self._limit = self._refresh_after = self._mult = self._distrust = 0
        self._host = 0
        """The host's clock at `_last`."""
        self._baseline = (0, 0)
        """TSC and host time from which the rate is measured."""
        self._offsets = {CLOCK_REALTIME: 0, CLOCK_TAI: 0, CLOCK_BOOTTIME: 0, CLOCK_MONOTONIC_RAW: 0}
        """What to add to CLOCK_MONOTONIC."""
        if tsc is not None:
            self._nominal = 1_000_000 / tsc.khz
            """ns a cycle."""
            self._rate = self._nominal
            # Head-room for the rate to be bent upwards.
            _, self._shift, _ = scale(tsc.khz * 1000 / (1 + 2 * BEND), LIFE_NS / NSEC_PER_SEC * (1 + 2 * BEND))

    # Answers

    def monotonic_locked(self, cpu: Cpu) -> int:
        """CLOCK_MONOTONIC of the guest, in ns, on the thread of `cpu`; refreshes the page when half its life is
        over."""
        tsc = self._tsc
        if tsc is None:
            now = self._clocks.monotonic_ns()
            return now if now > self._floor else self._floor
        if self._last is not None:
            delta = tsc.read(cpu) - self._last
            if 0 <= delta < self._refresh_after:
                return self._now + (delta * self._mult >> self._shift)
            if -TSC_SLACK <= delta < 0:
                return self._now
        return self.refresh_locked(cpu)

    def clock_locked(self, clock: int, cpu: Cpu) -> int:
        """CLOCK_REALTIME, TAI, BOOTTIME or MONOTONIC_RAW of the guest, in ns."""
        if self._tsc is None:
            now = self._clocks.read(clock)
            return now if clock in SETTABLE else max(now, self._floor + self._offsets[clock])
        return self.monotonic_locked(cpu) + self._offsets[clock]

    # Writing

    def refresh_locked(self, cpu: Cpu) -> int:
        """Pair TSC and host clock, and write a new page; CLOCK_MONOTONIC at that instant."""
        assert self._tsc is not None
        page = self._page
        page.seq += 1  # odd: from here on nobody reads by the old page, so nobody reads a later time from it
        try:
            tsc, host = self._sample(self._tsc, cpu)
            self._follow_host_offsets()
            self._start_page(tsc, host)
            if self._distrust >= DISTRUST:
                self._switch_off()
            else:
                self._write()
        finally:
            page.seq += 1
        return max(self._now, self._floor)

    def _sample(self, source: TscSource, cpu: Cpu) -> tuple[int, int]:
        """TSC and host's CLOCK_MONOTONIC at one instant, as near as a few tries get."""
        read, monotonic_ns = source.read, self._clocks.monotonic_ns
        good = GOOD_SAMPLE_NS / self._nominal
        best: tuple[int, int, int] | None = None
        for _ in range(SAMPLES):
            before = read(cpu)
            host = monotonic_ns()
            width = read(cpu) - before
            if best is None or width < best[0]:
                best = width, before + width // 2, host
            if width <= good:
                break
        assert best is not None
        return best[1], best[2]

    def _start_page(self, tsc: int, host: int) -> None:
        """Decide time, rate and life of the page that starts at `tsc`, when the host's clock says `host`."""
        if self._last is None:
            self._now = host
            self._baseline = tsc, host
        else:
            self._now = self._continue(tsc - self._last, host)
            self._measure(tsc, host, tsc - self._last)
            self._life_ns = min(self._life_ns * 2, LIFE_NS)
        correction = (host - self._now) / self._life_ns
        rate = self._rate * (1 + min(max(correction, -BEND), BEND))
        self._mult = round(rate * (1 << self._shift))
        self._limit = int(self._life_ns / rate)
        self._refresh_after = self._limit // 2
        self._last = tsc
        self._host = host

    def _continue(self, delta: int, host: int) -> int:
        """The time at which the new page begins, `delta` cycles after the old one."""
        if -TSC_SLACK <= delta <= self._limit:
            now = self._now + (max(delta, 0) * self._mult >> self._shift)
            return now if host - now < STEP_NS else host
        last = self._limit * self._mult >> self._shift
        if delta < 0:  # the TSC tells nothing; the host does: what the old page gives for the time that has passed
            bent = self._mult / (1 << self._shift) / self._rate * (1 + 2 * NOMINAL_ERROR)
            last = min(last, int((host - self._host) * bent) + 1)
        return max(host, self._now + last)  # nobody can have read a later time than that

    def _measure(self, tsc: int, host: int, delta: int) -> None:
        """Learn the TSC's rate since the baseline, if what it did since the last page makes sense."""
        passed = host - self._host
        if abs(delta * self._nominal - passed) > STEP_NS + passed * NOMINAL_ERROR:
            self._distrust += 1
            self._rate = self._nominal
            self._baseline = tsc, host
            return
        self._distrust = 0
        cycles, elapsed = tsc - self._baseline[0], host - self._baseline[1]
        if elapsed >= SHORTEST_BASELINE_NS:
            self._baseline = tsc, host
            if abs(elapsed / cycles / self._nominal - 1) < NOMINAL_ERROR:
                self._rate = elapsed / cycles

    def _follow_host_offsets(self) -> None:
        """What the other clocks differ by from CLOCK_MONOTONIC. A change smaller than the two readings' distance is
        none: the clocks of the host keep their distance exactly, but for steps."""
        read, monotonic_ns = self._clocks.read, self._clocks.monotonic_ns
        offsets = self._offsets
        followed = (CLOCK_REALTIME, CLOCK_BOOTTIME) if self._last is not None else (*offsets,)
        for clock in followed:
            before = monotonic_ns()
            value = read(clock)
            after = monotonic_ns()
            if not value - after <= offsets[clock] <= value - before:
                offsets[clock] = value - (before + after) // 2
        leap_seconds = round((read(CLOCK_TAI) - read(CLOCK_REALTIME)) / NSEC_PER_SEC)
        offsets[CLOCK_TAI] = offsets[CLOCK_REALTIME] + leap_seconds * NSEC_PER_SEC

    def _write(self) -> None:
        page = self._page
        base = page.base_ns
        offsets = self._offsets
        page.cycle_last = self._last
        page.cycle_limit = self._limit
        page.mult = self._mult
        page.shift = self._shift
        base[VVAR_MONOTONIC] = self._now
        base[VVAR_REALTIME] = self._now + offsets[CLOCK_REALTIME]
        base[VVAR_MONOTONIC_RAW] = self._now + offsets[CLOCK_MONOTONIC_RAW]
        base[VVAR_BOOTTIME] = self._now + offsets[CLOCK_BOOTTIME]
        base[VVAR_TAI] = self._now + offsets[CLOCK_TAI]
        page.mode = VVAR_TSC

    def _switch_off(self) -> None:
        """The TSC is of no use: from now on every reader makes the system call."""
        self._page.mode = VVAR_SYSCALL
        self._tsc = None
        self._floor = self._now
