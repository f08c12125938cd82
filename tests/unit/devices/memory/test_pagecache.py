"""devices/memory/pagecache.py: pages of a host file against reads, writes, truncation, mappers and scarce memory."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.errors import SysError
from devices.memory import abi
from devices.memory.advice import msync
from devices.memory.pagecache import PageCache, runs_of, split_views
from tests.unit.devices.memory.memory_model import ANON, PAGE, PRIVATE, READ, RW, SHARED, Machine, Space, fault_of

if TYPE_CHECKING:
    from collections.abc import Iterator


class HostFile:
    """A host's file in a bytearray; counts its calls, and fails when it is told to."""

    path = b"/host/file"

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int]] = []
        self.fails = 0

    @property
    def size(self) -> int:
        return len(self.data)

    def read_into(self, view: memoryview, offset: int) -> int:
        if self.fails:
            raise OSError(self.fails, "told to")
        part = self.data[offset : offset + len(view)]
        self.reads.append((offset, len(part)))
        view[: len(part)] = part
        return len(part)

    def write_from(self, view: memoryview, offset: int) -> int:
        if self.fails:
            raise OSError(self.fails, "told to")
        self.writes.append((offset, len(view)))
        self.data.extend(bytes(max(0, offset - len(self.data))))
        self.data[offset : offset + len(view)] = view
        return len(view)


def pattern(pages: int, extra: int = 0) -> bytes:
    return b"".join(bytes([65 + i % 50]) * PAGE for i in range(pages)) + b"x" * extra


@pytest.fixture
def file() -> HostFile:
    return HostFile(pattern(8, 100))


@pytest.fixture
def cache(space: Space, file: HostFile) -> Iterator[PageCache]:
    cache = PageCache(space.machine, file)
    yield cache
    space.munmap(0, 1 << 46)
    cache.close()
    assert not space.machine.dirty
    assert not list(space.machine.caches)


def shared(space: Space, cache: PageCache, prot: int = RW, pages: int = 9) -> int:
    return int(space.mmap(0, pages * PAGE, prot, SHARED, cache, 0))


def buffer(space: Space, size: int = 1 << 16) -> int:
    return int(space.mmap(0, size, RW, PRIVATE | ANON))


def test_a_mapping_shows_the_file_and_zeros_behind_its_end(space: Space, cache: PageCache, file: HostFile) -> None:
    at = shared(space, cache, READ)
    assert space.load(at + 3 * PAGE) == file.data[3 * PAGE]
    assert space.read(at + 8 * PAGE, PAGE) == b"x" * 100 + bytes(PAGE - 100)
    assert fault_of(space.fault(at + 9 * PAGE, 4)) == (abi.SIGSEGV, abi.SEGV_MAPERR)
    beyond = int(space.mmap(0, PAGE, READ, SHARED, cache, 20 * PAGE))
    assert fault_of(space.fault(beyond, 4)) == (abi.SIGBUS, abi.BUS_ADRERR)


def test_private_mappings_that_only_read_share_frames(space: Space, cache: PageCache) -> None:
    one = int(space.mmap(0, 8 * PAGE, READ, PRIVATE, cache, 0))
    other = int(space.mmap(0, 8 * PAGE, READ, PRIVATE, cache, 0))
    assert space.frame_of(one + PAGE, False) == space.frame_of(other + PAGE, False)


def test_a_writable_private_mapping_has_its_own_at_once(space: Space, cache: PageCache, file: HostFile) -> None:
    at = int(space.mmap(0, 8 * PAGE, RW, PRIVATE, cache, 0))
    assert space.load(at) == 65
    space.store(at, 7)
    cache.sync()
    assert file.data[0] == 65
    assert not file.writes
    assert not cache.present


def test_writes_of_a_mapping_reach_the_file_by_msync(space: Space, cache: PageCache, file: HostFile) -> None:
    at = shared(space, cache)
    assert space.load(at + 2 * PAGE) == 67
    space.store(at + 2 * PAGE, 1)
    assert file.data[2 * PAGE] == 67
    assert list(space.machine.dirty) == [cache]
    msync(space, at, 9 * PAGE, abi.MS_SYNC)
    assert file.data[2 * PAGE] == 1
    file.writes.clear()
    msync(space, at, 9 * PAGE, abi.MS_SYNC)
    assert not file.writes, "what is clean is not written again"
    space.store(at + 2 * PAGE, 2)
    msync(space, at, 9 * PAGE, abi.MS_SYNC)
    assert file.data[2 * PAGE] == 2, "a page that was written back is watched again"


