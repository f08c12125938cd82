"""The clock page: continuous, monotonic, near the host's clock, and safe to read while it is written."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.time import abi
from devices.time.clock import HostClocks
from devices.time.vvar import DISTRUST, FIRST_LIFE_NS, LIFE_NS, STEP_NS, TSC_SLACK, VvarPage
from guest.vvar import (
    VVAR_BOOTTIME,
    VVAR_MONOTONIC,
    VVAR_MONOTONIC_RAW,
    VVAR_REALTIME,
    VVAR_SYSCALL,
    VVAR_TAI,
    VVAR_TSC,
    Vvar,
)
from tests import harness
from vmm.memory.atomics import read_tsc

if TYPE_CHECKING:
    from vmm.cpu import Cpu

CPU = cast("Cpu", None)
KHZ = 2_400_000
SEC = 10**9
START = 1000 * SEC
YEAR = 365 * 86400 * SEC


class World(HostClocks):
    """A host whose clock and TSC advance as the test says; each look at one of them takes some time itself."""

    def __init__(self, khz: int = KHZ, error_ppm: float = 0.0) -> None:
        self.khz = khz
        self.error_ppm = error_ppm
        """How much faster than nominal the TSC really runs."""
        self.ns = float(START)
        self.cycles = 7e15
        self.offset = 0
        """Added to the TSC: another CPU, or a jump."""
        self.wall = 50 * YEAR
        self.suspended = 0
        self.raw = 12345
        self.leap_seconds = 37
        self.resolution_ns = 1
        self.coarse_ns = 4_000_000
        self.monotonic_ns = self._monotonic
        self.read = self._read
        self.tsc = Tsc(self)

    def advance(self, ns: float) -> None:
        self.ns += ns
        self.cycles += ns * self.khz * (1 + self.error_ppm / 1e6) / 1e6

    def _monotonic(self) -> int:
        self.advance(40)
        return int(self.ns)

    def _read(self, clock: int) -> int:
        self.advance(40)
        extra = {
            abi.CLOCK_REALTIME: self.wall,
            abi.CLOCK_TAI: self.wall + self.leap_seconds * SEC,
            abi.CLOCK_BOOTTIME: self.suspended,
            abi.CLOCK_MONOTONIC_RAW: self.raw,
        }
        return int(self.ns) + extra[clock]


class Tsc:
    """TscSource of a World."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.khz = world.khz

    def read(self, cpu: Cpu) -> int:
        self.world.advance(30)
        return int(self.world.cycles) + self.world.offset


class Guest:
    """A page, and a program that reads it as the vDSO does (read_clock() of guest/vdso/vdso.c)."""

    def __init__(self, world: World, tsc: bool = True) -> None:
        self.world = world
        memory = bytearray(4096)
        self.page = VvarPage(memoryview(memory), world.tsc if tsc else None, world)
        self.vvar = Vvar.from_buffer(memory)

    def vdso(self, clock: int = VVAR_MONOTONIC) -> int | None:
        """None: the program has to make the system call."""
        page: Any = self.vvar
        if page.seq & 1 or page.mode != VVAR_TSC:
            return None
        delta = self.world.tsc.read(CPU) - page.cycle_last
        if delta < -TSC_SLACK or delta > page.cycle_limit:
            return None
        product = max(delta, 0) * page.mult
        assert product < 1 << 64
        return int(page.base_ns[clock] + (product >> page.shift))

    def call(self) -> int:
        self.world.advance(2000)
        now = self.page.monotonic_locked(CPU)
        self.world.advance(2000)
        return now

    def now(self) -> int:
        found = self.vdso()
        return self.call() if found is None else found


def test_the_first_call_makes_a_page_that_says_the_hosts_time() -> None:
    world = World()
    guest = Guest(world)
    assert guest.vdso() is None
    now = guest.call()
    assert abs(now - (world.ns - 2000)) < 1000
    assert guest.vvar.seq == 2
    read = guest.vdso()
    assert read is not None
    assert abs(read - world.ns) < 500
    assert guest.vvar.coarse_ns == world.coarse_ns
    assert guest.vvar.resolution_ns == 1


