"""vmm.threads: results, exceptions, join and close; what happens without threads, and at the end of the interpreter."""

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NoReturn

import pytest

from tests.unit.vmm.threads_support import LONG, Pool, checked_pool, eventually, thread_ids
from vmm.threads import Counts, Job, Runtime, dedicate_os_thread
from vmm.threads.worker import Worker


@pytest.fixture
def pool() -> Iterator[Pool]:
    with checked_pool() as made:
        yield made


class Hook:
    """A threading.excepthook that remembers what it was given: exception, name of the thread."""

    def __init__(self) -> None:
        self.seen: list[tuple[BaseException | None, str | None]] = []

    def __call__(self, args: threading.ExceptHookArgs) -> None:
        self.seen.append((args.exc_value, None if args.thread is None else args.thread.name))


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Hook:
    hook = Hook()
    monkeypatch.setattr(threading, "excepthook", hook)
    return hook


def fail(error: BaseException) -> NoReturn:
    raise error


# Results and joining


def test_result_and_states(pool: Pool) -> None:
    runtime = pool.runtime(1)
    gate = pool.gate()
    first, second = runtime.spawn(gate.enter, name="one"), runtime.spawn(divmod, 7, 2, name="two")
    gate.wait()
    assert (repr(first), repr(second)) == (f"<Job 'one' running on {gate.native_id}>", "<Job 'two' queued>")
    assert not first.done()
    assert (second.native_id, second.thread) == (None, None)
    gate.open()
    assert second.join(LONG) == second.join() == (3, 1)
    assert first.done()
    assert repr(second) == "<Job 'two' done>"


@pytest.mark.parametrize("timeout", [0, -1, 0.001])
def test_join_times_out_and_can_be_repeated(pool: Pool, timeout: float) -> None:
    gate = pool.gate()
    job = pool.runtime(1).spawn(gate.enter, name="slow")
    gate.wait()
    for _ in range(3):
        with pytest.raises(TimeoutError, match="job 'slow' has not ended within"):
            job.join(timeout)
    gate.open()
    assert job.join(1e300) == gate.native_id  # more than a lock can wait for


def test_many_may_join(pool: Pool) -> None:
    gate = pool.gate()
    job = pool.runtime(1).spawn(gate.enter)
    joiners = pool.runtime(8)
    results = [joiners.spawn(job.join, LONG) for _ in range(8)]
    eventually(lambda: len(job._waiters) == 8, "all joiners wait")
    gate.open()
    assert {result.join(LONG) for result in results} == {job.join(LONG)}


def test_a_job_cannot_join_itself(pool: Pool) -> None:
    jobs: list[Job[str]] = []
    gate = pool.gate()

    def job() -> str:
        gate.enter()
        with pytest.raises(RuntimeError, match="'self' cannot join itself"):
            jobs[0].join()
        return "went on"

    jobs.append(pool.runtime(1).spawn(job, name="self"))
    gate.open()
    assert jobs[0].join(LONG) == "went on"


