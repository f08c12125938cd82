"""The system call boundary, fuzzed from the declarations: whatever the registers hold, a handler answers.

An answer is a result, a SysError, a wait (Interrupted, LeaveGuest) or the end of the task; any other exception is a
bug of the monitor. Arguments are drawn by the declared C type: descriptors small, pointers good, bad, misaligned and at
the edges, lengths and flags of every size.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from devices.bus import DECLARED
from devices.errors import Interrupted, LeaveGuest, SysError, TaskExit
from devices.fs.console import ConsoleFile
from devices.table import TABLE
from tests.unit.devices.support import NUMBERS, World
from vmm.layout import TASK_SIZE

if TYPE_CHECKING:
    from devices.args import Arg

ROUNDS = 150
SERVED = sorted(entry.name for entry in TABLE.values() if entry.module)
U64_EDGES = (0, 1, 2, 7, 8, 4095, 4096, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 32, 1 << 47, 1 << 63, (1 << 64) - 1)


def value_for(rng: random.Random, arg: Arg, world: World) -> int:
    """A register value for an argument of this type; now and then one of any kind."""
    kind = rng.random()
    if kind < 0.15:
        return rng.choice(U64_EDGES)
    if kind < 0.2:
        return rng.getrandbits(64)
    if "*" in arg.ctype:
        return rng.choice(
            (
                world.data + rng.randrange(0, 1 << 16),
                world.data + rng.randrange(0, 1 << 12) * 8,
                world.data + (1 << 16) - rng.randrange(1, 64),
                0,
                TASK_SIZE - rng.randrange(0, 16),
                TASK_SIZE + rng.randrange(0, 16),
                0xFFFF_8080_0000_0000,
                0xFFFF_FFFF_FF5F_E000,
            )
        )
    return rng.choice((0, 1, 2, 3, 4, 8, rng.randrange(256), 1 << rng.randrange(64), -rng.randrange(1, 200)))


def fill(rng: random.Random, world: World) -> None:
    """Hostile contents for the structures that pointers lead to."""
    words = [rng.choice((*U64_EDGES, world.data + rng.randrange(1 << 16), rng.getrandbits(64))) for _ in range(512)]
    world.task.memory.write(world.data, b"".join(w.to_bytes(8, "little") for w in words))


@pytest.mark.parametrize("name", SERVED)
def test_hostile_arguments_are_answered(name: str) -> None:
    rng = random.Random(name)
    null = os.open(os.devnull, os.O_RDWR)
    world = World()
    try:
        world.kernel.handlers.load(NUMBERS[name])
        parameters = DECLARED[name].parameters
        for _ in range(ROUNDS):
            task = world.task
            if task.process.exiting or len(world.kernel.tasks) > 20:
                for other in list(task.process.tasks.values()):
                    other.gone_locked()
                task = world.task = world.new_process()
                world.data = task.memory.mmap(0, 1 << 16, 3, 0x22)
            for fd in (0, 1, 2):
                task.files.replace_locked(fd, ConsoleFile(null))
            try:
                fill(rng, world)
            except SysError:
                world.data = task.memory.mmap(0, 1 << 16, 3, 0x22)
                fill(rng, world)
            task.in_place = True  # so that a call which would wait says so
            arguments = [value_for(rng, arg, world) for _, arg in parameters]
            try:
                result = world.call(name, *arguments)
            except (SysError, LeaveGuest, Interrupted, TaskExit):
                continue
            finally:
                task.in_place = False
            assert -4096 < result < 1 << 64, (name, arguments)
    finally:
        world.close()
        os.close(null)