def test_without_a_tsc_the_host_answers() -> None:
    world = World()
    guest = Guest(world, tsc=False)
    assert abs(guest.call() - world.ns) < 3000
    assert guest.vvar.mode == VVAR_SYSCALL
    for clock in (abi.CLOCK_REALTIME, abi.CLOCK_BOOTTIME, abi.CLOCK_TAI, abi.CLOCK_MONOTONIC_RAW):
        assert guest.page.clock_locked(clock, CPU) == world._read(clock) - 40


def test_the_other_clocks_keep_their_distance() -> None:
    world = World()
    world.suspended = 77 * SEC
    guest = Guest(world)
    for _ in range(20):
        guest.call()
        base = list(guest.vvar.base_ns)
        mono = base[VVAR_MONOTONIC]
        assert abs(base[VVAR_REALTIME] - mono - world.wall) < 500
        assert base[VVAR_TAI] - base[VVAR_REALTIME] == 37 * SEC
        assert abs(base[VVAR_BOOTTIME] - mono - world.suspended) < 500
        assert abs(base[VVAR_MONOTONIC_RAW] - mono - world.raw) < 500
        before = guest.page.clock_locked(abi.CLOCK_REALTIME, CPU)
        assert abs(before - world.ns - world.wall) < 3000
        world.advance(SEC)


def test_a_step_of_the_hosts_realtime_is_followed() -> None:
    world = World()
    guest = Guest(world)
    guest.call()
    world.wall -= 3600 * SEC
    world.leap_seconds = 38
    world.advance(LIFE_NS)
    guest.call()
    base = guest.vvar.base_ns
    assert abs(base[VVAR_REALTIME] - base[VVAR_MONOTONIC] - world.wall) < 500
    assert base[VVAR_TAI] - base[VVAR_REALTIME] == 38 * SEC
    assert abs(base[VVAR_MONOTONIC] - world.ns) < 3000


@pytest.mark.parametrize("error_ppm", [-400, -50, 0, 3, 50, 400])
def test_a_busy_guest_stays_near_the_host(error_ppm: float) -> None:
    """A program that reads the clock every ms: the rate is learned from the first pages, and no error stays."""
    world = World(error_ppm=error_ppm)
    guest = Guest(world)
    worst_first = worst_later = 0.0
    last = 0
    for step in range(10_000):
        now = guest.now()
        assert now >= last
        last = now
        error = abs(now - world.ns)
        if step < 100:
            worst_first = max(worst_first, error)
        elif step > 2000:
            worst_later = max(worst_later, error)
        world.advance(SEC / 1000)
    assert worst_first < 4000 + abs(error_ppm) / 1e6 * FIRST_LIFE_NS * 2
    assert worst_later < 5000  # of which 4000 are the system call's own time


def test_a_changing_rate_is_followed() -> None:
    """NTP on the host changes the rate by 100 ppm: the guest is soon as near as before."""
    world = World()
    guest = Guest(world)
    for step in range(20_000):
        if step == 10_000:
            world.error_ppm = 100
        now = guest.now()
        error = abs(now - world.ns)
        if step < 10_000 or step > 13_000:
            assert step < 2000 or error < 5000, step
        else:
            assert error < 4000 + 1.5 * LIFE_NS * 100e-6
        world.advance(SEC / 1000)


def test_an_idle_guest_wakes_up_to_the_hosts_time() -> None:
    world = World(error_ppm=30)
    guest = Guest(world)
    guest.call()
    for _ in range(5):
        world.advance(3600 * SEC)
        assert guest.vdso() is None
        assert abs(guest.call() - world.ns) < 3000


def test_pages_live_longer_as_the_rate_is_known() -> None:
    world = World()
    guest = Guest(world)
    lives = []
    for _ in range(8):
        guest.call()
        lives.append(guest.vvar.cycle_limit / world.khz / 1000)
        world.advance(2 * SEC)
    assert lives == sorted(lives)
    assert lives[0] == pytest.approx(FIRST_LIFE_NS / SEC, rel=0.001)
    assert lives[-1] == pytest.approx(LIFE_NS / SEC, rel=0.001)


