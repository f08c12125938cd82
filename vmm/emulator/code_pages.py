"""Frames that hold translated code, so that Unicorn does not stop looking at what is written to them.

Of a page that is writable and not executable Unicorn looks at the first write only (does it change code that was
translated?) and then takes the page for data, although the frame may be executed at another address, or at the same one
before and after. It goes on looking where a hook for memory events is installed. One for an event that never comes
costs nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.emulator import abi
from vmm.layout import PAGE_SIZE

if TYPE_CHECKING:
    import ctypes

    from vmm.emulator.unicorn import Unicorn

_SPARE = 64


class CodePages:
    """The guest-physical addresses of such frames. Use it with the gate held."""

    __slots__ = ("_callback", "_hooks", "_limit", "_pages", "_unicorn", "_watched")

    def __init__(self, unicorn: Unicorn) -> None:
        self._unicorn = unicorn
        self._pages: set[int] = set()
        self._watched: set[int] = set()
        """Those that a hook covers: more than `_pages`, for taking hooks out one by one is dear."""
        self._hooks: list[ctypes.c_void_p] = []
        self._limit = _SPARE
        self._callback = abi.ON_MEMORY(lambda *_arguments: False)

    def add(self, page: int) -> bool:
        """Code in it was translated; True if that is news."""
        if page in self._pages:
            return False
        self._pages.add(page)
        if page not in self._watched:
            self._watch(page, page + PAGE_SIZE)
            if len(self._hooks) > self._limit:
                self._merge()
        return True

    def discard(self, address: int, length: int) -> None:
        """The code in a run of memory was forgotten."""
        first = address & -PAGE_SIZE
        if length >> 12 < len(self._pages):
            self._pages.difference_update(range(first, address + length, PAGE_SIZE))
        else:
            self._pages = {page for page in self._pages if not first <= page < address + length}
        if len(self._watched) > 2 * len(self._pages) + 16 * _SPARE:
            self._merge()

    def _watch(self, start: int, end: int) -> None:
        hook = self._unicorn.hook(abi.HOOK_MEM_FETCH_UNMAPPED, self._callback, begin=start, end=end - 1)
        self._hooks.append(hook)
        self._watched.update(range(start, end, PAGE_SIZE))

    def _merge(self) -> None:
        """One hook for each run of frames: Unicorn looks through all of them, one by one."""
        for hook in self._hooks:
            self._unicorn.unhook(hook)
        self._hooks.clear()
        self._watched.clear()
        start = end = -1
        for page in sorted(self._pages):
            if page != end:
                if end >= 0:
                    self._watch(start, end)
                start = page
            end = page + PAGE_SIZE
        if end >= 0:
            self._watch(start, end)
        self._limit = 2 * len(self._hooks) + _SPARE
