"""devices/memory/access.py: copies to and from a program, hostile addresses included."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.memory import abi
from tests.unit.devices.memory.memory_model import (
    ANON,
    BASE,
    EXEC,
    FIXED,
    INFINITY,
    NONE,
    PAGE,
    PRIVATE,
    READ,
    REGION,
    RW,
    SHARED,
    TASK_SIZE,
    WRITE,
    Machine,
    Space,
    fails,
)

if TYPE_CHECKING:
    from collections.abc import Callable

P = PRIVATE | ANON
HOSTILE = [0, BASE - 1, BASE + 4 * PAGE, TASK_SIZE, TASK_SIZE - 1, 1 << 47, 1 << 63, INFINITY, INFINITY - 7]


@pytest.fixture
def mapped(space: Space) -> Space:
    """Pages 0 and 1 may be written, page 2 only read, page 3 not accessed; nothing is mapped behind."""
    for page, prot in enumerate((RW, RW, READ, NONE)):
        space.mmap(BASE + page * PAGE, PAGE, prot, P | FIXED)
    return space


@pytest.mark.parametrize("address", HOSTILE)
def test_hostile_addresses(mapped: Space, address: int) -> None:
    for call in (
        lambda: mapped.read(address, 8),
        lambda: mapped.write(address, b"12345678"),
        lambda: mapped.read_partial(address, 8),
        lambda: mapped.write_partial(address, b"12345678"),
        lambda: mapped.read_u32(address),
        lambda: mapped.read_i32(address),
        lambda: mapped.read_u64(address),
        lambda: mapped.write_u32(address, 1),
        lambda: mapped.write_u64(address, 1),
        lambda: mapped.read_cstring(address, 4096),
        lambda: mapped.views(address, 8, False),
        lambda: mapped.views_partial(address, 8, True),
        lambda: mapped.pin(address, 8, True),
        lambda: mapped.frame_of(address, True),
        lambda: mapped.futex_key(address, True),
    ):
        with fails(errno.EFAULT):
            call()


@pytest.mark.parametrize("size", [1 << 47, 1 << 63, INFINITY, TASK_SIZE])
def test_hostile_sizes(mapped: Space, size: int) -> None:
    for call in (mapped.read, mapped.read_partial, lambda a, n: mapped.views(a, n, True)):
        with fails(errno.EFAULT):
            call(BASE + 1, size)


def test_nothing_at_a_bad_address_is_no_error(mapped: Space) -> None:
    assert mapped.read(INFINITY, 0) == b""
    mapped.write(INFINITY, b"")
    assert mapped.write_partial(0, b"") == 0
    assert mapped.views(0, 0, True) == []


@pytest.mark.parametrize("prot", range(8))
def test_protection_binds_the_monitor_as_it_binds_the_program(space: Space, prot: int) -> None:
    space.mmap(BASE, PAGE, prot, P | FIXED)
    for _ in range(2):
        if prot:
            assert space.read(BASE, 1) == b"\0"
        else:
            with fails(errno.EFAULT):
                space.read(BASE, 1)
        if prot & WRITE:
            space.write(BASE, b"\0")
        else:
            with fails(errno.EFAULT):
                space.write(BASE, b"\0")


def test_across_pages(mapped: Space) -> None:
    data = bytes(range(256)) * 32
    mapped.write(BASE, data)
    assert mapped.read(BASE, 2 * PAGE) == data
    assert mapped.read(BASE + PAGE - 3, 6) == data[PAGE - 3 : PAGE + 3]
    mapped.write(BASE + PAGE - 2, b"wxyz")
    assert mapped.read(BASE + PAGE - 3, 6) == data[PAGE - 3 : PAGE - 2] + b"wxyz" + data[PAGE + 2 : PAGE + 3]
    assert mapped.load(BASE + PAGE) == ord("y")


def test_partial_progress(mapped: Space) -> None:
    assert len(mapped.read_partial(BASE, 9 * PAGE)) == 3 * PAGE
    assert mapped.write_partial(BASE + PAGE + 100, b"x" * 9000) == PAGE - 100
    assert mapped.read(BASE + 2 * PAGE - 1, 1) == b"x"
    assert sum(map(len, mapped.views_partial(BASE + 1, 9 * PAGE, False))) == 3 * PAGE - 1
    with fails(errno.EFAULT):
        mapped.write(BASE + PAGE, b"y" * (PAGE + 1))
    assert mapped.read(BASE + PAGE, 1) == b"\0", "nothing was written"


def test_numbers(mapped: Space) -> None:
    for address in (BASE, BASE + 4, BASE + 8, BASE + 3, BASE + PAGE - 2, BASE + PAGE - 4):
        for _ in range(2):
            mapped.write_u32(address, 0xFFFF_FFFE)
            assert mapped.read_u32(address) == 0xFFFF_FFFE
            assert mapped.read_i32(address) == -2
            mapped.write_u32(address, -3)
            assert mapped.read(address, 4) == struct.pack("<i", -3)
            mapped.write_u64(address, -5)
            assert mapped.read_u64(address) == INFINITY - 4
            mapped.write_u64(address, 1 << 64 | 7)
            assert mapped.read(address, 8) == struct.pack("<Q", 7)


def test_structures(mapped: Space) -> None:
    class Pair(ctypes.Structure):
        _fields_ = (("a", ctypes.c_uint32), ("b", ctypes.c_uint64))

    layout = struct.Struct("<IxxxxQ")
    mapped.write_struct(BASE + 4090, layout, 1, 2)
    assert mapped.read_struct(BASE + 4090, layout) == (1, 2)
    pair = Pair()
    mapped.read_into(BASE + 4090, pair)
    assert (pair.a, pair.b) == (1, 2)
    with fails(errno.EFAULT):
        mapped.read_into(BASE + 3 * PAGE - 8, pair)


def test_strings(mapped: Space) -> None:
    mapped.write(BASE + PAGE - 3, b"hello\0rest")
    assert mapped.read_cstring(BASE + PAGE - 3, 4096) == b"hello"
    assert mapped.read_cstring(BASE + PAGE + 2, 1) == b""
    assert mapped.read_cstring(BASE + PAGE - 3, 6) == b"hello"
    for limit in (0, 1, 3, 5):
        with fails(errno.ENAMETOOLONG):
            mapped.read_cstring(BASE + PAGE - 3, limit)
    mapped.write(BASE + PAGE, b"x" * PAGE)
    mapped.mmap(BASE + 2 * PAGE, PAGE, NONE, P | FIXED)
    with fails(errno.EFAULT):
        mapped.read_cstring(BASE + PAGE, 8192)
    with fails(errno.ENAMETOOLONG):
        mapped.read_cstring(BASE + PAGE, PAGE)


def test_views_are_the_memory(mapped: Space) -> None:
    views = mapped.views(BASE + 100, PAGE, True)
    assert sum(map(len, views)) == PAGE
    for view in views:
        view[:] = b"v" * len(view)
    assert mapped.read(BASE + 100, PAGE) == b"v" * PAGE
    reader, writer = os.pipe()
    os.writev(writer, mapped.views(BASE + 90, 20, False))
    assert os.read(reader, 100) == bytes(10) + b"v" * 10
    os.close(reader)
    os.close(writer)


def test_large_ranges_are_few_views(machine: Machine) -> None:
    with machine.checked_space() as space:
        address = space.mmap(0, 4 * REGION, RW, P)
        assert len(space.views(address, 4 * REGION, True)) < 20


def test_no_frame_is_efault_and_told(machine: Machine) -> None:
    told = []
    machine.on_out_of_memory = lambda: told.append(1)
    with machine.checked_space() as space:
        address = space.mmap(0, PAGE, RW, P)
        rest = machine.frames.allocate_run(machine.frames.free)
        with fails(errno.EFAULT):
            space.write(address, b"x")
        machine.frames.release_runs(rest)
        assert told == [1]
        space.write(address, b"x")


def test_the_software_tlb_follows_every_change(mapped: Space) -> None:
    changes: list[Callable[[], object]] = [
        lambda: mapped.mprotect(BASE, PAGE, READ),
        lambda: mapped.munmap(BASE, PAGE),
    ]
    for change in changes:
        mapped.write(BASE, b"1")
        mapped.read(BASE, 1)
        change()
        with fails(errno.EFAULT):
            mapped.write(BASE, b"2")
        mapped.mmap(BASE, PAGE, RW, P | FIXED)
        assert mapped.read(BASE, 1) == b"\0"


def test_many_pages_do_not_grow_the_tlb_without_end(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devices.memory.access.TRANSLATIONS", 64)
    with machine.checked_space() as space:
        address = space.mmap(0, REGION, RW, P)
        for page in range(512):
            space.write_u64(address + page * PAGE, page)
        assert len(space._readable) <= 64
        assert [space.read_u64(address + page * PAGE) for page in range(512)] == list(range(512))


def test_pinned_memory_outlives_its_mapping(machine: Machine) -> None:
    with machine.checked_space() as space:
        address = space.mmap(BASE, 4 * PAGE, RW, P | FIXED)
        free = machine.frames.free
        space.write(address + PAGE, b"data")
        with space.pin(address + PAGE, 2 * PAGE, True) as pinned:
            space.settle()
            space.munmap(address, 4 * PAGE)
            space.settle()
            held = list(pinned.views)
            assert bytes(held[0][:4]) == b"data"
            taken = machine.frames.allocate_run(machine.frames.free)
            for pa, count in taken:
                assert all(not machine.ram.words[a >> 3] for a in range(pa, pa + count * PAGE, PAGE))
            held[0][:4] = b"late"
            machine.frames.release_runs(taken)
            assert machine.frames.free < free + 20
        assert machine.pins == []


def test_pinning_leaves_rights_alone(machine: Machine) -> None:
    with machine.checked_space() as space:
        address = space.mmap(BASE, PAGE, RW, P | FIXED)
        with space.pin(address, PAGE, True) as pinned:
            space.mprotect(address, PAGE, READ)
            space.mprotect(address, PAGE, RW)
            space.store(address, 1)
            assert pinned.views[0][0] == 1, "a write makes no copy"


def test_futex_keys(machine: Machine) -> None:
    from devices.memory.remap import mremap

    with machine.checked_space() as space:
        other = machine.space()
        private = space.mmap(BASE, PAGE, RW, P | FIXED)
        other.mmap(BASE, PAGE, RW, P | FIXED)
        assert space.futex_key(private, False) == space.futex_key(private, True)
        assert space.futex_key(private, False) != other.futex_key(private, False)
        assert space.futex_key(private, False) != space.futex_key(private + 4, False)
        assert space.futex_key(0x123450, False), "a private key needs no memory"
        with fails(errno.EFAULT):
            space.futex_key(TASK_SIZE - 2, False)
        shared = space.mmap(0, 2 * PAGE, RW, SHARED | ANON)
        twin = mremap(space, shared, 0, 2 * PAGE, 1, 0)
        assert space.futex_key(shared + PAGE + 8, True) == space.futex_key(twin + PAGE + 8, True)
        assert space.futex_key(shared + PAGE + 8, False) != space.futex_key(twin + PAGE + 8, False)
        assert space.futex_key(shared, True) != space.futex_key(shared + PAGE, True)
        assert len({space.futex_key(shared, True), space.futex_key(twin, True)}) == 1
        other.teardown()


def test_frame_of_makes_the_page_present(mapped: Space) -> None:
    pa = mapped.frame_of(BASE + 4, True)
    mapped.machine.ram.dwords[pa >> 2] = 77
    assert mapped.read_u32(BASE + 4) == 77
    with fails(errno.EFAULT):
        mapped.frame_of(BASE + 2 * PAGE, True)


@given(st.lists(st.tuples(st.integers(0, 5 * PAGE), st.integers(0, 2 * PAGE), st.booleans()), max_size=8))
@settings(max_examples=60)
def test_reads_see_what_writes_left(steps: list[tuple[int, int, bool]]) -> None:
    machine = Machine(4)
    space = machine.space()
    space.mmap(BASE, 5 * PAGE, RW, P | FIXED)
    memory = bytearray(5 * PAGE)
    for n, (at, size, partial) in enumerate(steps):
        data = bytes([n + 1]) * size
        fits = at + size <= len(memory)
        if partial and (at < len(memory) or not size):
            done = space.write_partial(BASE + at, data)
            assert done == min(size, len(memory) - at)
            memory[at : at + done] = data[:done]
        elif fits:
            space.write(BASE + at, data)
            memory[at : at + size] = data
        elif size:
            with fails(errno.EFAULT):
                space.write(BASE + at, data)
        if at < len(memory):
            assert space.read_partial(BASE + at, size) == memory[at : at + size]
        assert space.read(BASE, len(memory)) == memory
    space.teardown()
    machine.model.assert_all_free()
    machine.model.close()


def test_a_copy_within_a_known_page_is_quick(machine: Machine) -> None:
    """A ratio, not a time: a small copy costs a few times what slicing the RAM itself does."""
    with machine.checked_space() as space:
        address = space.mmap(0, PAGE, RW, P)
        space.write(address, b"x" * 64)
        ram = machine.ram.map
        pa = space.frame_of(address, False)

        def best(call: Callable[[], object]) -> float:
            times = []
            for _ in range(7):
                start = time.perf_counter()
                for _ in range(2000):
                    call()
                times.append(time.perf_counter() - start)
            return min(times)

        bare = best(lambda: ram[pa : pa + 16])
        assert best(lambda: space.read(address, 16)) < 8 * bare
        assert best(lambda: space.write(address, b"0123456789abcdef")) < 8 * bare
        assert best(lambda: space.read_u32(address)) < 8 * bare


def test_executable_memory_can_be_read_but_not_written(space: Space) -> None:
    space.mmap(BASE, PAGE, EXEC, P | FIXED)
    assert space.read(BASE, 4) == bytes(4)
    with fails(errno.EFAULT):
        space.write(BASE, b"x")
    space.mprotect(BASE, PAGE, abi.PROT_READ | abi.PROT_WRITE)
    space.write(BASE, b"x")