def test_a_system_call_refreshes_only_when_half_of_the_life_is_over() -> None:
    world = World()
    guest = Guest(world)
    guest.call()
    world.advance(FIRST_LIFE_NS * 0.4)
    guest.call()
    assert guest.vvar.seq == 2
    world.advance(FIRST_LIFE_NS * 0.2)
    guest.call()
    assert guest.vvar.seq == 4


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["vdso", "call", "now", "refresh"]),
        st.one_of(
            st.integers(0, 2000), st.integers(0, 50_000_000), st.integers(0, 3 * SEC), st.integers(0, 10**5 * SEC)
        ),
        st.floats(-300, 300),
    ),
    max_size=60,
)


@given(ACTIONS, st.integers(100_000, 5_000_000), st.floats(-300, 300))
def test_time_never_goes_back_and_never_far_off(
    actions: list[tuple[str, int, float]], khz: int, error_ppm: float
) -> None:
    """Whatever is read in whatever way after whatever time, by a TSC whose rate wanders."""
    world = World(khz, error_ppm)
    guest = Guest(world)
    last = 0
    for action, wait, error_ppm in actions:
        world.error_ppm = error_ppm
        world.advance(wait)
        if action == "refresh":
            guest.page.refresh_locked(CPU)
            continue
        found = guest.vdso() if action == "vdso" else guest.call() if action == "call" else guest.now()
        if found is not None:
            assert found >= last
            last = found
            # Pages of at most a second, whose rate is off by what the TSC's wanders, twice (measured, then changed).
            assert abs(found - world.ns) < 5000 + 2 * LIFE_NS * 1200e-6
        assert guest.vvar.seq % 2 == 0


