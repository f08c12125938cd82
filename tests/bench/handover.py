"""Who serves a call: `python -m tests.bench.handover kvm|emulator [CALLS]`.

The product serves it on the vCPU's own thread. Two other designs are put in its place here, with the library's means:
the vCPU's thread hands the call to an asyncio loop in another thread, or to an executor's thread, and waits. The guest
program times each call and prints percentiles; this prints lines `WAY.p50 value us` and `WAY.p99 value us` on stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from devices.table import TABLE
from tests.bench.session import parse
from tests.harness import program
from vmm.machine import Config, Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devices.bus import Handler
    from devices.task.task import Task

    Wrap = Callable[[Handler], Handler]

GETPPID = next(number for number, entry in TABLE.items() if entry.name == "getppid")


def main() -> int:
    accelerator = sys.argv[1]
    calls = sys.argv[2] if len(sys.argv) > 2 else "2000"
    with running_loop() as loop, ThreadPoolExecutor(1) as executor:
        for way, wrap in {"own": own, "loop": to_loop(loop), "executor": to_executor(executor)}.items():
            for name, value in parse(measure(accelerator, wrap, calls)).items():
                sys.stderr.write(f"{way}.{name} {value:.6g} us\n")
    return 0


def own(handler: Handler) -> Handler:
    return handler


def to_loop(loop: asyncio.AbstractEventLoop) -> Wrap:
    """Hand a call to an event loop in another thread."""

    def wrap(handler: Handler) -> Handler:
        async def serve(task: Task, registers: memoryview) -> int:
            with task.kernel.lock:
                return handler(task, registers)

        def call(task: Task, registers: memoryview) -> int:
            with dropped(task):
                return asyncio.run_coroutine_threadsafe(serve(task, registers), loop).result()

        return call

    return wrap


def to_executor(executor: ThreadPoolExecutor) -> Wrap:
    """Hand a call to a pool's thread."""

    def wrap(handler: Handler) -> Handler:
        def serve(task: Task, registers: memoryview) -> int:
            with task.kernel.lock:
                return handler(task, registers)

        def call(task: Task, registers: memoryview) -> int:
            with dropped(task):
                return executor.submit(serve, task, registers).result()

        return call

    return wrap


@contextlib.contextmanager
def dropped(task: Task) -> Iterator[None]:
    """Without the kernel lock, which the other thread takes. (Task.unlocked() is not for calls served in place.)"""
    task.kernel.lock.release()
    try:
        yield
    finally:
        task.kernel.lock.acquire()


@contextlib.contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="loop")
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def measure(accelerator: str, wrap: Wrap, calls: str) -> str:
    """Run the program with `wrap` around getppid's handler; what it printed on its standard error."""
    null = os.open(os.devnull, os.O_RDWR)
    reader, writer = os.pipe()
    ended = threading.Event()
    machine = Machine(Config(accel=accelerator, memory=256 << 20, stdio=(null, null, writer)))
    machine.on_end = ended.set
    machine.open()
    try:
        handlers = machine.kernel.handlers
        handlers.load(GETPPID)
        handlers.all[GETPPID] = wrap(handlers.all[GETPPID])
        handlers.in_place[GETPPID] = wrap(handlers.in_place[GETPPID])
        machine.start([str(program("bench_percentiles")), calls])
        ended.wait()
    finally:
        machine.close()
        os.close(null)
        os.close(writer)
    if machine.status or machine.kernel.bugs:
        raise SystemExit("\n".join(machine.kernel.bugs) or f"bench_percentiles: status {machine.status}")
    with open(reader, encoding="utf-8") as output:
        return output.read()


if __name__ == "__main__":
    sys.exit(main())
