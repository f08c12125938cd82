"""devices/fs/pipe.py and splice.py: the buffers of a pipe, what fstat tells, files by which bytes are spliced."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.errors import SysError
from devices.fs.kerneltask import KernelMemory
from devices.fs.pipe import DEFAULT_PAGES, FIXED, PACKET, Pipe
from devices.vfs.pathname import path_name
from tests.unit.devices.support import World, world

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
O_DIRECT, O_NONBLOCK, O_CLOEXEC = 0o40000, 0o4000, 0o2000000

put = st.tuples(st.just("put"), st.binary(min_size=1, max_size=3 * PAGE), st.sampled_from([0, 0, FIXED]))
take = st.tuples(st.sampled_from(["take", "buffer", "back"]), st.integers(1, 3 * PAGE), st.just(0))


@given(st.lists(st.one_of(put, take), max_size=30))
def test_bytes_come_out_as_they_went_in(steps: list[tuple[str, bytes | int, int]]) -> None:
    pipe = Pipe()
    model = b""
    for what, value, kind in steps:
        if isinstance(value, bytes):
            done = pipe.put(value, kind)
            assert done == len(value) or not pipe.free, "short only where it is full"
            model += value[:done]
        elif what == "take":
            found = pipe.take(value)
            assert found == model[:value]
            model = model[len(found) :]
        elif pipe.buffers:
            found = pipe.take_buffer(value)
            assert found
            assert model.startswith(found)
            if what == "back":
                pipe.give_back(found)
            else:
                model = model[len(found) :]
        assert pipe.size == len(model)
        assert all(0 < len(buffer) <= PAGE for buffer in pipe.buffers)


def test_packets_and_fixed_buffers_stand_for_themselves() -> None:
    pipe = Pipe()
    for kind in (PACKET, PACKET, FIXED, 0, 0):
        pipe.put(b"abc", kind)
    assert [len(buffer) for buffer in pipe.buffers] == [3, 3, 3, 6]
    assert pipe.take(2) == b"ab", "the rest of a packet is lost"
    assert pipe.take(10) == b"abc"
    assert pipe.take(100) == b"abcabcabc"


@pytest.fixture
def w() -> Iterator[World]:
    with world() as made:
        yield made


def make(w: World, flags: int = O_NONBLOCK) -> tuple[int, int]:
    w.call("pipe2", w.data, flags)
    reader, writer = struct.unpack("<ii", w.task.memory.read(w.data, 8))
    return reader, writer


def test_a_pipe_has_an_inode_of_its_own(w: World) -> None:
    reader, writer = make(w)
    other, _ = make(w)
    inodes = []
    for fd in (reader, writer, other):
        assert w.call("fstat", fd, w.data) == 0
        dev, ino, nlink, mode = struct.unpack_from("<QQQI", w.task.memory.read(w.data, 144))
        assert (nlink, mode) == (1, 0o10600)
        inodes.append((dev, ino))
    assert inodes[0] == inodes[1] != inodes[2]
    path = w.task.files.get(reader).path
    assert path is not None
    assert path_name(w.task, path) == b"pipe:[%d]" % inodes[0][1]


def test_failed_pipe2_leaves_nothing(w: World) -> None:
    before = w.task.files.numbers()
    with pytest.raises(SysError, match="EFAULT"):
        w.call("pipe2", 8, 0)
    w.call("prlimit64", 0, 7, 0, w.data)
    w.task.memory.write(w.data, struct.pack("<QQ", 1, 1 << 20))
    w.call("prlimit64", 0, 7, w.data, 0)
    with pytest.raises(SysError, match="EMFILE"):
        w.call("pipe2", w.data, 0)
    assert w.task.files.numbers() == before
    assert [mount.users for mount in w.kernel.vfs.internal_mounts.values()] == [1]


def test_reading_touches_only_what_there_is_to_read(w: World) -> None:
    reader, writer = make(w)
    w.task.memory.write(w.data, b"abc")
    assert w.call("write", writer, w.data, 3) == 3
    end = w.data + (1 << 16)
    assert w.call("read", reader, end - 16, 1 << 20) == 3
    assert w.task.memory.read(end - 16, 3) == b"abc"


def test_splice_to_a_sealed_file_loses_nothing(w: World) -> None:
    reader, writer = make(w)
    w.task.memory.write(w.data, b"x\0")
    memfd = w.call("memfd_create", w.data, 2)
    assert w.call("fcntl", memfd, 1033, 8) == 0  # F_ADD_SEALS, F_SEAL_WRITE
    assert w.call("write", writer, w.data, 2) == 2
    with pytest.raises(SysError, match="EPERM"):
        w.call("splice", reader, 0, memfd, 0, 10, 0)
    assert w.call("read", reader, w.data + 100, 10) == 2
    assert w.task.memory.read(w.data + 100, 2) == b"x\0"


def test_capacity_counts_buffers(w: World) -> None:
    reader, writer = make(w)
    w.task.memory.write(w.data, b"x\0")
    memfd = w.call("memfd_create", w.data, 0)
    w.call("ftruncate", memfd, 1 << 20)
    for _ in range(DEFAULT_PAGES):
        assert w.call("splice", memfd, 0, writer, 0, 1, 0) == 1
    with pytest.raises(SysError) as told:
        w.call("splice", memfd, 0, writer, 0, 1, 0)
    assert told.value.errno == errno.EAGAIN
    assert w.call("fcntl", reader, 1032) == DEFAULT_PAGES * PAGE


def test_the_monitors_buffer_has_bounds() -> None:
    memory = KernelMemory(bytearray(b"0123456789"))
    assert memory.read(8, 2) == b"89"
    memory.write_u64(1, 5)
    assert (memory.read_u64(1), memory.read_u32(1)) == (5, 5)
    for address, size in ((8, 3), (-1, 1), (11, 0), (0, 1 << 40)):
        with pytest.raises(SysError, match="EFAULT"):
            memory.read(address, size)
