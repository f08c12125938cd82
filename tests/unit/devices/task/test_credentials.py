"""Ids, capabilities, secure bits and groups: random sequences of calls against the host's kernel."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.errors import SysError
from devices.task.process import Credentials
from tests.unit.devices.support import NUMBERS, World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.task.task import Task

ORACLE = Path(__file__).with_name("credentials_oracle.py")
KEEP = 0xFFFF_FFFF
VERSION = 0x2008_0522
VALID = (1 << 41) - 1

IDS = st.sampled_from([0, 0, 1, 1000, 1001, KEEP])
CAPS = st.one_of(
    st.sampled_from([0, VALID, 1 << 7, 1 << 6, 1 << 8, 0xFF, (1 << 41) - 2]), st.integers(0, (1 << 64) - 1)
)
NUMBERS_OF_CAPS = st.sampled_from([0, 6, 7, 8, 21, 23, 40, 41, 63, 64])


def capset(effective: int, permitted: int, inheritable: int) -> list[Any]:
    header = struct.pack("<Ii", VERSION, 0).hex()
    parts = [value >> shift & KEEP for shift in (0, 32) for value in (effective, permitted, inheritable)]
    return ["capset", header, struct.pack("<6I", *parts).hex()]


def ids(name: str, count: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(IDS, min_size=count, max_size=count).map(lambda values: [name, *values])


CALLS = st.one_of(
    ids("setuid", 1),
    ids("setgid", 1),
    ids("setreuid", 2),
    ids("setregid", 2),
    ids("setresuid", 3),
    ids("setresgid", 3),
    ids("setfsuid", 1),
    ids("setfsgid", 1),
    st.lists(st.sampled_from([5, 3, 9, 3]), max_size=4).map(
        lambda groups: ["setgroups", len(groups), struct.pack(f"<{len(groups)}I", *groups).hex()]
    ),
    st.builds(capset, CAPS, CAPS, CAPS),
    st.sampled_from([0, 1, 2]).map(lambda value: ["prctl", 8, value, 0, 0, 0]),
    st.integers(0, 0x1FF).map(lambda bits: ["prctl", 28, bits & 0xFF, 0, 0, 0]),
    NUMBERS_OF_CAPS.map(lambda number: ["prctl", 23, number, 0, 0, 0]),
    NUMBERS_OF_CAPS.map(lambda number: ["prctl", 24, number, 0, 0, 0]),
    st.tuples(st.integers(0, 5), NUMBERS_OF_CAPS, st.sampled_from([0, 0, 0, 1])).map(
        lambda values: ["prctl", 47, *values, 0]
    ),
)


@pytest.fixture(scope="module")
def oracle() -> Iterator[subprocess.Popen[str]]:
    if os.getuid():
        pytest.skip("only root can change who it is")
    with subprocess.Popen(
        [sys.executable, ORACLE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def ask(oracle: subprocess.Popen[str], calls: list[list[Any]]) -> list[Any]:
    assert oracle.stdin is not None
    assert oracle.stdout is not None
    numbered = [[NUMBERS[name], *arguments] for name, *arguments in calls]
    oracle.stdin.write(json.dumps(numbered) + "\n")
    oracle.stdin.flush()
    answer: list[Any] = json.loads(oracle.stdout.readline())
    return answer


def state(task: Task) -> list[Any]:
    who = task.credentials
    return [
        [who.uid, who.euid, who.suid, who.fsuid],
        [who.gid, who.egid, who.sgid, who.fsgid],
        list(who.groups),
        [who.effective, who.permitted, who.inheritable, who.bounding, who.ambient],
        who.securebits,
    ]


def begin(task: Task, host: list[Any]) -> None:
    """The task is who the oracle's thread is (a container's root has fewer capabilities)."""
    who = Credentials(groups=tuple(host[2]))
    who.uid, who.euid, who.suid, who.fsuid = host[0]
    who.gid, who.egid, who.sgid, who.fsgid = host[1]
    who.effective, who.permitted, who.inheritable, who.bounding, who.ambient = host[3]
    who.securebits = host[4]
    task.credentials = who


def ours(world: World, call: list[Any]) -> int:
    name, *arguments = call
    at = world.data
    values = []
    for argument in arguments:
        if isinstance(argument, str):
            world.task.memory.write(at, bytes.fromhex(argument))
            values.append(at)
            at += 1024
        else:
            values.append(argument)
    try:
        return world.call(name, *values)
    except SysError as error:
        return -error.errno


@settings(max_examples=300)
@given(st.lists(CALLS, max_size=12))
def test_what_the_hosts_kernel_does(oracle: subprocess.Popen[str], world: World, calls: list[list[Any]]) -> None:
    first, *theirs = ask(oracle, calls)
    begin(world.task, first)
    assert state(world.task) == first
    for call, (result, after) in zip(calls, theirs, strict=True):
        assert ours(world, call) == result, call
        assert state(world.task) == after, call
