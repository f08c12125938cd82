"""A job, and the functions that a job calls on itself."""

import sys
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from vmm.threads.worker import Worker

T = TypeVar("T")


class Job(Generic[T]):
    """One call of a function on a thread of a `Runtime`; made by `Runtime.spawn` only.

    `name` is the name of the OS thread while the job runs. `native_id` is the kernel's id of that thread (gettid(2), C
    ``pid_t``), None before the job starts; it stays after the end, for messages. Never send a signal to it: the
    thread may serve another job by then; see kick.py.
    """

    __slots__ = (
        "__weakref__",
        "_call",
        "_depth",
        "_done",
        "_error",
        "_joined",
        "_lock",
        "_observed",
        "_result",
        "_waiters",
        "_worker",
        "name",
        "native_id",
    )

    _result: T

    def __init__(self, fn: Callable[..., T], args: tuple[Any, ...], name: str, observed: bool, dedicated: bool) -> None:
        self.name = name
        self.native_id: int | None = None
        self._call: tuple[Callable[..., T], tuple[Any, ...]] | None = (fn, args)
        self._observed = observed
        self._depth = int(dedicated)  # of dedicate_os_thread calls; touched by the job's own thread only
        # Guards _worker, _done and _waiters, and so kicks against the job's end. A leaf: nothing is locked under it.
        self._lock = threading.Lock()
        self._worker: Worker | None = None  # set exactly while the job runs
        self._done = False
        self._waiters: list[threading.Lock] = []
        self._error: BaseException | None = None
        self._joined = False

    def __repr__(self) -> str:
        state = "done" if self._done else "queued" if self._worker is None else f"running on {self.native_id}"
        return f"<Job {self.name!r} {state}>"

    @property
    def thread(self) -> threading.Thread | None:
        """The thread that runs the job now; None when it has not started or has ended."""
        return self._worker

    def done(self) -> bool:
        """Has the job ended, by return or exception?"""
        return self._done

    def join(self, timeout: float | None = None) -> T:
        """Wait for the end of the job, at most `timeout` seconds; return its result or raise its exception.

        Whatever left the job is raised, SystemExit and KeyboardInterrupt too. Raises TimeoutError when the job has
        not ended in time and RuntimeError when a job joins itself. May be called any number of times, from any
        thread.
        """
        if not self._done:
            self._wait(timeout)
        self._joined = True
        if self._error is None:
            return self._result
        try:
            raise self._error
        finally:
            del self  # else: job -> exception -> traceback -> this frame -> job

    def _wait(self, timeout: float | None) -> None:
        if current_job() is self:
            raise RuntimeError(f"job {self.name!r} cannot join itself")
        # A lock for each waiter, as in threading.Condition: an exception that interrupts one leaves the others alone.
        waiter = threading.Lock()
        waiter.acquire()
        with self._lock:
            if self._done:
                return
            self._waiters.append(waiter)
        if waiter.acquire(timeout=-1 if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX)):
            return
        with self._lock:
            if not self._done:
                self._waiters.remove(waiter)
                raise TimeoutError(f"job {self.name!r} has not ended within {timeout} s")

    def _start(self, worker: "Worker") -> None:
        """The worker's thread is about to run this job."""
        with self._lock:
            self._worker = worker
            self.native_id = worker.native_id
        _current.job = self

    def _run(self) -> None:
        """Call the function; keep its result, or its exception, which is reported at once unless `observed`."""
        assert self._call is not None
        fn, args = self._call
        self._call = None  # a Job that is kept for its result must not keep the arguments
        try:
            self._result = fn(*args)
        except BaseException as error:  # SystemExit and KeyboardInterrupt are the job's too, never the pool's
            self._error = error
            if not self._observed:
                _report(error, self._worker)
        finally:
            del self, fn, args  # else: job -> exception -> traceback -> this frame -> job

    def _finish(self, error: BaseException | None = None) -> None:
        """The job has ended (or cannot start: `error`): from here on no kick reaches its thread and join returns."""
        if error is not None:
            self._error = error
            if not self._observed:
                _report(error, None)
        with self._lock:
            self._worker = None
            self._done = True
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.release()

    def __del__(self) -> None:
        # The promise of `observed` was broken, and nobody can join any more: report late rather than never.
        if self._error is not None and self._observed and not self._joined:
            self._error.add_note(f"(of job {self.name!r}, which was to be joined and never was)")
            _report(self._error, None)


class _Current(threading.local):
    """The job of the calling thread."""

    job: Job[Any] | None = None


_current = _Current()


def _report(error: BaseException, thread: threading.Thread | None) -> None:
    """Hand an exception to threading.excepthook, whose default prints it and ignores SystemExit."""
    try:
        threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, thread)))
    except BaseException:
        # The hook failed: show its exception with the job's as context. This must not raise: the pool needs its thread.
        sys.__excepthook__(*sys.exc_info())


def current_job() -> Job[Any] | None:
    """The job that the calling thread runs; None outside of a job."""
    return _current.job


def _own(function: str) -> "tuple[Job[Any], Worker]":
    job = _current.job
    if job is None or job._worker is None:
        raise RuntimeError(
            f"{function}() outside of a job: it acts on the job that the calling thread runs, and there is none"
        )
    return job, job._worker


def dedicate_os_thread() -> None:
    """Wire the calling job to its OS thread and exempt it from the runtime's limit; a queued job may start at once.

    Calls nest. RuntimeError outside of a job. If no thread can be made for the job that the free slot belongs to,
    that job waits or fails, never the caller. The name and the meaning are of the Go proposal
    ``runtime.DedicateOSThread``.
    """
    job, worker = _own("dedicate_os_thread")
    job._depth += 1
    if job._depth == 1:
        worker.runtime._exempt()


def undedicate_os_thread() -> None:
    """Undo one `dedicate_os_thread`; the last one counts the job against the limit again and restores the affinity.

    The caller never waits: it may put the runtime over its limit, and then no queued job starts until the count is
    below the limit. RuntimeError outside of a job, and for one call too many.
    """
    job, worker = _own("undedicate_os_thread")
    if not job._depth:
        raise RuntimeError(f"undedicate_os_thread() once too often: job {job.name!r} is not dedicated")
    job._depth -= 1
    if not job._depth:
        worker.unpin()
        worker.runtime._readmit()


def set_affinity(cpus: Iterable[int]) -> None:
    """Pin the calling dedicated job to these CPUs (numbers as in ``cpu_set_t``), until it gives its thread back.

    RuntimeError outside of a job and in one that is not dedicated: a pooled thread has the runtime's mask. OSError
    EINVAL when none of the CPUs is there and allowed, ValueError for a negative number. sched_setaffinity(2).
    """
    job, worker = _own("set_affinity")
    if not job._depth:
        raise RuntimeError(
            f"set_affinity() in job {job.name!r}, which is not dedicated: call dedicate_os_thread() first"
        )
    worker.pin(cpus)