def test_after_join_the_thread_is_in_the_pool(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pool.runtime(8)
    settle = runtime._settle
    done: list[bool] = []

    def watched(worker: Worker, dedicated: bool) -> bool:
        done.append(worker.current is None or worker.current.done())
        return settle(worker, dedicated)

    monkeypatch.setattr(runtime, "_settle", watched)
    for _ in range(100):
        runtime.spawn(int).join(LONG)
        assert runtime.counts() == Counts(limit=8, running=0, dedicated=0, queued=0, idle=1, threads=1)
    assert not any(done), "a job is not done before its slot is free"


def test_an_idle_thread_keeps_nothing_of_its_last_job(pool: Pool, hook: Hook) -> None:
    class Thing:
        def method(self, other: "Thing") -> "Thing":
            return other

        def failing(self, other: "Thing") -> None:
            raise ValueError

    runtime = pool.runtime(1)
    gc.disable()  # nothing may depend on the cycle collector
    try:
        for function in (Thing.method, Thing.failing):
            things = Thing(), Thing()
            refs = [weakref.ref(thing) for thing in things]
            job = runtime.spawn(function, *things, observed=True)
            del things
            with suppress(ValueError):
                job.join(LONG)
            refs.append(weakref.ref(job))  # type: ignore[arg-type]
            del job
            eventually(lambda refs=refs: [ref() for ref in refs] == [None] * 3, "the end of job and arguments")  # type: ignore[misc]
    finally:
        gc.enable()
    assert runtime.counts().idle == 1


def test_a_job_that_is_kept_does_not_keep_its_arguments(pool: Pool) -> None:
    class Thing:
        pass

    thing = Thing()
    ref = weakref.ref(thing)
    job = pool.runtime(1).spawn(lambda it: type(it).__name__, thing)
    del thing
    assert job.join(LONG) == "Thing"
    eventually(lambda: ref() is None, "the end of the argument")


# Exceptions


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_an_exception_is_the_jobs_own(pool: Pool, hook: Hook, error: BaseException) -> None:
    runtime = pool.runtime(1)
    native_id = runtime.spawn(threading.get_native_id).join(LONG)
    job = runtime.spawn(fail, error, name="failing")
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            job.join(LONG)
        assert caught.value is error
    assert hook.seen == [(error, "failing")], "reported, in the job's thread and under its name"
    assert runtime.spawn(threading.get_native_id).join(LONG) == native_id, "the pool does not care"


def test_a_wrong_call_is_the_jobs_exception(pool: Pool, hook: Hook) -> None:
    job = pool.runtime(1).spawn(divmod, 1, observed=True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="divmod"):
        job.join(LONG)
    assert not hook.seen


def test_a_report_precedes_the_end_of_the_job(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = pool.gate()
    monkeypatch.setattr(threading, "excepthook", lambda args: gate.enter())
    job = pool.runtime(1).spawn(fail, ValueError("no"))
    gate.wait()
    assert not job.done()
    gate.open()
    with pytest.raises(ValueError, match="no"):
        job.join(LONG)


def test_an_observed_exception_is_not_reported(pool: Pool, hook: Hook) -> None:
    job = pool.runtime(1).spawn(fail, ValueError("no"), observed=True)
    with pytest.raises(ValueError, match="no"):
        job.join(LONG)
    del job
    gc.collect()
    assert not hook.seen


def test_a_broken_promise_to_join_is_reported_in_the_end(pool: Pool, hook: Hook) -> None:
    error = ValueError("no")
    job = pool.runtime(1).spawn(fail, error, name="forgotten", observed=True)
    eventually(job.done, "the end of the job")
    assert not hook.seen
    error.__traceback__ = None
    del job
    eventually(lambda: bool(hook.seen), "the report")
    assert hook.seen == [(error, None)]
    assert "'forgotten', which was to be joined" in error.__notes__[0]


def test_a_hook_that_fails_does_not_cost_the_pool_its_thread(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hook(args: threading.ExceptHookArgs) -> None:
        raise KeyError("the hook's own")

    monkeypatch.setattr(threading, "excepthook", hook)
    runtime = pool.runtime(1)
    with pytest.raises(ValueError, match="the job's"):
        runtime.spawn(fail, ValueError("the job's")).join(LONG)
    assert runtime.counts().idle == 1
    shown = capsys.readouterr().err
    assert "ValueError: the job's" in shown
    assert 'KeyError: "the hook\'s own"' in shown


# No thread to be had


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Switches the supply of new threads off (True) and on again."""
    start = Worker.start

    def cannot(self: Worker) -> None:
        raise RuntimeError("can't start new thread")

    return lambda off: monkeypatch.setattr(Worker, "start", cannot if off else start)


@pytest.mark.parametrize("dedicated", [False, True])
def test_spawn_fails_with_eagain_without_threads(
    pool: Pool, no_threads: Callable[[bool], None], dedicated: bool
) -> None:
    runtime = pool.runtime(1)
    no_threads(True)
    with pytest.raises(OSError, match="can't start new thread") as caught:
        runtime.spawn(int, dedicated=dedicated)
    assert caught.value.errno == errno.EAGAIN
    assert runtime.counts() == Counts(limit=1, running=0, dedicated=0, queued=0, idle=0, threads=0)
    no_threads(False)
    assert runtime.spawn(int, dedicated=dedicated).join(LONG) == 0


def test_without_threads_a_job_waits_for_one_that_runs(pool: Pool, no_threads: Callable[[bool], None]) -> None:
    runtime = pool.runtime(3)
    gate = pool.gate()
    running = runtime.spawn(gate.enter)
    gate.wait()
    no_threads(True)
    waiting = [runtime.spawn(threading.get_native_id) for _ in range(2)]
    assert runtime.counts() == Counts(limit=3, running=1, dedicated=0, queued=2, idle=0, threads=1)
    gate.open()
    assert [job.join(LONG) for job in waiting] == [running.join(LONG)] * 2


def test_without_threads_the_job_that_gets_the_slot_fails_not_the_one_that_dedicates(
    pool: Pool, no_threads: Callable[[bool], None], hook: Hook
) -> None:
    runtime = pool.runtime(1)
    before, after = pool.gate(), pool.gate()

    def vcpu() -> None:
        before.enter()
        dedicate_os_thread()
        after.enter()

    vcpus = runtime.spawn(vcpu)
    before.wait()
    waiting = [runtime.spawn(int, name=f"waiting-{i}", observed=bool(i)) for i in range(2)]
    no_threads(True)
    before.open()
    after.wait()
    for job in waiting:
        with pytest.raises(OSError, match="can't start new thread"):
            job.join(LONG)
    assert [type(error) for error, _ in hook.seen] == [BlockingIOError]
    after.open()
    vcpus.join(LONG)


# Closing


def test_close_waits_for_all_jobs_and_ends_all_threads(pool: Pool) -> None:
    before = thread_ids()
    done: list[int] = []
    with Runtime(2) as runtime:
        gates = [pool.gate() for _ in range(2)]
        jobs = [runtime.spawn(gate.enter) for gate in gates] + [runtime.spawn(dedicate_os_thread, dedicated=True)]
        queued = [runtime.spawn(done.append, i) for i in range(20)]
        for gate in gates:
            gate.open()
    assert all(job.done() for job in jobs + queued)
    assert sorted(done) == list(range(20))
    assert runtime.counts() == Counts(limit=2, running=0, dedicated=0, queued=0, idle=0, threads=0)
    eventually(lambda: thread_ids() <= before, "the end of the threads")
    runtime.close()


def test_nothing_starts_after_close(pool: Pool) -> None:
    runtime = pool.runtime(1)
    runtime.close()
    for dedicated in (False, True):
        with pytest.raises(RuntimeError, match="closed"):
            runtime.spawn(int, dedicated=dedicated)


def test_close_times_out_with_the_names_and_can_be_repeated(pool: Pool) -> None:
    runtime = pool.runtime(1)
    vcpu, ordinary = pool.gate(), pool.gate()
    runtime.spawn(vcpu.enter, name="vcpu-0", dedicated=True)
    runtime.spawn(ordinary.enter, name="reader")
    last = runtime.spawn(int, name="waits")
    vcpu.wait()
    ordinary.wait()
    with pytest.raises(TimeoutError, match=r"3 jobs .*: reader, vcpu-0, waits$"):
        runtime.close(0.001)
    vcpu.open()
    ordinary.open()
    runtime.close(LONG)
    assert last.join(0) == 0


def test_close_by_many_at_once(pool: Pool) -> None:
    runtime, closers = pool.runtime(2), pool.runtime(4)
    gate = pool.gate()
    runtime.spawn(gate.enter)
    runtime.spawn(gate.enter)
    jobs = [closers.spawn(runtime.close, LONG) for _ in range(4)]
    gate.open()
    for job in jobs:
        job.join(LONG)
    assert runtime.counts().threads == 0


def test_a_job_cannot_close_its_own_runtime(pool: Pool) -> None:
    runtime = pool.runtime(1)
    with pytest.raises(RuntimeError, match="cannot close its own runtime"):
        runtime.spawn(runtime.close, observed=True).join(LONG)
    assert runtime.spawn(int, "7").join(LONG) == 7, "it is not closed"


def test_close_waits_for_a_job_whose_thread_was_spoiled_before_it(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last thread ends and is not fit for the queued job: close must wait for the one that comes instead."""
    runtime = pool.runtime(1)
    gate = pool.gate()

    def spoil() -> None:
        gate.enter()
        worker = threading.current_thread()
        assert isinstance(worker, Worker)
        worker.spoiled = True

    runtime.spawn(spoil)
    queued = runtime.spawn(int, name="waits")
    gate.wait()
    dispatch = runtime._dispatch
    between: list[Counts] = []

    def watched() -> None:
        """Between the two threads there is none, and yet something to wait for."""
        between.append(runtime.counts())
        with pytest.raises(TimeoutError, match=r": waits$"):
            runtime.close(0)
        dispatch()

    monkeypatch.setattr(runtime, "_dispatch", watched)
    gate.open()
    runtime.close(LONG)
    assert queued.done()
    assert between == [Counts(limit=1, running=0, dedicated=0, queued=1, idle=0, threads=0)]


# The end of the interpreter


@pytest.mark.parametrize("last", ["runtime.spawn(int).join()", "blocked(runtime.spawn)", "blocked(dedicated)"])
def test_a_forgotten_runtime_does_not_keep_the_interpreter_alive(last: str) -> None:
    program = f"""
import ctypes, functools, threading
from vmm.threads import Runtime
runtime = Runtime(1, idle_seconds=3600)
dedicated = functools.partial(runtime.spawn, dedicated=True)
def blocked(spawn):
    started = threading.Event()
    spawn(lambda: (started.set(), ctypes.CDLL(None).pause()))
    started.wait()
    runtime.spawn(int)
{last}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_keyboard_interrupt_does_not_disturb_the_others_who_join(pool: Pool) -> None:
    gate = pool.gate()
    runtime = pool.runtime(2)
    job = runtime.spawn(gate.enter)
    other = runtime.spawn(job.join, LONG)
    eventually(lambda: len(job._waiters) == 1, "the other one joins")

    def interrupt() -> None:
        eventually(lambda: len(job._waiters) == 2, "the main thread joins")
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = pool.runtime(1).spawn(interrupt)
    with pytest.raises(KeyboardInterrupt):
        job.join(LONG)
    interrupter.join(LONG)
    gate.open()
    assert other.join(LONG) == job.join(LONG)
