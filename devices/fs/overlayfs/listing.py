"""The order of a merged directory's entries: each keeps its number for as long as it is there, so that reading on works
whatever was removed, made or copied up meanwhile."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from devices.vfs.inode import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST = 3
"""1 and 2 are `.` and `..`."""


class Found(NamedTuple):
    """What a scan of the layers says of a name."""

    ino: int
    kind: int


class Listing:
    __slots__ = ("_next", "_order", "entries")

    def __init__(self) -> None:
        self.entries: dict[bytes, tuple[int, Found]] = {}
        """Number, and what it is, by name."""
        self._order: list[tuple[int, bytes]] = []
        self._next = FIRST

    def update(self, found: dict[bytes, Found]) -> None:
        """The directory has just these entries now."""
        before = self.entries
        entries: dict[bytes, tuple[int, Found]] = {}
        for name, what in found.items():
            known = before.get(name)
            if known is None:
                number = self._next
                self._next += 1
            else:
                number = known[0]
            entries[name] = (number, what)
        self.entries = entries
        self._order = sorted((number, name) for name, (number, _) in entries.items())

    def remove(self, name: bytes) -> None:
        self.entries.pop(name, None)

    def after(self, offset: int) -> Iterator[Entry]:
        """The entries behind position `offset`."""
        order = self._order
        at = bisect_right(order, (offset, b"\xff" * 256))
        while at < len(order):
            number, name = order[at]
            at += 1
            known = self.entries.get(name)
            if known is not None and known[0] == number:
                yield Entry(name, known[1].ino, known[1].kind, number)
