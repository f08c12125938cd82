"""vmm/memory/pagetable.py against an independent walk of the raw tables, and a model of what CPUs may have cached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.unit.vmm.memory_support import ModelMachine
from vmm.layout import DOORBELL, EXCEPTION_STUBS, IDT, STUB, SYSTEM_CPUS
from vmm.memory.frames import OutOfFrames
from vmm.memory.pagetable import LARGE, NX, PRESENT, USER, WRITE, PageTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.memory.frames import Run

BASE = 0x4000_0000
REGION = 2 << 20
RW = PRESENT | USER | WRITE | NX
RO = PRESENT | USER | NX
RX = PRESENT | USER


@pytest.fixture
def machine() -> Iterator[ModelMachine]:
    machine = ModelMachine(16)
    yield machine
    machine.close()


@pytest.fixture
def table(machine: ModelMachine) -> PageTable:
    return PageTable(machine.ram, machine.frames, machine.half)


def put(machine: ModelMachine, table: PageTable, va: int, count: int, flags: int = RW) -> int:
    """Map fresh contiguous frames; their address."""
    [(pa, _)] = machine.frames.allocate_run(count)
    table.map(va, pa, count, flags)
    return pa


def put_large(machine: ModelMachine, table: PageTable, va: int, flags: int = RW) -> int:
    block = machine.frames.allocate_large()
    table.map_large(va, block, flags)
    return block


def test_upper_half_is_shared_by_all_address_spaces(machine: ModelMachine) -> None:
    early = PageTable(machine.ram, machine.frames, machine.half)
    for n, va in enumerate((STUB, DOORBELL, IDT, EXCEPTION_STUBS, SYSTEM_CPUS, SYSTEM_CPUS + 511 * 4096)):
        machine.half.map(va, 0x10_0000_0000 + n * 4096, USER if va == STUB else USER | WRITE | NX)
        late = PageTable(machine.ram, machine.frames, machine.half)
        for table in (early, late):
            found = machine.accelerator.walk(table.root, va)
            assert found is not None
            assert found.frame == 0x10_0000_0000 + n * 4096
            assert found.writable == (va != STUB)
            assert found.executable == (va == STUB)


def test_upper_half_refuses_other_places_and_second_mappings(machine: ModelMachine) -> None:
    machine.half.map(STUB, 0x1000, USER)
    for va, pa in ((STUB, 0x2000), (0x1000, 0x1000), (0xFFFF_9000_0000_0000, 0), (STUB + 1, 0), (STUB + 8192, 5)):
        with pytest.raises(ValueError, match=r"mapped already|no page"):
            machine.half.map(va, pa, USER)


def test_the_upper_half_is_no_memory_of_a_program(machine: ModelMachine, table: PageTable) -> None:
    machine.half.map(STUB, 0x1000, USER)
    assert table.translate(STUB, False) == -1
    assert table.extents(STUB, STUB + 4096, False) == []


def test_map_translate_clear(machine: ModelMachine, table: PageTable) -> None:
    pa = put(machine, table, BASE + 0x5000, 3)
    ro = put(machine, table, BASE + 0x9000, 1, RO)
    assert table.pages == 4
    assert table.translate(BASE + 0x6123, True) == pa + 0x1123
    assert table.translate(BASE + 0x9123, False) == ro + 0x123
    assert table.translate(BASE + 0x9123, True) == -1
    assert table.translate(BASE + 0x4FFF, False) == -1
    assert table.translate(BASE + (1 << 30), False) == -1
    assert table.clear(BASE, BASE + REGION) == [(pa, 3), (ro, 1)]
    assert table.pages == 0
    assert table.entry(BASE + 0x5000) == 0
    assert table.clear(BASE, BASE + REGION) == []


def test_kept_frames_of_pages_without_access(machine: ModelMachine, table: PageTable) -> None:
    pa = put(machine, table, BASE, 2)
    assert table.protect(BASE, BASE + 8192, NX, False) == [(pa, 2)]
    assert table.translate(BASE, False) == -1
    assert table.pages == 2
    assert table.protect(BASE, BASE + 8192, RW, False) == []
    assert table.translate(BASE + 4096, True) == pa + 4096


def test_large_page(machine: ModelMachine, table: PageTable) -> None:
    pa = put_large(machine, table, BASE)
    assert table.region(BASE) & LARGE
    assert table.translate(BASE + 0x12_3456, True) == pa + 0x12_3456
    assert table.pages == 512
    assert table.extents(BASE + 5, BASE + REGION, True) == [(pa + 5, REGION - 5)]
    assert table.clear(BASE, BASE + REGION) == [(pa, 512)]
    assert table.pages == 0


def test_split_gives_the_same_pages(machine: ModelMachine, table: PageTable) -> None:
    pa = put_large(machine, table, BASE, RX)
    assert table.split(BASE) == table.split(BASE + REGION) == []
    before = {va: machine.accelerator.walk(table.root, va) for va in range(BASE, BASE + REGION, 4096)}
    assert table.split(BASE + 0x3000) == [(pa, 512)]
    assert table.split(BASE + 0x3000) == []
    for va, old in before.items():
        new = machine.accelerator.walk(table.root, va)
        assert old is not None
        assert new is not None
        assert new[:3] == old[:3]
    assert table.clear(BASE + 0x3000, BASE + 0x5000) == [(pa + 0x3000, 2)]
    assert table.pages == 510


def test_no_frame_for_a_split_changes_nothing(machine: ModelMachine, table: PageTable) -> None:
    pa = put_large(machine, table, BASE)
    machine.frames.allocate_run(machine.frames.free)
    with pytest.raises(OutOfFrames):
        table.split(BASE + 4096)
    assert table.translate(BASE + 4096, True) == pa + 4096


def test_vacant(machine: ModelMachine, table: PageTable) -> None:
    low, high = BASE - REGION, BASE + 2 * REGION
    assert table.vacant(BASE + 0x3000, low, high) == (BASE, BASE + REGION)
    assert table.vacant(BASE + 0x3000, BASE + 0x2000, BASE + 0x9000) == (BASE + 0x2000, BASE + 0x9000)
    put(machine, table, BASE + 0x5000, 1)
    put(machine, table, BASE + 0x1000, 1)
    assert table.vacant(BASE + 0x3000, low, high) == (BASE + 0x2000, BASE + 0x5000)
    assert table.vacant(BASE, low, high) == (BASE, BASE + 0x1000)
    assert table.vacant(BASE + 0x6000, low, high) == (BASE + 0x6000, BASE + REGION)
    assert table.vacant(BASE + 0x5000, low, high) == (BASE + 0x5000, BASE + 0x5000)
    put_large(machine, table, BASE + REGION)
    assert table.vacant(BASE + REGION + 4096, low, high) == (BASE + REGION + 4096, BASE + REGION + 4096)


def test_present(machine: ModelMachine, table: PageTable) -> None:
    put(machine, table, BASE + 0x1000, 1)
    put_large(machine, table, BASE + REGION)
    got = table.present(BASE, BASE + REGION + 0x2000)
    assert len(got) == 514
    assert [i for i, there in enumerate(got) if there] == [1, 512, 513]


def test_extents_join_and_stop(machine: ModelMachine, table: PageTable) -> None:
    pa = put(machine, table, BASE + REGION - 0x2000, 2)
    [(next_pa, _)] = machine.frames.allocate_run(2)
    table.map(BASE + REGION, next_pa, 2, RW)
    got = table.extents(BASE + REGION - 0x1800, BASE + REGION + 0x1800, True)
    assert sum(n for _, n in got) == 0x3000
    assert got[0][0] == pa + 0x800
    assert len(got) == (1 if next_pa == pa + 0x2000 else 2)
    assert table.extents(BASE + REGION + 0x1FFF, BASE + REGION + 0x5000, True) == [(next_pa + 0x1FFF, 1)]
    assert table.extents(BASE, BASE + 10, False) == []


def test_writes_to_frames_with_other_users_are_not_allowed_by_protect(machine: ModelMachine, table: PageTable) -> None:
    pa = put(machine, table, BASE, 2, RO)
    machine.frames.reference(pa)
    table.protect(BASE, BASE + 8192, RW, False)
    assert table.translate(BASE, True) == -1
    assert table.translate(BASE + 4096, True) == pa + 4096
    table.protect(BASE, BASE + 8192, RW, True)
    assert table.translate(BASE, True) == pa
    large = put_large(machine, table, BASE + REGION, RO)
    machine.frames.reference(large + 77 * 4096)
    table.protect(BASE + REGION, BASE + 2 * REGION, RW, False)
    assert table.translate(BASE + REGION, True) == -1


@pytest.mark.parametrize("shift", [REGION, 0x5000, 3 << 30, (1 << 39) + 0x1000])
def test_move(machine: ModelMachine, table: PageTable, shift: int) -> None:
    pa = put(machine, table, BASE + REGION - 0x3000, 3)
    [(after, _)] = machine.frames.allocate_run(1)
    table.map(BASE + REGION + 0x1000, after, 1, RO)
    start, end = BASE + REGION - 0x2000, BASE + REGION + 0x2000
    to = start + shift
    runs = table.move(start, end, to)
    assert sum(n for _, n in runs) == 3
    assert table.translate(start, False) == -1
    assert table.translate(start - 4096, True) == pa
    assert table.translate(to, True) == pa + 4096
    assert table.translate(to + 0x3000, False) == after
    assert table.translate(to + 0x3000, True) == -1
    assert table.pages == 4


def test_move_large_page(machine: ModelMachine, table: PageTable) -> None:
    pa = put_large(machine, table, BASE)
    assert table.move(BASE, BASE + REGION, BASE + 8 * REGION) == [(pa, 512)]
    assert table.region(BASE + 8 * REGION) & LARGE
    put(machine, table, BASE + 12 * REGION, 1)
    table.clear(BASE + 12 * REGION, BASE + 13 * REGION)
    table.move(BASE + 8 * REGION, BASE + 9 * REGION, BASE + 12 * REGION)
    assert not table.region(BASE + 12 * REGION) & LARGE, "a table stays where it is"
    assert table.translate(BASE + 12 * REGION + 0x3456, True) == pa + 0x3456
    assert table.pages == 512


def test_a_move_without_frames_changes_nothing(machine: ModelMachine, table: PageTable) -> None:
    pa = put(machine, table, BASE, 2)
    machine.frames.allocate_run(machine.frames.free)
    with pytest.raises(OutOfFrames):
        table.move(BASE, BASE + 0x2000, BASE + (1 << 39))
    assert table.translate(BASE + 4096, True) == pa + 4096


def test_share(machine: ModelMachine, table: PageTable) -> None:
    pa = put(machine, table, BASE, 2)
    large = put_large(machine, table, BASE + REGION)
    shared = put(machine, table, BASE + 2 * REGION, 1)
    child = PageTable(machine.ram, machine.frames, machine.half)
    table.share(child, BASE, BASE + 2 * REGION, True, [])
    table.share(child, BASE + 2 * REGION, BASE + 3 * REGION, False, [])
    for one in (table, child):
        assert one.translate(BASE + 1, False) == pa + 1
        assert one.translate(BASE + 1, True) == -1
        assert one.translate(BASE + REGION + 0x7777, False) == large + 0x7777
        assert one.translate(BASE + REGION, True) == -1
        assert one.translate(BASE + 2 * REGION, True) == shared
        assert one.pages == 515
    assert machine.frames.counts[pa >> 12] == machine.frames.counts[(large >> 12) + 511] == 2
    for one in (table, child):
        machine.frames.release_runs(one.clear(BASE, BASE + 3 * REGION))
        one.free_tables()
    machine.assert_all_free()


class TableModel(RuleBasedStateMachine):
    """Random changes of one table against a dict, with everything cached and the documented revocations made."""

    PAGES = 3 * 512 + 7

    def __init__(self) -> None:
        super().__init__()
        self.machine = ModelMachine(32)
        self.table = PageTable(self.machine.ram, self.machine.frames, self.machine.half)
        self.pages: dict[int, tuple[int, int]] = {}

    def teardown(self) -> None:
        self.drop(self.table.clear(BASE, BASE + self.PAGES * 4096))
        self.machine.accelerator.revoke_all()
        self.table.free_tables()
        self.machine.assert_all_free()
        self.machine.close()

    def drop(self, runs: list[Run]) -> None:
        self.revoke(runs)
        self.machine.frames.release_runs(runs)

    def revoke(self, runs: list[Run]) -> None:
        for pa, n in runs:
            self.machine.accelerator.revoke(pa, n * 4096)

    def va(self, page: int) -> int:
        return BASE + page * 4096

    def split(self, first: int, last: int) -> None:
        for page in (first, last):
            self.revoke(self.table.split(self.va(page)))

    ranges = st.tuples(
        st.one_of(st.sampled_from([0, 1, 511, 512, 1023, 1024, 1535]), st.integers(0, PAGES - 1)),
        st.one_of(st.sampled_from([1, 2, 512, 1024]), st.integers(1, PAGES)),
    ).map(lambda r: (r[0], min(r[0] + r[1], TableModel.PAGES)))
    flags = st.sampled_from([RW, RO, RX, NX | USER])

    @rule(range_=ranges, flags=flags)
    def fill(self, range_: tuple[int, int], flags: int) -> None:
        first, last = range_
        last = min(last, first + 40)
        for page in range(first, last):
            if page not in self.pages:
                self.pages[page] = (put(self.machine, self.table, self.va(page), 1, flags), flags)

    @rule(region=st.integers(0, 2), flags=flags)
    def fill_large(self, region: int, flags: int) -> None:
        first = region * 512
        if not self.table.region(self.va(first)):
            pa = put_large(self.machine, self.table, self.va(first), flags)
            self.pages.update({first + i: (pa + i * 4096, flags) for i in range(512)})

    @rule(range_=ranges)
    def clear(self, range_: tuple[int, int]) -> None:
        first, last = range_
        self.split(first, last)
        self.drop(self.table.clear(self.va(first), self.va(last)))
        self.pages = {p: v for p, v in self.pages.items() if not first <= p < last}

    @rule(range_=ranges, flags=flags)
    def protect(self, range_: tuple[int, int], flags: int) -> None:
        first, last = range_
        self.split(first, last)
        self.revoke(self.table.protect(self.va(first), self.va(last), flags, False))
        self.pages.update({p: (self.pages[p][0], flags) for p in range(first, last) if p in self.pages})

    @rule(range_=ranges, to=st.integers(0, PAGES))
    def move(self, range_: tuple[int, int], to: int) -> None:
        first, last = range_
        to = min(to, self.PAGES - (last - first))
        if any(p in self.pages for p in range(to, to + last - first)) or (to < last and first < to + last - first):
            return
        self.revoke(self.table.split_range(self.va(first), self.va(last)))
        self.revoke(self.table.move(self.va(first), self.va(last), self.va(to)))
        for page in range(first, last):
            if page in self.pages:
                self.pages[page - first + to] = self.pages.pop(page)

    @invariant()
    def agrees(self) -> None:
        accelerator = self.machine.accelerator
        accelerator.check({self.table.root})
        accelerator.absorb(self.table.root)
        assert self.table.pages == len(self.pages)
        assert list(self.table.present(BASE, self.va(self.PAGES))) == [p in self.pages for p in range(self.PAGES)]
        for page in range(self.PAGES):
            pa, flags = self.pages.get(page, (0, 0))
            found = accelerator.walk(self.table.root, self.va(page))
            if not flags & PRESENT:
                assert found is None
                continue
            assert found is not None
            assert found[:3] == (pa, bool(flags & WRITE), not flags & NX)
            assert self.table.translate(self.va(page) + 5, True) == (pa + 5 if flags & WRITE else -1)


TestTableModel = TableModel.TestCase
TestTableModel.settings = settings(max_examples=40, stateful_step_count=25)