def test_a_page_that_is_only_read_is_never_written(space: Space, cache: PageCache, file: HostFile) -> None:
    at = shared(space, cache)
    for page in range(9):
        space.load(at + page * PAGE)
    space.mprotect(at, 9 * PAGE, READ)
    space.mprotect(at, 9 * PAGE, RW)
    space.load(at)
    space.munmap(at, 9 * PAGE)
    assert not file.writes


def test_the_last_munmap_writes_back_and_not_behind_the_end(space: Space, cache: PageCache, file: HostFile) -> None:
    at = shared(space, cache)
    space.write(at + 8 * PAGE, b"y" * PAGE)
    space.munmap(at, 9 * PAGE)
    assert len(file.data) == 8 * PAGE + 100
    assert file.data[8 * PAGE :] == b"y" * 100


def test_what_is_behind_the_end_is_zero_when_the_file_grows(space: Space, cache: PageCache, file: HostFile) -> None:
    at = shared(space, cache)
    space.write(at + 8 * PAGE, b"y" * PAGE)
    data = buffer(space)
    space.write(data, b"tail")
    assert cache.write(space, [(data, 4)], 8 * PAGE + 200) == 4
    assert space.read(at + 8 * PAGE, 204) == b"y" * 100 + bytes(100) + b"tail"
    cache.sync()
    assert file.data[8 * PAGE :] == b"y" * 100 + bytes(100) + b"tail"


def test_read_and_write_agree_with_mappings(space: Space, cache: PageCache, file: HostFile) -> None:
    at, data = shared(space, cache), buffer(space)
    space.store(at + PAGE, 3)
    assert cache.read(space, [(data, 3 * PAGE)], 0) == 3 * PAGE
    assert space.load(data + PAGE) == 3
    space.write(data, b"w" * 2 * PAGE)
    assert cache.write(space, [(data, 2 * PAGE)], 100) == 2 * PAGE
    assert bytes(file.data[100 : 100 + 2 * PAGE]) == b"w" * 2 * PAGE, "the host has it at once"
    assert space.read(at + 100, 2 * PAGE) == b"w" * 2 * PAGE
    assert cache.read(space, [(data, 1 << 15), (data, 10 * PAGE)], 8 * PAGE) == 100
    assert cache.read(space, [(data, 10)], 20 * PAGE) == 0


def test_without_a_mapping_nothing_is_cached(space: Space, cache: PageCache, file: HostFile) -> None:
    data = buffer(space)
    assert cache.read(space, [(data, PAGE)], PAGE) == PAGE
    assert space.load(data) == 66
    assert cache.write(space, [(data, PAGE)], 0) == PAGE
    assert not cache.present


def test_truncation_takes_pages_from_all_mappings(space: Space, cache: PageCache, file: HostFile) -> None:
    at = shared(space, cache)
    own = int(space.mmap(0, 9 * PAGE, RW, PRIVATE, cache, 0))
    space.store(at + 4 * PAGE, 9)
    space.store(own + 4 * PAGE, 9)
    del file.data[PAGE + 10 :]
    cache.resized(PAGE + 10)
    assert space.read(at + PAGE, PAGE) == b"B" * 10 + bytes(PAGE - 10)
    for place in (at, own):
        assert fault_of(space.fault(place + 4 * PAGE, 4)) == (abi.SIGBUS, abi.BUS_ADRERR)
    cache.sync()
    assert len(file.data) == PAGE + 10


def test_a_change_behind_the_guests_back(space: Space, cache: PageCache, file: HostFile) -> None:
    at = shared(space, cache)
    assert space.load(at) == 65
    space.store(at + 20 + 16 * 0, 65)
    cache.sync()
    file.data[0] = 200
    assert space.load(at) == 65
    cache.forget()
    assert space.load(at) == 200


