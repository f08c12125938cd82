"""What vmm.threads costs: to start a job, dedicate its thread, kick it; beside the primitives that this is made of.

Medians and 99th percentiles over many rounds of one run. The waking thread waits at once and so drops the GIL that the
other needs; where a third thread computes, add up to one switch interval. Run: ``python -m tests.bench.bench_threads``.
"""

import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from vmm.threads import Job, Runtime, dedicate_os_thread, kick, undedicate_os_thread

Row = tuple[str, str]

_LIBC = ctypes.CDLL(None, use_errno=True)
_now = time.perf_counter_ns


def _figure(samples: list[int]) -> str:
    """Median and 99th percentile of nanoseconds, as microseconds."""
    ordered = sorted(samples)
    return f"p50 {ordered[len(ordered) // 2] / 1e3:.1f} us, p99 {ordered[len(ordered) * 99 // 100] / 1e3:.1f} us"


def _wake_up(rounds: int) -> list[int]:
    """The floor: a thread waits for a lock, as a pooled thread does; from the release to its next statement."""
    wake, answer = threading.Lock(), threading.Lock()
    wake.acquire()
    answer.acquire()
    woken = 0

    def loop() -> None:
        nonlocal woken
        for _ in range(rounds):
            wake.acquire(timeout=60)
            woken = _now()
            answer.release()

    thread = threading.Thread(target=loop)
    thread.start()
    samples = []
    for _ in range(rounds):
        _settle()
        begin = _now()
        wake.release()
        answer.acquire()
        samples.append(woken - begin)
    thread.join()
    return samples


def _settle() -> None:
    """Let the other thread go to sleep, so that every round measures a wake-up."""
    time.sleep(0.0002)


def _starts(start: Callable[[Callable[[], int]], int], rounds: int) -> list[int]:
    """`start` runs the function it is given elsewhere and returns its result: the time of its first statement."""
    samples = []
    for _ in range(rounds):
        _settle()
        begin = _now()
        samples.append(start(_now) - begin)
    return samples


def _new_thread(fn: Callable[[], int]) -> int:
    result = 0

    def body() -> None:
        nonlocal result
        result = fn()

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join()
    return result


def _spawn_calls(runtime: Runtime, rounds: int) -> list[int]:
    """The time until spawn returns: what a guest's clone pays before it goes on."""
    samples = []
    for _ in range(rounds):
        _settle()
        begin = _now()
        job = runtime.spawn(_now)
        samples.append(_now() - begin)
        job.join()
    return samples


def _dedicate_pairs(rounds: int) -> list[int]:
    samples = []
    for _ in range(rounds):
        begin = _now()
        dedicate_os_thread()
        undedicate_os_thread()
        samples.append(_now() - begin)
    return samples


def _paused() -> int:
    _LIBC.pause()
    return _now()


def _wait_paused(job: Job[int]) -> None:
    while job.native_id is None:
        time.sleep(0)
    path = f"/proc/self/task/{job.native_id}/syscall"
    while True:
        with open(path, encoding="ascii") as file:
            if file.read().startswith("34 "):  # pause(2)
                return


def _kicks(runtime: Runtime, rounds: int) -> tuple[list[int], list[int]]:
    """Kick to the first statement after the interrupted pause(2); and the kick call alone."""
    samples, calls = [], []
    for _ in range(rounds):
        job = runtime.spawn(_paused)
        _wait_paused(job)
        begin = _now()
        kick.kick(job)
        calls.append(_now() - begin)
        samples.append(job.join() - begin)
    return samples, calls


def _resident() -> int:
    """Resident bytes of the process: second field of proc_pid_statm(5)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def _many(runtime: Runtime, count: int) -> list[Row]:
    gate = threading.Event()
    gc.collect()
    resident = _resident()
    begin = _now()
    jobs = [runtime.spawn(gate.wait, dedicated=True) for _ in range(count)]
    while not all(job.native_id for job in jobs):
        time.sleep(0.0001)
    spent = _now() - begin
    each = (_resident() - resident) / count
    gate.set()
    for job in jobs:
        job.join()
    return [
        (f"{count} dedicated jobs at once, all started", f"{spent / 1e6:.0f} ms"),
        ("resident memory of one of them", f"{each / 1024:.0f} KiB"),
    ]


def run(rounds: int = 2000) -> list[Row]:
    """The figures, as rows of name and value."""
    with Runtime(4, "bench") as runtime:
        wake = _wake_up(rounds)
        pooled = _starts(lambda fn: runtime.spawn(fn).join(), rounds)
        with ThreadPoolExecutor(1) as executor:
            peer = _starts(lambda fn: executor.submit(fn).result(), rounds)
        calls = _spawn_calls(runtime, rounds)
        pairs = runtime.spawn(_dedicate_pairs, rounds).join()
        kicked, kick_calls = _kicks(runtime, rounds // 4)
        runtime.spawn(dedicate_os_thread).join()  # ends the pool's only thread: each of the next jobs gets a new one
        fresh = _starts(lambda fn: runtime.spawn(fn, dedicated=True).join(), rounds // 4)
        bare = _starts(_new_thread, rounds // 4)
        many = _many(runtime, 1024)
    median = [sorted(samples)[len(samples) // 2] for samples in (wake, pooled)]
    return [
        ("bare wake-up of a waiting thread", _figure(wake)),
        ("spawn to start, pooled thread", _figure(pooled)),
        ("  above the wake-up", f"{(median[1] - median[0]) / 1e3:.1f} us"),
        ("  ThreadPoolExecutor.submit to start", _figure(peer)),
        ("spawn call alone, pooled thread", _figure(calls)),
        ("spawn to start, new thread", _figure(fresh)),
        ("  bare threading.Thread", _figure(bare)),
        ("dedicate + undedicate", _figure(pairs)),
        ("kick to EINTR seen by the job", _figure(kicked)),
        ("  kick call alone", _figure(kick_calls)),
        *many,
    ]


if __name__ == "__main__":
    for name, value in run():
        print(f"{name:45} {value}")
