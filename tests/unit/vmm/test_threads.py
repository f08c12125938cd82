"""vmm.threads: the limit, dedication, give-back and reuse, names, affinity."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.vmm.threads_support import LONG, Gate, Pool, checked_pool, eventually, os_name, thread_ids
from vmm.threads import (
    Counts,
    Job,
    Runtime,
    current_job,
    dedicate_os_thread,
    kick,
    set_affinity,
    undedicate_os_thread,
)
from vmm.threads.worker import Worker


@pytest.fixture
def pool() -> Iterator[Pool]:
    with checked_pool() as made:
        yield made


def dedicated_at(gate: Gate) -> int:
    dedicate_os_thread()
    return gate.enter()


# The limit


def test_at_most_limit_jobs_run_and_the_others_wait_in_order(pool: Pool) -> None:
    runtime = pool.runtime(2)
    gates = [pool.gate() for _ in range(5)]
    jobs = [runtime.spawn(gate.enter) for gate in gates]
    gates[0].wait()
    gates[1].wait()
    assert runtime.counts() == Counts(limit=2, running=2, dedicated=0, queued=3, idle=0, threads=2)
    for ended, started in ((1, 2), (0, 3), (3, 4)):
        gates[ended].open()
        jobs[ended].join(LONG)
        gates[started].wait()
        assert [gate.reached() for gate in gates].count(True) == started + 1
        assert runtime.counts().threads == 2


def test_limit_one_is_serial(pool: Pool) -> None:
    runtime = pool.runtime(1)
    order: list[int] = []
    jobs = [runtime.spawn(order.append, i) for i in range(50)]
    for job in jobs:
        job.join(LONG)
    assert order == list(range(50))


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_must_be_positive(limit: int) -> None:
    with pytest.raises(ValueError, match="limit"):
        Runtime(limit)


@pytest.mark.parametrize("idle_seconds", [-1.0, float("inf"), float("nan")])
def test_idle_time_must_be_a_time(idle_seconds: float) -> None:
    with pytest.raises(ValueError, match="idle_seconds"):
        Runtime(1, idle_seconds=idle_seconds)


# Dedication


def test_a_dedicated_job_does_not_count(pool: Pool) -> None:
    runtime = pool.runtime(1)
    first, second, third = pool.gate(), pool.gate(), pool.gate()
    runtime.spawn(dedicated_at, first)
    first.wait()
    runtime.spawn(second.enter)
    second.wait()
    runtime.spawn(third.enter)
    assert runtime.counts() == Counts(limit=1, running=1, dedicated=1, queued=1, idle=0, threads=2)
    assert len({first.native_id, second.native_id}) == 2


def test_dedicating_starts_the_job_that_waits(pool: Pool) -> None:
    runtime = pool.runtime(1)
    before, after, waiting = pool.gate(), pool.gate(), pool.gate()

    def job() -> None:
        before.enter()
        dedicated_at(after)

    runtime.spawn(job)
    before.wait()
    runtime.spawn(waiting.enter)
    assert runtime.counts().queued == 1
    before.open()
    after.wait()
    waiting.wait()
    assert runtime.counts() == Counts(limit=1, running=1, dedicated=1, queued=0, idle=0, threads=2)


def test_calls_nest(pool: Pool) -> None:
    runtime = pool.runtime(1)

    def job() -> list[tuple[int, int]]:
        seen = []
        for call in (dedicate_os_thread, dedicate_os_thread, undedicate_os_thread, undedicate_os_thread):
            call()
            counts = runtime.counts()
            seen.append((counts.running, counts.dedicated))
        return seen

    assert runtime.spawn(job).join(LONG) == [(0, 1), (0, 1), (0, 1), (1, 0)]
    assert runtime.counts() == Counts(limit=1, running=0, dedicated=0, queued=0, idle=1, threads=1)


def test_one_undedicate_too_many_is_an_error_and_changes_nothing(pool: Pool) -> None:
    runtime = pool.runtime(1)

    def job() -> Counts:
        dedicate_os_thread()
        undedicate_os_thread()
        with pytest.raises(RuntimeError, match="'over' is not dedicated"):
            undedicate_os_thread()
        return runtime.counts()

    assert runtime.spawn(job, name="over").join(LONG) == Counts(1, running=1, dedicated=0, queued=0, idle=0, threads=1)


def test_outside_of_a_job_is_an_error(pool: Pool) -> None:
    def check() -> None:
        assert current_job() is None
        for call in (dedicate_os_thread, undedicate_os_thread, lambda: set_affinity({0})):
            with pytest.raises(RuntimeError, match="outside of a job"):
                call()

    def job() -> None:
        errors: list[BaseException] = []

        def other() -> None:
            try:
                check()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=other)  # a thread that a job starts is not the job's
        thread.start()
        thread.join(LONG)
        assert not errors, errors

    check()
    pool.runtime(1).spawn(job).join(LONG)


def test_current_job(pool: Pool) -> None:
    runtime = pool.runtime(1)
    jobs = [runtime.spawn(current_job) for _ in range(2)]
    assert [job.join(LONG) for job in jobs] == jobs


def test_giving_back_may_exceed_the_limit_and_then_nothing_starts(pool: Pool) -> None:
    runtime = pool.runtime(1)
    vcpus = [(pool.gate(), pool.gate()) for _ in range(2)]

    def vcpu(busy: Gate, tidying: Gate) -> None:
        dedicated_at(busy)
        undedicate_os_thread()
        tidying.enter()

    jobs = [runtime.spawn(vcpu, *gates) for gates in vcpus]
    ordinary, queued = pool.gate(), pool.gate()
    first = runtime.spawn(ordinary.enter)
    for busy, _ in vcpus:
        busy.wait()
    ordinary.wait()
    runtime.spawn(queued.enter)
    for busy, tidying in vcpus:  # does not wait for a slot: both get there while the ordinary job still runs
        busy.open()
        tidying.wait()
    assert runtime.counts() == Counts(limit=1, running=3, dedicated=0, queued=1, idle=0, threads=3)
    ordinary.open()
    first.join(LONG)
    assert runtime.counts() == Counts(limit=1, running=2, dedicated=0, queued=1, idle=1, threads=3)
    vcpus[0][1].open()
    jobs[0].join(LONG)
    assert runtime.counts() == Counts(limit=1, running=1, dedicated=0, queued=1, idle=2, threads=3)
    assert not queued.reached()
    vcpus[1][1].open()
    jobs[1].join(LONG)
    queued.wait()
    assert queued.native_id == vcpus[1][1].native_id, "the thread that made room serves the waiting job itself"


def test_spawning_a_dedicated_job_needs_no_slot(pool: Pool) -> None:
    runtime = pool.runtime(1)
    ordinary, queued, vcpu = pool.gate(), pool.gate(), pool.gate()
    runtime.spawn(ordinary.enter)
    runtime.spawn(queued.enter)

    def job() -> None:
        vcpu.enter()
        undedicate_os_thread()
        with pytest.raises(RuntimeError, match="not dedicated"):
            undedicate_os_thread()

    dedicated = runtime.spawn(job, dedicated=True)
    vcpu.wait()
    assert runtime.counts() == Counts(limit=1, running=1, dedicated=1, queued=1, idle=0, threads=2)
    vcpu.open()
    dedicated.join(LONG)
    assert runtime.counts() == Counts(limit=1, running=1, dedicated=0, queued=1, idle=1, threads=2)


# Threads: reuse and end


def test_a_thread_serves_the_next_job(pool: Pool) -> None:
    runtime = pool.runtime(3)
    assert len({runtime.spawn(threading.get_native_id).join(LONG) for _ in range(20)}) == 1


def test_a_given_back_thread_serves_the_next_job(pool: Pool) -> None:
    runtime = pool.runtime(3)

    def vcpu() -> int:
        dedicate_os_thread()
        undedicate_os_thread()
        return threading.get_native_id()

    ids = {runtime.spawn(vcpu).join(LONG) for _ in range(20)} | {runtime.spawn(threading.get_native_id).join(LONG)}
    assert len(ids) == 1


def test_the_thread_that_became_idle_last_is_taken_first(pool: Pool) -> None:
    runtime = pool.runtime(3)
    gates = [pool.gate() for _ in range(3)]
    jobs = [runtime.spawn(gate.enter) for gate in gates]
    for gate in gates:
        gate.wait()
    for i in (1, 0, 2):
        gates[i].open()
        jobs[i].join(LONG)
    again = [pool.gate() for _ in range(3)]
    for gate in again:
        runtime.spawn(gate.enter)
        gate.wait()
    assert [gate.native_id for gate in again] == [gates[i].native_id for i in (2, 0, 1)]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_job_that_ends_dedicated_ends_its_thread(pool: Pool, depth: int) -> None:
    runtime = pool.runtime(1)

    def vcpu() -> int:
        for _ in range(depth):
            dedicate_os_thread()
        if depth > 1:
            undedicate_os_thread()
        return threading.get_native_id()

    native_id = runtime.spawn(vcpu).join(LONG)
    eventually(lambda: native_id not in thread_ids(), f"the end of thread {native_id}")
    assert runtime.counts() == Counts(limit=1, running=0, dedicated=0, queued=0, idle=0, threads=0)
    assert runtime.spawn(threading.get_native_id).join(LONG) != native_id


def test_thread_state_ends_with_a_thread_that_ends_dedicated(pool: Pool) -> None:
    runtime = pool.runtime(1)

    def vcpu() -> None:
        dedicate_os_thread()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        set_affinity({min(runtime.cpus)})

    def state() -> tuple[set[Any], set[int]]:
        return signal.pthread_sigmask(signal.SIG_BLOCK, ()), os.sched_getaffinity(0)

    before = runtime.spawn(state).join(LONG)
    runtime.spawn(vcpu).join(LONG)
    assert runtime.spawn(state).join(LONG) == before


def test_idle_threads_end_by_themselves(pool: Pool) -> None:
    runtime = pool.runtime(4, idle_seconds=0.01)
    gates = [pool.gate() for _ in range(4)]
    for gate in gates:
        runtime.spawn(gate.enter)
    for gate in gates:
        gate.wait()
    for gate in gates:
        gate.open()
    eventually(lambda: runtime.counts().threads == 0, "the end of all idle threads")
    assert runtime.counts().idle == 0
    assert runtime.spawn(int, "7").join(LONG) == 7


def test_a_job_handed_over_while_idle_threads_time_out_is_not_lost(pool: Pool) -> None:
    runtime = pool.runtime(2, idle_seconds=0.0)
    for i in range(500):
        assert runtime.spawn(int, i).join(LONG) == i


@pytest.mark.parametrize("happens", ["a job comes", "the runtime closes"])
def test_what_happens_in_the_moment_of_an_idle_timeout_is_not_lost(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, happens: str
) -> None:
    runtime = pool.runtime(1, idle_seconds=0.0)
    retire = runtime._retire
    closer = pool.runtime(1)
    jobs: list[Job[int]] = []

    def close() -> int:
        runtime.close(LONG)
        return 0

    def late(worker: Worker) -> bool:
        """The wait has timed out, and the thread is still listed as idle."""
        if not jobs and happens == "a job comes":
            jobs.append(runtime.spawn(threading.get_native_id))
        elif not jobs:
            jobs.append(closer.spawn(close))
            eventually(lambda: runtime._closed, "the runtime closes")
        return retire(worker)

    monkeypatch.setattr(runtime, "_retire", late)
    native_id = runtime.spawn(threading.get_native_id).join(LONG)
    eventually(lambda: bool(jobs), "the timeout")
    assert jobs[0].join(LONG) == (native_id if happens == "a job comes" else 0)


def test_1024_dedicated_jobs_at_once(pool: Pool) -> None:
    runtime = pool.runtime(2)
    gate = pool.gate()
    names = [f"vcpu-{i}" for i in range(1024)]
    jobs = [runtime.spawn(gate.enter, name=name, dedicated=True) for name in names]
    eventually(lambda: all(job.native_id for job in jobs), "the start of 1024 jobs")
    assert runtime.counts() == Counts(limit=2, running=0, dedicated=1024, queued=0, idle=0, threads=1024)
    assert runtime.spawn(int, "7").join(LONG) == 7
    assert [os_name(job.native_id or 0) for job in jobs] == names
    gate.open()
    assert len({job.join(LONG) for job in jobs}) == 1024, "each on a thread of its own"
    eventually(lambda: runtime.counts().threads == 1, "the end of 1024 threads")


# Names


def test_names(pool: Pool) -> None:
    runtime = pool.runtime(1, name="vcpus")
    gate = pool.gate()
    job = runtime.spawn(gate.enter, name="vcpu-3")
    gate.wait()
    assert os_name(gate.native_id) == "vcpu-3"
    assert job.thread is not None
    assert job.thread.name == job.name == "vcpu-3"
    assert job.thread.native_id == job.native_id == gate.native_id
    gate.open()
    job.join(LONG)
    eventually(lambda: os_name(gate.native_id) == "vcpus", "the pool's name on the idle thread")
    assert job.thread is None
    assert job.native_id == gate.native_id
    assert runtime.spawn(lambda: os_name(threading.get_native_id())).join(LONG) == "vcpus"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("123456789012345", "123456789012345"),
        ("1234567890123456", "123456789012345"),
        ("", ""),
        ("a\0b", "a"),
        ("\udc80", "?"),
    ],
)
def test_a_name_has_at_most_15_bytes(pool: Pool, name: str, expected: str) -> None:
    assert pool.runtime(1).spawn(lambda: os_name(threading.get_native_id()), name=name).join(LONG) == expected


# Affinity


def test_affinity_lasts_until_the_thread_is_given_back(pool: Pool) -> None:
    runtime = pool.runtime(1)
    cpu = max(runtime.cpus)

    def vcpu() -> tuple[int, list[set[int]]]:
        dedicate_os_thread()
        dedicate_os_thread()
        set_affinity([cpu])
        undedicate_os_thread()
        pinned = os.sched_getaffinity(0)
        undedicate_os_thread()
        return threading.get_native_id(), [pinned, os.sched_getaffinity(0)]

    native_id, masks = runtime.spawn(vcpu).join(LONG)
    assert masks == [{cpu}, set(runtime.cpus)]
    assert runtime.spawn(lambda: (threading.get_native_id(), os.sched_getaffinity(0))).join(LONG) == (
        native_id,
        set(runtime.cpus),
    )


def test_affinity_of_a_job_that_is_not_dedicated_is_an_error(pool: Pool) -> None:
    runtime = pool.runtime(1)

    def job() -> set[int]:
        with pytest.raises(RuntimeError, match="not dedicated"):
            set_affinity({min(runtime.cpus)})
        return os.sched_getaffinity(0)

    assert runtime.spawn(job).join(LONG) == runtime.cpus


def test_cpus_that_are_not_there(pool: Pool) -> None:
    def job() -> None:
        with pytest.raises(OSError, match="Invalid argument"):
            set_affinity({1000})
        with pytest.raises(ValueError, match="negative"):
            set_affinity({-1})

    pool.runtime(1).spawn(job, dedicated=True).join(LONG)


def test_a_thread_that_a_pinned_thread_starts_is_not_pinned(pool: Pool) -> None:
    runtime = pool.runtime(1)
    if len(runtime.cpus) < 2:
        pytest.skip("one CPU: every mask is the same")

    def vcpu() -> set[int]:
        set_affinity({min(runtime.cpus)})
        return runtime.spawn(os.sched_getaffinity, 0, dedicated=True).join(LONG)

    assert runtime.spawn(vcpu, dedicated=True).join(LONG) == runtime.cpus


def test_a_thread_whose_affinity_cannot_be_restored_is_not_used_again(pool: Pool) -> None:
    runtime = pool.runtime(1)
    gate, queued = pool.gate(), pool.gate()
    cpus = runtime.cpus

    def vcpu() -> int:
        dedicate_os_thread()
        set_affinity({min(cpus)})
        runtime.cpus = frozenset({1000})  # as if the machine had lost the CPUs that the pool began with
        undedicate_os_thread()
        runtime.cpus = cpus
        return gate.enter()

    job = runtime.spawn(vcpu)
    gate.wait()
    runtime.spawn(queued.enter)
    assert runtime.counts().queued == 1
    gate.open()
    job.join(LONG)
    queued.wait()
    assert queued.native_id != gate.native_id
    eventually(lambda: gate.native_id not in thread_ids(), "the end of the thread")


def test_a_new_thread_can_be_kicked_whatever_its_creator_blocked(pool: Pool) -> None:
    runtime = pool.runtime(1)
    number = kick.install()

    def blocked() -> bool:
        return number in signal.pthread_sigmask(signal.SIG_BLOCK, ())

    old = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        assert blocked()
        assert not runtime.spawn(blocked).join(LONG)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def test_several_runtimes(pool: Pool) -> None:
    one, other = pool.runtime(1, name="one"), pool.runtime(1, name="other")
    outer, inner = pool.gate(), pool.gate()

    def job() -> int:
        nested = other.spawn(dedicated_at, inner)
        dedicated_at(outer)
        return nested.join(LONG)

    running = one.spawn(job)
    outer.wait()
    inner.wait()
    for runtime in (one, other):
        assert runtime.counts() == Counts(limit=1, running=0, dedicated=1, queued=0, idle=0, threads=1)
    inner.open()
    outer.open()
    assert running.join(LONG) == inner.native_id
    assert repr(one).startswith("<Runtime 'one' Counts(limit=1")