@given(st.lists(st.tuples(st.integers(0, SEC // 2), st.booleans()), min_size=1, max_size=40))
def test_a_new_page_begins_where_the_old_one_is(steps: list[tuple[int, bool]]) -> None:
    """Continuity to the ns: at the instant at which the new page begins, the old one says the same."""
    world = World(error_ppm=80)
    guest = Guest(world)
    guest.call()
    for wait, fast in steps:
        world.error_ppm = 150 if fast else -150
        world.advance(wait)
        old = (guest.vvar.cycle_last, guest.vvar.mult, guest.vvar.shift, guest.vvar.base_ns[VVAR_MONOTONIC])
        limit = guest.vvar.cycle_limit
        guest.page.refresh_locked(CPU)
        delta = guest.vvar.cycle_last - old[0]
        if delta <= limit:
            by_old = old[3] + (delta * old[1] >> old[2])
            assert guest.vvar.base_ns[VVAR_MONOTONIC] == by_old
        assert guest.vvar.cycle_limit * guest.vvar.mult < 1 << 64


def test_a_guest_that_is_ahead_waits_for_the_host() -> None:
    """The TSC runs a tenth too fast for a while (no real one does): slower from then on, never back."""
    world = World()
    guest = Guest(world)
    guest.call()
    world.error_ppm = 1e5
    last = 0
    for step in range(4000):
        now = guest.now()
        assert now >= last
        last = now
        if step == 30:
            world.error_ppm = 0
            assert now - world.ns > 1_000_000
        world.advance(SEC / 1000)
    assert abs(last - world.ns) < SEC / 1000 + 5000


def test_a_guest_that_is_far_behind_is_set_at_once() -> None:
    world = World()
    guest = Guest(world)
    guest.call()
    world.advance(FIRST_LIFE_NS / 2)
    world.ns += 10 * STEP_NS  # the TSC stood still for a while
    assert abs(guest.call() - world.ns) < 3000


@pytest.mark.parametrize("offset", [-1, -100, -TSC_SLACK + 1000])
def test_another_cpus_tsc_may_be_a_little_behind(offset: int) -> None:
    world = World()
    guest = Guest(world)
    first = guest.call()
    world.offset = offset
    seq = guest.vvar.seq
    for _ in range(10):
        now = guest.call()
        assert first <= now <= world.ns + 500
    assert guest.vvar.seq == seq


def test_a_tsc_that_went_back_does_not_take_time_along() -> None:
    """As after a suspend of the host that reset it."""
    world = World()
    guest = Guest(world)
    for _ in range(10):
        guest.now()
        world.advance(SEC / 10)
    before = guest.now()
    world.offset = -int(world.cycles)
    world.advance(SEC / 10)
    after = guest.now()
    assert before <= after <= world.ns + SEC / 200
    for _ in range(10):
        world.advance(SEC)
        now = guest.now()
        assert now >= after
        after = now
    assert abs(after - world.ns) < 5000


def test_a_tsc_that_makes_no_sense_is_given_up() -> None:
    """Two CPUs whose TSCs have nothing to do with each other, by turns."""
    world = World()
    guest = Guest(world)
    last = 0
    for step in range(8 * DISTRUST):
        world.offset = 10**12 if step % 2 else 0
        now = guest.call()
        assert now >= last
        last = now
        world.advance(SEC / 1000)
    assert guest.vvar.mode == VVAR_SYSCALL
    assert guest.vdso() is None
    world.advance(2 * SEC)
    assert abs(guest.call() - world.ns) < 3000
    assert guest.page.clock_locked(abi.CLOCK_BOOTTIME, CPU) >= last


# On the real TSC


class HostTsc:
    """The host's own TSC, calibrated over a moment."""

    def __init__(self) -> None:
        start, began = read_tsc(), time.monotonic_ns()
        while time.monotonic_ns() - began < 20_000_000:
            pass
        self.khz = round((read_tsc() - start) / (time.monotonic_ns() - began) * 1e6)

    def read(self, cpu: Cpu) -> int:
        return read_tsc()


CLOCKSOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
needs_tsc = pytest.mark.skipif(
    CLOCKSOURCE.read_text().strip() != "tsc", reason="the host does not use its TSC as a clock"
)


@needs_tsc
def test_on_the_host_it_agrees_with_the_clock() -> None:
    host = HostClocks()
    page = VvarPage(memoryview(bytearray(4096)), HostTsc(), host)
    worst = last = 0
    until = time.monotonic() + 0.7
    while time.monotonic() < until:
        before = time.monotonic_ns()
        now = page.monotonic_locked(CPU)
        after = time.monotonic_ns()
        assert now >= last
        last = now
        worst = max(worst, before - now, now - after)
    assert worst < 100_000


@needs_tsc
def test_no_thread_sees_time_go_back_while_pages_are_written(tmp_path: Path) -> None:
    """The vDSO's code on four threads, against refreshes as fast as they can be made."""
    source = harness.ROOT / "tests/unit/devices/time/vdso_race.c"
    library = harness.compile_c(source, tmp_path / "vdso_race.so", "-shared", "-fPIC", "-std=gnu11")
    race = ctypes.CDLL(str(library))
    race.latest_read.restype = ctypes.c_uint64
    race.told.argtypes = (ctypes.c_uint64,)
    memory = mmap.mmap(-1, 4096)
    page = VvarPage(memoryview(memory), HostTsc(), HostClocks())
    page.refresh_locked(CPU)
    address = ctypes.c_void_p(ctypes.addressof(Vvar.from_buffer(memory)))
    threads = [threading.Thread(target=race.watch, args=(address,)) for _ in range(4)]  # without the GIL
    for thread in threads:
        thread.start()
    refreshes = called_back = 0
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        read_before = race.latest_read()
        told = page.refresh_locked(CPU) if refreshes % 2 else page.monotonic_locked(CPU)
        called_back += told < read_before
        race.told(told)
        refreshes += 1
    result = (ctypes.c_ulong * 3)()
    race.finish(result)
    for thread in threads:
        thread.join()
    reads, _refused, backwards = result
    assert reads > 10_000
    assert refreshes > 1000
    assert backwards == 0
    assert called_back == 0
