"""Which program gives which rows, and what they should be."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import TYPE_CHECKING

from tests.bench import startup
from tests.bench.report import Limit, Row
from tests.bench.session import Failed, Samples
from tests.bench.ways import Way

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.bench.session import Session

Rows = list[Row]
HANDED = {"own": "the vCPU's thread", "loop": "an asyncio loop", "executor": "an executor"}
NOT_QILING = ("qiling",)
"""Qiling serves no futexes, and its threads are not threads."""
POPULATE = """
import mmap, os, sys, time
block, size = 2 << 20, int(sys.argv[2]) << 20
memory = os.memfd_create("bench")
os.ftruncate(memory, size)
ram = mmap.mmap(memory, size)
start = time.perf_counter()
for at in range(0, size, block):
    ram.madvise(23, at, block)
print("first_touch", (time.perf_counter() - start) / (size >> 12) * 1e6, "us", file=sys.stderr)
"""
"""What guest RAM is made of, and how the monitor fills it. 23 is MADV_POPULATE_WRITE; arguments as bench_touch's."""
MORE = ("threads", "kvm", "emulator")
"""tests/bench/bench_NAME.py."""
MORE_TIMEOUT = 90.0


def against(reference: Mapping[str, float], values: Mapping[str, float]) -> dict[str, float]:
    """Each way's value as a part of its reference."""
    return {way: value / reference[way] for way, value in values.items() if way in reference}


def single(samples: Samples, name: str, title: str, unit: str, *limits: Limit) -> Row:
    """A row of one of a program's figures."""
    return Row(title, unit, samples.best(name), limits, samples.all(name))


def loop(session: Session) -> Rows:
    """(1) CPU-bound code."""
    samples = session.sample("bench_loop", session.milliseconds)
    taken = single(samples, "loop.best", "CPU-bound loop, an addition", "ns")
    native = taken.values.get("native")
    speed = {way: native / value for way, value in taken.values.items()} if native else {}
    return [taken, Row("CPU-bound loop, speed against native", "x", speed, [Limit("kvm", 0.98, at_least=True)])]


def getppid(session: Session) -> Rows:
    """(2) The trivial system call."""
    samples = session.sample("bench_getppid", session.milliseconds)
    called = samples.all("getppid.best", 1e-3)
    return [Row("getppid()", "us", samples.best("getppid.best", 1e-3), [Limit("emulator", 7)], called)]


def bare(session: Session) -> Rows:
    """(2) What pyvmm's Python adds to the KVM_RUN round trip of a system call."""
    if "kvm" not in session.accelerators():
        return []
    samples = Samples()
    for _ in range(session.repetitions):
        samples.add("kvm", session.run([sys.executable, "-m", "tests.bench.bare"]))
    share = samples.best("served")["kvm"] - samples.best("bare")["kvm"]
    return [
        single(samples, "served", "getppid(), served", "us"),
        single(samples, "bare", "getppid(), bare KVM_RUN round trip", "us"),
        Row("getppid(), Python's share", "us", {"kvm": share}, [Limit("kvm", 5)]),
    ]


def beside(session: Session) -> Rows:
    """(2) The trivial call while another thread makes calls too: locks, and the GIL."""
    calls = "1000" if session.quick else "3000"
    samples = session.sample("bench_percentiles", calls, "1", without=NOT_QILING)
    return [
        Row(f"getppid() beside a calling thread, {name}", "us", samples.median(name), (), samples.all(name))
        for name in ("p50", "p99")
    ]


def touch(session: Session) -> Rows:
    """(3) Memory that is touched for the first time, and again. KVM's cannot cost less than the host's memory does."""
    host = Way("memfd", [sys.executable, "-c", POPULATE])
    samples = session.sample("bench_touch", "64" if session.quick else "256", more=[host])
    first = single(
        samples, "first_touch", "first touch of memory, a 4 KiB page", "us", Limit("kvm", 6, reference="memfd")
    )
    floor = {"native": first.values[host.name]} if host.name in first.values else {}
    return [
        first,
        Row("memfd on the host, MADV_POPULATE_WRITE, a page", "us", floor),
        single(samples, "second_touch", "second touch, a 4 KiB page", "us"),
    ]


