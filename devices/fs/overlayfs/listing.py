"""The order of a merged directory's entries: each keeps its number for as long as it is there, so that reading on works
whatever was removed, made or copied up meanwhile."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from devices.vfs.inode import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST = 3
"""1 and 2 are `.` and `..`."""

Found = dict[bytes, tuple[int, int]]
"""What a scan of the layers says of each name: inode number, DT_*."""


class Listing:
    __slots__ = ("_next", "_order", "entries")

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        """By name; the offset is the number."""
        self._order: list[Entry] = []
        self._next = FIRST

    def update(self, found: Found) -> None:
        """The directory has just these entries now."""
        before = self.entries
        number = self._next
        order: list[Entry] = []
        for name, (ino, kind) in found.items():
            known = before.get(name) if before else None
            if known is None:
                order.append(Entry(name, ino, kind, number))
                number += 1
            else:
                order.append(known._replace(ino=ino, kind=kind))
        self._next = number
        self.entries = {entry.name: entry for entry in order}
        if before:
            order.sort(key=_number)
        self._order = order

    def remove(self, name: bytes) -> None:
        self.entries.pop(name, None)

    def after(self, offset: int) -> Iterator[Entry]:
        """The entries behind position `offset` that are still there."""
        order, entries = self._order, self.entries
        start = bisect_right(order, offset, key=_number) if offset else 0
        for at in range(start, len(order)):
            entry = order[at]
            if entries.get(entry.name) is entry:
                yield entry


def _number(entry: Entry) -> int:
    return entry.offset