def test_errors_of_the_host(space: Space, cache: PageCache, file: HostFile) -> None:
    at = shared(space, cache)
    file.fails = errno.EIO
    assert fault_of(space.fault(at, 4)) == (abi.SIGBUS, abi.BUS_ADRERR)
    assert not cache.present
    data = buffer(space)
    with pytest.raises(SysError, match="EIO"):
        cache.read(space, [(data, 10)], 0)
    file.fails = 0
    space.store(at, 5)
    file.fails = errno.ENOSPC
    with pytest.raises(SysError, match="ENOSPC"):
        cache.sync()
    file.fails = 0
    cache.sync()  # told once


def test_scarce_memory_takes_clean_pages(machine: Machine) -> None:
    with machine.checked_space() as space:
        memory = space.machine
        file = HostFile(pattern(512))
        cache = PageCache(memory, file)
        at = shared(space, cache, RW, 512)
        for page in range(512):
            space.load(at + page * PAGE)
        space.store(at + 3 * PAGE, 1)
        assert cache.present == 512
        assert memory.reclaim(10) == 0, "all are mapped"
        hungry = int(space.mmap(0, memory.frames.free * PAGE, RW, PRIVATE | ANON))
        for page in range(memory.frames.free - memory.total // 64):
            space.store(hungry + page * PAGE, 1)
        space.load(hungry)
        assert space.fault(hungry, 4) is None
        assert cache.present < 512, "mapped clean pages go at a program's fault"
        assert space.load(at + 3 * PAGE) == 1, "dirty ones do not"
        space.munmap(hungry, 1 << 30)
        space.munmap(at, 512 * PAGE)
        left = cache.present
        assert memory.reclaim(1 << 20) == left
        assert not cache.present
        cache.close()


step = st.one_of(
    st.tuples(st.sampled_from(["store", "private", "load"]), st.integers(0, 6 * PAGE), st.integers(1, 255)),
    st.tuples(st.sampled_from(["write", "read"]), st.integers(0, 6 * PAGE), st.integers(1, 3 * PAGE)),
    st.tuples(st.sampled_from(["truncate"]), st.integers(0, 6 * PAGE), st.just(0)),
    st.tuples(st.sampled_from(["sync", "shrink", "remap"]), st.just(0), st.just(0)),
)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(step, max_size=30))
def test_against_one_bytearray(steps: list[tuple[str, int, int]]) -> None:
    """All ways to a file show one row of bytes; after a sync the host has them."""
    machine = Machine(32, populates=True, discard_revokes=True)
    try:
        with machine.checked_space() as space:
            run_steps(space, steps)
    finally:
        machine.model.close()


def run_steps(space: Space, steps: list[tuple[str, int, int]]) -> None:
    file = HostFile(pattern(4, 77))
    model = bytearray(file.data)
    cache = PageCache(space.machine, file)
    at, data = shared(space, cache, RW, 8), buffer(space)
    for number, (what, offset, value) in enumerate(steps, 1):
        if what == "store" and offset < len(model):
            space.store(at + offset, value)
            model[offset] = value
        elif what == "load" and offset < len(model):
            assert space.load(at + offset) == model[offset]
        elif what == "write":
            content = bytes([number]) * value
            space.write(data, content)
            assert cache.write(space, [(data, value)], offset) == value
            model.extend(bytes(max(0, offset - len(model))))
            model[offset : offset + value] = content
        elif what == "read":
            count = cache.read(space, [(data, value)], offset)
            assert space.read(data, count) == model[offset : offset + value]
        elif what == "truncate":
            model[offset:] = bytes(max(0, offset - len(model)))
            file.data[offset:] = bytes(max(0, offset - len(file.data)))
            cache.resized(offset)
        elif what == "sync":
            cache.sync()
            assert file.data == model
        elif what == "shrink":
            cache.shrink(1 << 20, True)
        elif what == "remap":
            space.munmap(at, 8 * PAGE)
            assert file.data == model
            at = shared(space, cache, RW, 8)
    assert space.read(at, len(model)) == model
    space.munmap(at, 8 * PAGE)
    assert file.data == model
    cache.close()


def test_helpers() -> None:
    assert runs_of([1, 2, 3, 7, 9, 10]) == [(1, 4), (7, 8), (9, 11)]
    first, rest = split_views([memoryview(b"abc"), memoryview(b"defg")], 5)
    assert (b"".join(first), b"".join(rest)) == (b"abcde", b"fg")
    first, rest = split_views([memoryview(b"abc"), memoryview(b"d")], 3)
    assert (b"".join(first), b"".join(rest)) == (b"abc", b"d")
