"""Machine as a library: asyncio, several machines in one process, cancelling, errors, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import program
from vmm.machine import BootError, Config, Machine, MonitorError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.task.task import Task

BUSYBOX = "/bin/busybox"


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """A machine that was closed leaves no thread and no descriptor."""
    before = threads(), descriptors()
    yield
    assert threads() <= before[0]
    assert descriptors() <= before[1]


def threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith(("vcpu", "pyvmm"))}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def config(accelerator: str) -> Iterator[Config]:
    null = os.open(os.devnull, os.O_RDWR)
    yield Config(accel=accelerator, memory=64 << 20, stdio=(null, null, null))
    os.close(null)


def test_runs_programs_one_after_the_other(config: Config) -> None:
    async def main() -> list[int]:
        async with Machine(config) as machine:
            return [await machine.run([BUSYBOX, "sh", "-c", f"exit {n}"]) for n in (0, 3, 255)]

    assert asyncio.run(main()) == [0, 3, 255]


def test_runs_programs_at_once_in_one_machine_and_in_several(config: Config) -> None:
    async def main() -> list[int]:
        async with Machine(config) as one, Machine(config) as two:
            runs = [machine.run([BUSYBOX, "sh", "-c", f"exit {n}"]) for n in (1, 2, 3) for machine in (one, two)]
            return await asyncio.gather(*runs)

    assert asyncio.run(main()) == [1, 1, 2, 2, 3, 3]


def test_output_goes_where_the_config_says(config: Config, tmp_path: Path) -> None:
    async def main() -> int:
        async with Machine(config) as machine:
            return await machine.run([BUSYBOX, "env"], {"NAME": "value"})

    with (tmp_path / "out").open("wb") as out:
        config.stdio = (config.stdio[0], out.fileno(), config.stdio[2])
        assert asyncio.run(main()) == 0
    assert (tmp_path / "out").read_text() == "NAME=value\n"


def test_cancelling_kills_the_program(config: Config) -> None:
    async def main() -> None:
        async with Machine(config) as machine:
            run = asyncio.create_task(machine.run([program("hostile"), "many_spinners"]))
            while len(machine.kernel.tasks) < 3:
                await asyncio.sleep(0.01)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run

    asyncio.run(main())


def test_closing_ends_what_still_runs(config: Config) -> None:
    async def main() -> None:
        async with Machine(config) as machine:
            machine.start([program("hostile"), "many_spinners"])

    asyncio.run(main())


def test_a_program_that_cannot_be_started(config: Config, tmp_path: Path) -> None:
    async def main() -> None:
        async with Machine(config) as machine:
            with pytest.raises(BootError, match="No such file"):
                await machine.run([tmp_path / "missing"])
            with pytest.raises(BootError, match="too long"):
                await machine.run([BUSYBOX, "x" * (1 << 20)])
            assert await machine.run([BUSYBOX, "true"]) == 0
            assert not machine.kernel.processes

    asyncio.run(main())


def test_a_bug_of_the_monitor_is_told_and_does_not_touch_other_machines(config: Config) -> None:
    def broken(task: Task, registers: memoryview) -> int:
        raise ZeroDivisionError("a bug")

    async def main() -> None:
        async with Machine(config) as healthy, Machine(config) as machine:
            machine.kernel.handlers.all[102] = machine.kernel.handlers.in_place[102] = broken
            with pytest.raises(MonitorError, match=r"(?s)ZeroDivisionError: a bug.*rax=0x66 "):
                await machine.run([BUSYBOX, "id", "-u"])
            assert await healthy.run([BUSYBOX, "id", "-u"]) == 0

    asyncio.run(main())


def test_a_machine_of_no_memory(accelerator: str) -> None:
    async def main() -> None:
        async with Machine(Config(accel=accelerator, memory=1 << 20)):
            pass

    with pytest.raises(BootError, match="memory"):
        asyncio.run(main())


def test_vcpu_threads_are_named_and_pinned(config: Config) -> None:
    cpu = max(os.sched_getaffinity(0))
    config.pin = [cpu]

    async def main() -> dict[str, set[int]]:
        async with Machine(config) as machine:
            machine.start([program("hostile"), "many_spinners"])
            while len(vcpus()) < 9:
                await asyncio.sleep(0.01)
            return vcpus()

    found = asyncio.run(main())
    assert len(found) == 9
    assert all(name.removeprefix("vcpu-").isdigit() for name in found)
    assert set(map(frozenset, found.values())) == {frozenset({cpu})}


def vcpus() -> dict[str, set[int]]:
    """The host threads of this process that run vCPUs: name and the CPUs that they may use."""
    found = {}
    for tid in os.listdir("/proc/self/task"):
        name = Path(f"/proc/self/task/{tid}/comm").read_text().strip()
        if name.startswith("vcpu"):
            found[name] = os.sched_getaffinity(int(tid))
    return found
