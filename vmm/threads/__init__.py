"""Dedicated OS threads: a pool of at most N threads that a job can leave, taking its thread along.

A monitor has two kinds of work. Ordinary jobs are short or many, and a limit on how many of them run at once is
welcome. A vCPU is neither: it lives as long as its guest task, spends its life blocked in ``ioctl(KVM_RUN)`` and must
never wait for a slot. The ``runtime.DedicateOSThread`` proposal asked the Go runtime for exactly this distinction;
this package gives it to Python:

* a `Runtime` runs at most N jobs at once; `Runtime.spawn` queues a job, first in first out, for a pooled thread;
* `dedicate_os_thread` wires the calling job to its thread and exempts it from N, so that a waiting job may start at
  once; calls nest; as many calls of `undedicate_os_thread` count it against N again and let the pool have the thread
  afterwards;
* **giving back may exceed N.** The job is in the middle of its work and cannot be stopped, so it goes on, is counted,
  and no queued job starts before the count is below N again. (The Go proposal would park the goroutine until a slot
  is free; here that would put a vCPU that only wants to tidy up and end behind jobs that it knows nothing about.)
* a job that ends while still dedicated **ends its OS thread**: whatever it did to the thread (affinity, signal mask,
  scheduling policy, credentials) goes with it. That is also what happens to a vCPU job which dies of an exception;
* `set_affinity` pins a dedicated job; the thread gets the runtime's own mask back when the job gives it back;
* ``vmm.threads.kick.kick`` makes the system call in which a job's thread is blocked return ``EINTR`` (see there:
  when, and when not).

`Runtime.spawn(..., dedicated=True)` starts a job that is dedicated from its first instruction, as if it had been
spawned and its first statement were `dedicate_os_thread()`, but without the wait for a slot: N busy jobs cannot keep
a guest from starting a thread.

What it does not do. A job that ends without being dedicated hands on its thread as it is: only the thread's name and
the affinity set with `set_affinity` are put back; ``threading.local`` and ``contextvars`` values, and whatever a job
did behind this module's back, stay for the next job, so a job that changes thread state ends dedicated. A job that
waits for another job of its runtime keeps its slot while it waits; N such jobs are a deadlock (dedicate first). Locks
here are plain locks: do not call this package from a Python signal handler or a finalizer. After ``os.fork()``
nothing is promised in the child: its threads are gone and the locks are in whatever state they were. No part of it
relies on the GIL for correctness.

Rejected:

* ``concurrent.futures.ThreadPoolExecutor``: its limit is the number of threads, so a job that blocks for life takes a
  place for life, a thread cannot be ended with its job, and its threads are joined when the interpreter exits, so
  that one vCPU left in ``KVM_RUN`` would hang it. Importing it costs 7 ms, for it imports logging.
* A ``threading.Thread`` per vCPU: starting one costs several times a hand-over to a pooled thread, and there is
  nothing in it that a kick of an ended task could be checked against before the thread id is used again.
* Bare ``_thread.start_new_thread``: a start is cheaper, for it does not wait for the new thread to run, but such
  threads have no name in ``threading``, escape ``threading.settrace`` (coverage, debuggers), and leave a dummy object
  behind for each. Starts are rare here, because threads are reused.
* ``threading.stack_size``: it is global to the process, and other code's threads are none of our business. The
  default is 8 MiB of address space a thread, reserved and not committed: 1024 vCPU threads reserve 8 GiB out of 128
  TiB and use what they touch.
"""

from vmm.threads.job import Job, current_job, dedicate_os_thread, set_affinity, undedicate_os_thread
from vmm.threads.runtime import Counts, Runtime

__all__ = [
    "Counts",
    "Job",
    "Runtime",
    "current_job",
    "dedicate_os_thread",
    "set_affinity",
    "undedicate_os_thread",
]
