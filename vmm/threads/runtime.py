"""The runtime: who may run, on which thread."""

import errno
import os
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar, TypeVarTuple

from vmm.threads import kick
from vmm.threads.job import Job, current_job
from vmm.threads.worker import Worker

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Counts(NamedTuple):
    """What a runtime is doing, at one moment."""

    limit: int
    """N: how many ordinary jobs may run at once."""
    running: int
    """Jobs that count against the limit; above it only because dedicated jobs gave their threads back."""
    dedicated: int
    """Jobs that are dedicated to their threads."""
    queued: int
    """Jobs that wait for a slot."""
    idle: int
    """Threads that wait for a job."""
    threads: int
    """All threads: running, dedicated, idle, starting and ending ones."""


class Runtime:
    """At most `limit` ordinary jobs at once, on reused threads; dedicated jobs come on top. See the package.

    An idle thread is taken before a new one is started, the one that became idle last first: its stack and the
    kernel's data of it are still in the caches, and the threads of a past peak stay idle and end after
    `idle_seconds`. `name` is the OS-level name of idle threads and the default name of jobs. `cpus` is the affinity
    of the pool: that of the thread which made the runtime.

    A context manager: leaving it closes it. A runtime that is neither closed nor used keeps no thread for longer than
    `idle_seconds` and never keeps the interpreter alive; but jobs that still run when the interpreter exits are
    stopped wherever they are, so close it. ValueError for a limit below 1 or a negative idle time.
    """

    # The lock guards every underscored field below, and `assigned` of each worker; job locks are never taken under
    # it, threads are never started under it. Invariant outside of the lock: a job is queued only if _running >=
    # limit, or if the system had no thread for it, and then _running > 0, so that the end of another job starts it.

    def __init__(self, limit: int, name: str = "pyvmm", *, idle_seconds: float = 10.0) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        if not 0 <= idle_seconds <= threading.TIMEOUT_MAX:
            raise ValueError(f"idle_seconds out of range: {idle_seconds}")
        kick.install()
        self.limit = limit
        self.name = name
        self.idle_seconds = idle_seconds
        self.cpus = frozenset(os.sched_getaffinity(0))
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # the last worker of a closed runtime is gone
        self._queue: deque[Job[Any]] = deque()
        self._idle: list[Worker] = []
        self._workers: set[Worker] = set()
        self._ended: list[Worker] = []  # workers that ended after close() began
        self._running = 0
        self._dedicated = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<Runtime {self.name!r} {self.counts()}>"

    def counts(self) -> Counts:
        """The counts, all of the same moment."""
        with self._lock:
            return Counts(
                limit=self.limit,
                running=self._running,
                dedicated=self._dedicated,
                queued=len(self._queue),
                idle=len(self._idle),
                threads=len(self._workers),
            )

    def spawn(
        self,
        fn: Callable[[*Ts], T],
        *args: *Ts,
        name: str | None = None,
        observed: bool = False,
        dedicated: bool = False,
    ) -> Job[T]:
        """Queue ``fn(*args)`` as a job; it starts at once when fewer than `limit` jobs are counted.

        `name` becomes the name of the OS thread (15 bytes of it, e.g. ``vcpu-3``). `observed` promises that someone
        will `join` the job; without it an exception that leaves the job goes to ``threading.excepthook`` at once (and
        is kept for join as well), with it only if the job is collected and was never joined. `dedicated` starts the
        job dedicated, as if it had called `dedicate_os_thread` first, and never queues it.

        Raises OSError EAGAIN when the system has no thread for a job that would otherwise never start
        (pthread_create(3)), RuntimeError when the runtime is closed.
        """
        job: Job[T] = Job(fn, args, self.name if name is None else name, observed, dedicated)
        with self._lock:
            if self._closed:
                raise RuntimeError(f"spawn() on runtime {self.name!r}, which is closed")
            if not dedicated:
                self._queue.append(job)
            else:
                self._dedicated += 1
                worker, fresh = self._assign_locked(job)
        if not dedicated:
            self._dispatch(job)
        elif fresh and (error := self._launch(worker)) is not None:
            with self._lock:
                self._dedicated -= 1
            raise error
        return job

    def close(self, timeout: float | None = None) -> None:
        """Refuse new jobs; wait, at most `timeout` seconds, for all jobs (queued ones too) and the end of all threads.

        Raises TimeoutError with the jobs' names when some have not ended in time: the runtime stays closed, each
        thread ends with its job, and close may be called again. RuntimeError when a job of this runtime calls it: it
        would wait for itself.
        """
        job = current_job()
        if job is not None and job._worker is not None and job._worker.runtime is self:
            raise RuntimeError(f"job {job.name!r} cannot close its own runtime")
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for worker in idle:
                worker.wake.release()  # without a job: ends it
            if not self._changed.wait_for(lambda: not self._workers and not self._queue, timeout):
                left = [job for worker in self._workers if (job := worker.current) is not None] + list(self._queue)
                names = ", ".join(sorted(job.name for job in left))
                raise TimeoutError(
                    f"runtime {self.name!r}: {len(left)} jobs have not ended within {timeout} s: {names}"
                )
            ended, self._ended = self._ended, []
        for worker in ended:
            worker.join()  # it has nothing left to do; afterwards it runs no more Python code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _assign_locked(self, job: Job[Any]) -> tuple[Worker, bool]:
        """Give `job` to the thread that became idle last; or to a new one (True), to be launched unlocked."""
        if self._idle:
            worker = self._idle.pop()
            worker.assigned = job
            worker.wake.release()
            return worker, False
        worker = Worker(self, job)
        self._workers.add(worker)
        return worker, True

    def _launch(self, worker: Worker) -> OSError | None:
        """Start the thread of a new worker; return what went wrong, in the words of pthread_create(3)."""
        try:
            worker.start()
        except RuntimeError as cause:
            self._forget(worker)
            error = OSError(errno.EAGAIN, f"runtime {self.name!r}: {cause}")
            error.__cause__ = cause
            return error
        return None

    def _dispatch(self, spawned: Job[Any] | None = None) -> None:
        """Start queued jobs while the limit allows. Raises only what concerns `spawned`, the caller's own job."""
        while True:
            with self._lock:
                if not self._queue or self._running >= self.limit:
                    return
                job = self._queue.popleft()
                self._running += 1
                worker, fresh = self._assign_locked(job)
            if fresh and (error := self._launch(worker)) is not None:
                with self._lock:
                    self._running -= 1
                    if self._running:  # another job will end, and its thread takes this one
                        self._queue.appendleft(job)
                        return
                if job is spawned:
                    raise error
                job._finish(error)

    def _exempt(self) -> None:
        """A running job became dedicated: its slot is free."""
        with self._lock:
            self._running -= 1
            self._dedicated += 1
        self._dispatch()

    def _readmit(self) -> None:
        """A dedicated job became ordinary: it counts, be there a slot or not."""
        with self._lock:
            self._dedicated -= 1
            self._running += 1

    def _settle(self, worker: Worker, dedicated: bool) -> bool:
        """The job of `worker` has ended. Returns whether the thread stays: with its next job, or idle."""
        with self._lock:
            if dedicated:
                self._dedicated -= 1
                return False
            self._running -= 1
            if worker.spoiled:
                return False
            if self._queue and self._running < self.limit:
                self._running += 1
                worker.assigned = self._queue.popleft()
                worker.wake.release()
                return True
            if self._closed:
                return False
            self._idle.append(worker)
            return True

    def _retire(self, worker: Worker) -> bool:
        """`worker` was idle for its time. Returns whether it may end: False when it was woken just now."""
        with self._lock:
            if worker in self._idle:
                self._idle.remove(worker)
                return True
            return False

    def _forget(self, worker: Worker) -> None:
        """`worker` ends, or did not start; if it was spoiled, its slot is still free."""
        with self._lock:
            self._workers.discard(worker)
            if self._closed:
                if worker.ident is not None:
                    self._ended.append(worker)
                if not self._workers:
                    self._changed.notify_all()
        if worker.spoiled:
            self._dispatch()
