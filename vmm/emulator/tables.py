"""Reading a program's memory through its page tables, for the monitor's own use: never raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.layout import PAGE_SIZE
from vmm.memory.pagetable import ADDRESS, LARGE, PRESENT, USER

if TYPE_CHECKING:
    from vmm.memory.physical import GuestRam

_NEED = PRESENT | USER


class Tables:
    """The page tables in a guest's RAM."""

    __slots__ = ("_size", "_view", "_words")

    def __init__(self, ram: GuestRam) -> None:
        self._size = ram.size
        self._view = ram.view
        self._words = ram.words

    def translate(self, root: int, address: int) -> int:
        """The guest-physical address that user code finds at `address`; -1 where that is not in RAM."""
        table = root
        for shift in (39, 30, 21, 12):
            if not 0 <= table < self._size:
                return -1
            entry = self._words[(table >> 3) + (address >> shift & 511)]
            if entry & _NEED != _NEED:
                return -1
            table = entry & ADDRESS
            if entry & LARGE and shift in (30, 21):
                break
        inside = (1 << shift) - 1
        physical = table & ~inside | address & inside
        return physical if physical < self._size else -1

    def read(self, root: int, address: int, length: int, physical: int = -1) -> bytes:
        """Up to `length` bytes at `address`, as far as user code could read them; `physical` if it is known already."""
        data = b""
        while length:
            if physical < 0:
                physical = self.translate(root, address)
                if physical < 0:
                    break
            part = min(length, PAGE_SIZE - (address & PAGE_SIZE - 1))
            data += bytes(self._view[physical : physical + part])
            address, length, physical = address + part, length - part, -1
        return data
