"""devices/memory/vma.py: the sorted list of areas against a dict of pages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from devices.memory.abi import STACK_GUARD_GAP, VM_GROWSDOWN
from devices.memory.backing import SharedBacking
from devices.memory.vma import Vma, VmaList
from tests.unit.devices.memory.memory_model import MIB, PAGE


def pages_of(vmas: VmaList) -> dict[int, tuple[int, object, int]]:
    """page -> (flags, backing, page of the backing), and the list's own order checked on the way."""
    found: dict[int, tuple[int, object, int]] = {}
    last = None
    for vma in vmas:
        assert vma.start < vma.end
        if last is not None:
            assert last.end <= vma.start
            assert not vma.continues(last), "neighbours that are alike are one"
        last = vma
        for at in range(vma.start, vma.end, PAGE):
            index = vma.offset_of(at) // PAGE if vma.backing is not None else 0
            found[at // PAGE] = (vma.flags, vma.backing, index)
    return found


steps = st.lists(
    st.tuples(
        st.sampled_from(["insert", "insert", "remove", "flags"]),
        st.integers(1, 40),
        st.integers(1, 12),
        st.sampled_from([1, 3]),
        st.sampled_from([None, 0, 1]),
        st.integers(0, 3),
    ),
    max_size=40,
)


@given(steps)
def test_against_a_dict_of_pages(steps: list[tuple[str, int, int, int, int | None, int]]) -> None:
    vmas = VmaList()
    backings = [SharedBacking(), SharedBacking()]
    pages: dict[int, tuple[int, object, int]] = {}
    for what, first, count, flags, which, index in steps:
        start, end = first * PAGE, (first + count) * PAGE
        backing = None if which is None else backings[which]
        if what == "insert":
            vmas.close(vmas.remove(start, end))
            vma = vmas.insert(Vma(start, end, flags, backing, index * PAGE if backing is not None else 0))
            assert vma.start <= start
            assert vma.end >= end
            for i in range(count):
                pages[first + i] = (flags, backing, index + i if backing is not None else 0)
        elif what == "remove":
            vmas.close(vmas.remove(start, end))
            for i in range(count):
                pages.pop(first + i, None)
        else:
            expected = sum(1 for at in (start, end) if (a := vmas.at(at)) is not None and a.start < at)
            assert vmas.splits(start, end) == expected
            for vma in vmas.carve(start, end):
                vma.flags = flags
            vmas.rejoin(start, end)
            for page in range(first, first + count):
                if page in pages:
                    pages[page] = (flags, *pages[page][1:])
        assert pages_of(vmas) == pages
        assert vmas.covered(start, end) == all(p in pages for p in range(first, first + count))
        for backing in backings:
            assert backing.mappings == sum(1 for vma in vmas if vma.backing is backing)
    for page in range(60):
        at = vmas.at(page * PAGE)
        assert (at is not None) == (page in pages)
        above = vmas.find(page * PAGE)
        assert above.start <= page * PAGE if above and page in pages else True
        assert (above is None) == (max(pages, default=-1) < page)
        below = vmas.before(page * PAGE)
        assert (below is None) == (min(pages, default=99) >= page)


@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(1, 10)), max_size=12),
    st.integers(1, 30),
    st.integers(1, 40),
    st.integers(50, 110),
)
def test_gaps_against_looking_at_every_address(areas: list[tuple[int, int]], length: int, low: int, high: int) -> None:
    vmas = VmaList()
    used: set[int] = set()
    for first, count in areas:
        vmas.remove(first * PAGE, (first + count) * PAGE)
        vmas.insert(Vma(first * PAGE, (first + count) * PAGE, 3))
        used.update(range(first, first + count))
    fits = [a for a in range(low, high - length + 1) if used.isdisjoint(range(a, a + length))]
    expected = (fits[0] * PAGE, fits[-1] * PAGE) if fits else (-1, -1)
    assert vmas.gap_above(length * PAGE, low * PAGE, high * PAGE) == expected[0]
    assert vmas.gap_below(length * PAGE, low * PAGE, high * PAGE) == expected[1]


def test_a_stack_keeps_a_gap_below_it() -> None:
    vmas = VmaList()
    vmas.insert(Vma(64 * MIB, 65 * MIB, 3 | VM_GROWSDOWN))
    assert vmas.gap_below(PAGE, 0, 65 * MIB) == 64 * MIB - STACK_GUARD_GAP - PAGE
    assert vmas.gap_below(PAGE, 0, 64 * MIB) == 64 * MIB - STACK_GUARD_GAP - PAGE
    assert vmas.gap_above(PAGE, 64 * MIB - PAGE, 99 * MIB) == 65 * MIB
    assert Vma(PAGE, 2 * PAGE, VM_GROWSDOWN).gap_start == 0
