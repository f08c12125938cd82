"""Range locks against an array with an owner and a kind for every byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from devices.vfs.abi import F_RDLCK, F_UNLCK, F_WRLCK, MAX_FILE_SIZE
from devices.vfs.locks import RangeLock, RecordLocks

SIZE = 24
OWNERS = ("a", "b", "c")

request = st.tuples(
    st.sampled_from(OWNERS),
    st.sampled_from([F_RDLCK, F_WRLCK, F_UNLCK]),
    st.integers(0, SIZE - 1),
    st.integers(0, SIZE - 1),
)


class Bytes:
    """For each owner the kind of its lock on each byte."""

    def __init__(self) -> None:
        self.kinds = {owner: [F_UNLCK] * SIZE for owner in OWNERS}

    def conflict(self, owner: str, kind: int, start: int, end: int) -> bool:
        return any(
            F_WRLCK in (kind, held)
            for other, kinds in self.kinds.items()
            if other != owner
            for held in kinds[start : end + 1]
            if held != F_UNLCK
        )

    def set(self, owner: str, kind: int, start: int, end: int) -> None:
        self.kinds[owner][start : end + 1] = [kind] * (end + 1 - start)

    def runs(self, owner: str) -> list[tuple[int, int, int]]:
        """(kind, first, last) of the longest pieces."""
        found: list[tuple[int, int, int]] = []
        for at, kind in enumerate(self.kinds[owner]):
            if kind == F_UNLCK:
                continue
            if found and found[-1][0] == kind and found[-1][2] == at - 1:
                found[-1] = (kind, found[-1][1], at)
            else:
                found.append((kind, at, at))
        return found


@given(st.lists(request, max_size=40))
def test_as_an_array_of_bytes(requests: list[tuple[str, int, int, int]]) -> None:
    locks, reference = RecordLocks(), Bytes()
    for owner, kind, one, other in requests:
        start, end = sorted((one, other))
        wanted = RangeLock(owner, 1, kind, start, end)
        conflict = locks.conflict(wanted) if kind != F_UNLCK else None
        assert (conflict is not None) == (kind != F_UNLCK and reference.conflict(owner, kind, start, end))
        if conflict is None:
            locks.set(wanted)
            reference.set(owner, kind, start, end)
        for each in OWNERS:
            held = [(lock.kind, lock.start, lock.end) for lock in locks if lock.owner == each]
            assert held == reference.runs(each)


@given(st.lists(request, max_size=20), st.sampled_from(OWNERS))
def test_an_owner_gives_up_all(requests: list[tuple[str, int, int, int]], gone: str) -> None:
    locks = RecordLocks()
    for owner, kind, one, other in requests:
        wanted = RangeLock(owner, 1, kind, *sorted((one, other)))
        if kind == F_UNLCK or locks.conflict(wanted) is None:
            locks.set(wanted)
    others = [lock for lock in locks if lock.owner != gone]
    had_some = any(lock.owner == gone for lock in locks)
    assert locks.drop(gone) == had_some
    assert list(locks) == others


def test_to_the_end_of_everything() -> None:
    locks = RecordLocks()
    locks.set(RangeLock("a", 1, F_WRLCK, 10, MAX_FILE_SIZE))
    locks.set(RangeLock("a", 1, F_WRLCK, 0, 9))
    assert [(lock.start, lock.end) for lock in locks] == [(0, MAX_FILE_SIZE)]
    locks.set(RangeLock("a", 1, F_UNLCK, 5, 5))
    assert [(lock.start, lock.end) for lock in locks] == [(0, 4), (6, MAX_FILE_SIZE)]