def pair(session: Session) -> Rows:
    """(4) Two threads at once."""
    samples = session.sample("bench_pair", "300" if session.quick else "1500", without=NOT_QILING)
    ratio = against(samples.best("one_thread"), samples.best("two_threads"))
    return [Row("two CPU-bound threads, time against one", "x", ratio, [Limit("kvm", 1.1, reference="native")])]


def clock(session: Session) -> Rows:
    """(8) Reading a clock."""
    samples = session.sample("bench_clock", session.milliseconds)
    return [single(samples, "clock_gettime.best", "clock_gettime()", "ns")]


def futex(session: Session) -> Rows:
    """(8) Threads that wake each other."""
    samples = session.sample("bench_futex", session.milliseconds, without=NOT_QILING)
    return [single(samples, "futex.best", "futex wake and wait, round trip", "us")]


def write(session: Session) -> Rows:
    """(8) Output."""
    samples = session.sample("bench_write", session.milliseconds)
    return [single(samples, "write.best", "write() of 4 KiB to /dev/null", "us")]


def thread(session: Session) -> Rows:
    """(8) The life of a thread."""
    samples = session.sample("bench_thread", session.milliseconds, without=NOT_QILING)
    return [single(samples, "thread.best", "pthread_create() and pthread_join()", "us")]


def mapping(session: Session) -> Rows:
    """(8) Two calls and a page fault."""
    samples = session.sample("bench_map", session.milliseconds)
    return [single(samples, "map_touch_unmap.best", "mmap(), touch, munmap() of a page", "us")]


def start(session: Session) -> Rows:
    """(5) Start-up."""
    return startup.rows(session)


def memory(session: Session) -> Rows:
    """(6) Memory of the monitor."""
    taken = {}
    for name in session.accelerators():
        try:
            taken[name] = startup.resident(session, name)
        except Failed as failure:
            session.report.note(f"{name}: memory: {failure}")
    return [Row("resident memory of the monitor, hello", "MiB", taken, [Limit("kvm", 45)])]


def handover(session: Session) -> Rows:
    """(7) Who serves a call: the product's way, and what two others would cost."""
    taken = {way: Samples() for way in HANDED}
    for accelerator in session.accelerators():
        command = [sys.executable, "-m", "tests.bench.handover", accelerator]
        for _ in range(1 if session.quick else 3):
            try:
                figures = session.run(command)
            except Failed as failure:
                session.report.note(f"{accelerator}: handover: {failure}")
                break
            for name, value in figures.items():
                way, _, figure = name.partition(".")
                taken[way].add(accelerator, {figure: value})
    return [
        Row(f"getppid() served by {title}, {figure}", "us", taken[way].median(figure), (), taken[way].all(figure))
        for way, title in HANDED.items()
        for figure in ("p50", "p99")
    ]


def more(name: str) -> Callable[[Session], Rows]:
    """(9) The figures of tests/bench/bench_NAME.py, in a process of their own."""
    code = (
        "import importlib, json, sys; out, sys.stdout = sys.stdout, sys.stderr; "
        "json.dump(importlib.import_module(sys.argv[1]).run(), out)"
    )

    def measure(session: Session) -> Rows:
        module = f"tests.bench.bench_{name}"
        if importlib.util.find_spec(module) is None:
            raise Failed(f"there is no {module}")
        told = json.loads(session.output([sys.executable, "-c", code, module], MORE_TIMEOUT))
        session.report.more += [(f"{name}: {figure}", text) for figure, text in told]
        return []

    return measure


FIGURES: dict[str, Callable[[Session], Rows]] = {
    "loop": loop,
    "getppid": getppid,
    "bare": bare,
    "beside": beside,
    "handover": handover,
    "touch": touch,
    "pair": pair,
    "start": start,
    "memory": memory,
    "clock": clock,
    "futex": futex,
    "write": write,
    "thread": thread,
    "map": mapping,
    **{name: more(name) for name in MORE},
}


def measure(session: Session, names: list[str], progress: Callable[[str], None]) -> None:
    """Measure the figures `names`; what cannot be measured is noted, and the others go on."""
    for name in names:
        progress(name)
        try:
            session.left()
            session.report.rows += [row for row in FIGURES[name](session) if row.values or row.limits]
        except Failed as failure:
            session.report.note(f"{name}: {failure}")
