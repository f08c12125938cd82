"""vmm/memory/frames.py and physical.py: the allocator against a plain set, and what its frames look like."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vmm.memory.frames import BLOCK_FRAMES, Frames, OutOfFrames, add_run, joined
from vmm.memory.physical import GuestRam

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.memory.frames import Run

MIB = 1 << 20


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    ram = GuestRam(8 * MIB)
    yield ram
    ram.close()


@pytest.mark.parametrize("size", [0, -(2 * MIB), MIB, 2 * MIB + 4096])
def test_ram_is_made_of_2_mib_blocks(size: int) -> None:
    with pytest.raises(ValueError, match="2 MiB"):
        GuestRam(size)


def test_ram_closes_twice_and_while_views_are_held() -> None:
    ram = GuestRam(2 * MIB)
    held = ram.view[:4096]
    ram.close()
    ram.close()
    held[0] = 1
    assert held[0] == 1


def test_ram_views_show_the_same_memory(ram: GuestRam) -> None:
    ram.view[8:16] = bytes(range(8))
    assert ram.words[1] == 0x0706050403020100
    assert ram.dwords[3] == 0x07060504


def test_revoke_keeps_data_and_discard_gives_it_up(ram: GuestRam) -> None:
    ram.view[4096:8192] = b"x" * 4096
    ram.revoke(4096, 4096)
    assert ram.view[4096] == ord("x")
    before = os.fstat(ram.fd).st_blocks
    ram.discard(4096, 4096)
    assert ram.view[4096] == 0
    assert os.fstat(ram.fd).st_blocks <= before


def test_populate_backs_pages(ram: GuestRam) -> None:
    ram.populate(2 * MIB, MIB)
    assert os.fstat(ram.fd).st_blocks * 512 >= MIB


def test_making_frames_takes_no_time_per_frame() -> None:
    def cost(size: int) -> float:
        ram = GuestRam(size)
        best = 1.0
        for _ in range(5):
            start = time.perf_counter()
            Frames(ram)
            best = min(best, time.perf_counter() - start)
        ram.close()
        return best

    assert cost(8 << 30) < max(10 * cost(8 * MIB), 1e-3)


def test_frame_0_is_never_given_out(ram: GuestRam) -> None:
    frames = Frames(ram)
    given = {frames.allocate() for _ in range(frames.total)}
    assert len(given) == frames.total == ram.size // 4096 - 1
    assert 0 not in given
    with pytest.raises(OutOfFrames):
        frames.allocate()
    with pytest.raises(OutOfFrames):
        frames.allocate_run(1)
    assert frames.allocate_large() == 0


def test_a_run_is_contiguous_while_that_can_be(ram: GuestRam) -> None:
    frames = Frames(ram)
    assert len(frames.allocate_run(16)) == 1
    assert len(frames.allocate_run(512)) == 1
    big = frames.allocate_run(700)
    assert sum(n for _, n in big) == 700


def test_a_run_is_found_in_pieces_when_memory_is_fragmented(ram: GuestRam) -> None:
    frames = Frames(ram)
    everything = [frames.allocate() for _ in range(frames.total)]
    for address in everything[::2]:
        frames.release(address)
    runs = frames.allocate_run(100)
    assert sum(n for _, n in runs) == 100
    assert all(n == 1 for _, n in runs)


def test_a_run_that_does_not_fit_takes_nothing(ram: GuestRam) -> None:
    frames = Frames(ram)
    with pytest.raises(OutOfFrames):
        frames.allocate_run(frames.total + 1)
    assert frames.free == frames.total


def test_blocks_become_whole_again(ram: GuestRam) -> None:
    frames = Frames(ram)
    blocks = frames.free_blocks
    everything = [frames.allocate() for _ in range(frames.total)]
    assert frames.free_blocks == 0
    for address in everything:
        frames.release(address)
    assert frames.free_blocks == blocks == 3
    block = frames.allocate_large()
    assert block % (2 * MIB) == 0
    assert frames.sole_block(block >> 12)
    frames.reference(block + 4096)
    assert not frames.sole_block(block >> 12)


def test_freed_frames_are_zero_and_unbacked(ram: GuestRam) -> None:
    frames = Frames(ram)
    [(address, count)] = frames.allocate_run(64)
    ram.view[address : address + 64 * 4096] = b"\xff" * (64 * 4096)
    frames.reference(address + 4096)
    assert frames.release_runs([(address, count)]) == [(address + 4096, 1)]
    assert ram.view[address] == 0
    assert ram.view[address + 4096] == 0xFF
    assert os.fstat(ram.fd).st_blocks * 512 <= 2 * 4096  # the frame in use, and the one that was just read
    frames.release(address + 4096)
    assert frames.free == frames.total


def test_misuse_is_noticed(ram: GuestRam) -> None:
    frames = Frames(ram)
    address = frames.allocate()
    frames.release(address)
    with pytest.raises(ValueError, match="released twice"):
        frames.release(address)
    with pytest.raises(ValueError, match="not in use"):
        frames.reference(address)


def test_runs_are_joined() -> None:
    assert joined([(0x3000, 1), (0x1000, 2), (0x8000, 1)]) == [(0x1000, 3), (0x8000, 1)]
    runs = [(0x1000, 1)]
    add_run(runs, 0x2000, 3)
    add_run(runs, 0x9000, 1)
    assert runs == [(0x1000, 4), (0x9000, 1)]


class FramesModel(RuleBasedStateMachine):
    """Random allocation and release against a dict of reference counts."""

    def __init__(self) -> None:
        super().__init__()
        self.ram = GuestRam(6 * MIB)
        self.frames = Frames(self.ram)
        self.users: dict[int, int] = {}

    def teardown(self) -> None:
        for address, users in list(self.users.items()):
            for _ in range(users):
                self.frames.release(address)
        assert self.frames.free == self.frames.total
        assert not any(self.frames.counts)
        self.ram.close()

    def took(self, address: int, count: int) -> None:
        for frame in range(address, address + count * 4096, 4096):
            assert frame not in self.users
            assert frame > 0
            assert frame < self.ram.size
            assert self.ram.words[frame >> 3] == 0
            self.ram.words[frame >> 3] = frame
            self.users[frame] = 1

    @rule()
    def allocate(self) -> None:
        if self.frames.free:
            self.took(self.frames.allocate(), 1)
        else:
            with pytest.raises(OutOfFrames):
                self.frames.allocate()

    @rule(count=st.one_of(st.integers(1, 40), st.integers(1, 1500)))
    def allocate_run(self, count: int) -> None:
        if count > self.frames.free:
            with pytest.raises(OutOfFrames):
                self.frames.allocate_run(count)
            return
        runs = self.frames.allocate_run(count)
        assert sum(n for _, n in runs) == count
        for address, n in runs:
            self.took(address, n)

    @rule()
    def allocate_large(self) -> None:
        had = self.frames.free_blocks
        address = self.frames.allocate_large()
        assert bool(address) == bool(had)
        if address:
            assert address % (2 * MIB) == 0
            self.took(address, BLOCK_FRAMES)

    @precondition(lambda self: self.users)
    @rule(data=st.data(), count=st.integers(1, 600))
    def release(self, data: st.DataObject, count: int) -> None:
        first = data.draw(st.sampled_from(sorted(self.users)))
        run = []
        for address in range(first, first + count * 4096, 4096):
            if address not in self.users:
                break
            run.append(address)
        kept = self.frames.release_runs([(first, len(run))])
        still: list[Run] = []
        for address in run:
            self.users[address] -= 1
            if self.users[address]:
                add_run(still, address, 1)
            else:
                del self.users[address]
        assert joined(kept) == still

    @precondition(lambda self: self.users)
    @rule(data=st.data(), count=st.integers(1, 600))
    def reference(self, data: st.DataObject, count: int) -> None:
        first = data.draw(st.sampled_from(sorted(self.users)))
        run = range(first, first + count * 4096, 4096)
        used = next((n for n, address in enumerate(run) if address not in self.users), count)
        self.frames.reference(first, used)
        for address in run[:used]:
            self.users[address] += 1

    @invariant()
    def agrees(self) -> None:
        assert self.frames.free == self.frames.total - len(self.users)
        counts = {n << 12: users for n, users in enumerate(self.frames.counts.tolist()) if users}
        assert counts == self.users
        assert all(self.ram.words[a >> 3] == a for a in self.users)


TestFramesModel = FramesModel.TestCase
TestFramesModel.settings = settings(max_examples=60, stateful_step_count=40)
