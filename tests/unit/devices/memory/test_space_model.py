"""An address space under random calls and accesses, against a dict of pages.

The reference knows nothing of frames, tables or windows: a page is a protection and a cell that holds one byte, and
two shared mappings of one object have the same cells. After every step the areas agree with it and the model CPU, which
caches all it can, holds nothing stale; at the end every frame has come back.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from devices.errors import SysError
from devices.memory.advice import madvise, mincore
from devices.memory.remap import mremap
from tests.unit.devices.memory.conftest import KINDS
from tests.unit.devices.memory.memory_model import ANON, BASE, FIXED, PAGE, PRIVATE, SHARED, Bytes, Machine, Space

PAGES = 2 * 512 + 40
FILE_PAGES = 100
FILE = b"".join(bytes([n % 251 + 1]) * PAGE for n in range(FILE_PAGES))
POPULATE = 0x8000
SPOT = 1234  # the byte of each page that is looked at


class Cell:
    """The byte of a page."""

    def __init__(self, value: int = 0) -> None:
        self.value = value


class Page:
    """A page of the reference. `object`: of a shared mapping, its cells by index, and the page's index."""

    def __init__(self, prot: int, cell: Cell, backing: Any = None, index: int = 0) -> None:
        self.prot = prot
        self.cell = cell
        self.backing = backing
        self.index = index

    @property
    def shared(self) -> bool:
        return isinstance(self.backing, list)


edges = st.one_of(st.sampled_from([0, 1, 15, 16, 17, 511, 512, 513, 1024]), st.integers(0, PAGES - 1))
sizes = st.one_of(st.sampled_from([1, 2, 16, 512, 1024]), st.integers(1, 64), st.integers(1, PAGES))
ranges = st.tuples(edges, sizes).map(lambda r: (r[0], min(r[0] + r[1], PAGES)))
small = st.tuples(edges, st.integers(1, 40)).map(lambda r: (r[0], min(r[0] + r[1], PAGES)))
prots = st.sampled_from([3, 3, 3, 7, 1, 5, 0, 2])
kinds = st.sampled_from(["private", "private", "shared", "file"])


class SpaceModel(RuleBasedStateMachine):
    space: Space

    @initialize(kind=st.sampled_from(sorted(KINDS)), mib=st.sampled_from([4, 12, 32]))
    def start(self, kind: str, mib: int) -> None:
        self.machine = Machine(mib, **KINDS[kind])
        self.space = self.machine.space()
        self.pages: dict[int, Page] = {}
        self.mmap((0, PAGES - 20), 3, "private")

    def teardown(self) -> None:
        if not hasattr(self, "space"):
            return
        self.space.teardown()
        self.machine.model.accelerator.check(set())
        self.machine.model.assert_all_free()
        self.machine.model.close()

    def va(self, page: int) -> int:
        return BASE + page * PAGE

    # Calls

    @rule(range_=ranges, prot=prots, kind=kinds, populate=st.booleans())
    def map_again(self, range_: tuple[int, int], prot: int, kind: str, populate: bool) -> None:
        self.mmap(range_, prot, kind, POPULATE if populate else 0)

    def mmap(self, range_: tuple[int, int], prot: int, kind: str, flags: int = 0) -> None:
        first, last = range_
        flags |= FIXED | (SHARED if kind == "shared" else PRIVATE) | (0 if kind == "file" else ANON)
        backing = Bytes(FILE) if kind == "file" else None
        try:
            self.space.mmap(self.va(first), (last - first) * PAGE, prot, flags, backing)
        except SysError:
            assert last - first > self.machine.total, "only more than all memory is refused"
            return
        cells = [Cell() for _ in range(first, last)]
        for i, page in enumerate(range(first, last)):
            if kind == "shared":
                self.pages[page] = Page(prot, cells[i], cells, i)
            elif kind == "file":
                value = FILE[i * PAGE + SPOT] if i < FILE_PAGES else 0
                self.pages[page] = Page(prot, Cell(value), backing, i)
            else:
                self.pages[page] = Page(prot, cells[i])

    @rule(range_=small)
    def munmap(self, range_: tuple[int, int]) -> None:
        first, last = range_
        self.space.munmap(self.va(first), (last - first) * PAGE)
        for page in range(first, last):
            self.pages.pop(page, None)

    @rule(range_=small, prot=prots)
    def mprotect(self, range_: tuple[int, int], prot: int) -> None:
        first, last = range_
        whole = True
        try:
            self.space.mprotect(self.va(first), (last - first) * PAGE, prot)
        except SysError:
            whole = False
        for page in range(first, last):
            if page not in self.pages:
                assert not whole
                return
            self.pages[page].prot = prot
        assert whole

    @rule(range_=small)
    def dontneed(self, range_: tuple[int, int]) -> None:
        first, last = range_
        try:
            madvise(self.space, self.va(first), (last - first) * PAGE, 4)
        except SysError:
            assert any(p not in self.pages for p in range(first, last))
        for number in range(first, last):
            page = self.pages.get(number)
            if page is None or page.shared:
                continue
            file = page.backing is not None and page.index < FILE_PAGES
            page.cell = Cell(FILE[page.index * PAGE + SPOT] if file else 0)

    @rule(range_=small, to=edges, grow=st.integers(-20, 20))
    def mremap(self, range_: tuple[int, int], to: int, grow: int) -> None:
        """Move with MREMAP_FIXED, or resize in place when `to` is what it is."""
        first, last = range_
        size = max(1, last - first + grow)
        pages = [self.pages.get(p) for p in range(first, last)]
        if to + size > PAGES:
            return
        try:
            mremap(self.space, self.va(first), (last - first) * PAGE, size * PAGE, 3, self.va(to))
        except SysError:
            return self.remap_failed(first, last, to, size)
        moved = self.after_remap(pages, size)
        for page in range(first, last):
            self.pages.pop(page, None)
        for page in range(to, to + size):
            self.pages.pop(page, None)
        self.pages.update({to + i: page for i, page in enumerate(moved)})
        return None

    def after_remap(self, pages: list[Page | None], size: int) -> list[Page]:
        head = pages[0]
        assert head is not None, "nothing can be moved from a hole"
        moved = [p for p in pages[:size] if p is not None]
        assert len(moved) == min(len(pages), size)
        for i in range(len(moved), size):
            index = head.index + i
            if head.shared:
                cell = head.backing[index] if index < len(head.backing) else Cell()
            else:
                file = head.backing is not None and index < FILE_PAGES
                cell = Cell(FILE[index * PAGE + SPOT] if file else 0)
            moved.append(Page(head.prot, cell, head.backing, index))
        return moved

    def remap_failed(self, first: int, last: int, to: int, size: int) -> None:
        """EINVAL changes nothing; EFAULT and ENOMEM come when the target is unmapped and the source cut already."""
        if to < last and first < to + size:
            return
        if first not in self.pages:
            return
        for page in range(to, to + size):
            self.pages.pop(page, None)
        for page in range(min(first + size, last), last):
            self.pages.pop(page, None)

    @rule(range_=ranges)
    def mincore(self, range_: tuple[int, int]) -> None:
        first, last = range_
        vector = BASE - 64 * PAGE
        self.space.mmap(vector, PAGE, 3, FIXED | PRIVATE | ANON)
        try:
            mincore(self.space, self.va(first), (last - first) * PAGE, vector)
        except SysError:
            assert any(p not in self.pages for p in range(first, last)) or self.full()
        self.space.munmap(vector, PAGE)

    # Accesses

    def full(self) -> bool:
        return self.machine.frames.free < 8

    def expects(self, page: Page | None, write: bool) -> bool:
        if page is None or not page.prot or (write and not page.prot & 2):
            return False
        if page.shared:
            return page.index < len(page.backing)
        return page.backing is None or page.index < FILE_PAGES

    @rule(range_=ranges, step=st.sampled_from([1, 1, 3, 17]), value=st.integers(1, 255), by_monitor=st.booleans())
    def store(self, range_: tuple[int, int], step: int, value: int, by_monitor: bool) -> None:
        for number in range(*range_, step):
            page = self.pages.get(number)
            address = self.va(number) + SPOT
            done = self.write(address, value) if by_monitor else self.program_store(address, value)
            assert done == self.expects(page, True) or self.full(), (number, page and page.prot)
            if done and page is not None:
                page.cell.value = value

    def write(self, address: int, value: int) -> bool:
        try:
            self.space.write(address, bytes([value]))
        except SysError:
            return False
        return True

    def program_store(self, address: int, value: int) -> bool:
        pa = self.space.access(address, 2)
        if isinstance(pa, int):
            self.machine.ram.view[pa] = value
        return isinstance(pa, int)

    @rule(range_=ranges, step=st.sampled_from([1, 1, 3, 17]), by_monitor=st.booleans())
    def load(self, range_: tuple[int, int], step: int, by_monitor: bool) -> None:
        for number in range(*range_, step):
            page = self.pages.get(number)
            got = (self.read if by_monitor else self.program_load)(self.va(number) + SPOT)
            if got is None:
                assert not self.expects(page, False) or self.full()
            else:
                assert self.expects(page, False)
                assert page is not None
                assert got == page.cell.value, number

    def read(self, address: int) -> int | None:
        try:
            return self.space.read(address, 1)[0]
        except SysError:
            return None

    def program_load(self, address: int) -> int | None:
        pa = self.space.access(address)
        return self.machine.ram.view[pa] if isinstance(pa, int) else None

    @rule(range_=ranges)
    def views(self, range_: tuple[int, int]) -> None:
        """Whole ranges at once, as large reads and writes use them."""
        first, last = range_
        try:
            views = self.space.views(self.va(first), (last - first) * PAGE, False)
        except SysError:
            assert not all(self.expects(self.pages.get(p), False) for p in range(first, last)) or self.full()
            return
        data = b"".join(views)
        assert len(data) == (last - first) * PAGE
        for i, number in enumerate(range(first, last)):
            assert data[i * PAGE + SPOT] == self.pages[number].cell.value

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "space"):
            return
        self.space.settle()
        areas: dict[int, int] = {}
        for vma in self.space.regions():
            areas.update({(va - BASE) // PAGE: vma.flags & 7 for va in range(vma.start, vma.end, PAGE)})
        assert areas == {number: page.prot for number, page in self.pages.items()}
        assert self.space.total_vm == len(self.pages)


TestSpaceModel = SpaceModel.TestCase
TestSpaceModel.settings = settings(
    max_examples=80, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow]
)


def test_the_model_cpu_notices_a_lost_revocation() -> None:
    """The checker itself can fail: what it is worth stands and falls with that."""
    machine = Machine(8)
    space = machine.space()
    address = space.mmap(0, PAGE, 3, PRIVATE | ANON)
    space.store(address, 1)
    space.settle()
    machine.frames.release_runs(space.table.clear(address, address + PAGE))
    with pytest.raises(AssertionError, match="mapped no more"):
        space.settle()
    machine.model.close()
