"""x86-64 page tables in guest RAM (Intel SDM volume 3, section 4.5), 4 KiB and 2 MiB pages.

They are written by the monitor alone, through the guest RAM's memoryview of 64-bit words, and are mapped in no guest
address space. A table's place is named by `slot`: the index of its entry in that view (guest-physical address >> 3).

A leaf that is 0 maps nothing. One that is not 0 owns a reference to each frame it points to; if PRESENT is clear in
it, the frame is kept for a page that nobody may access now (PROT_NONE). Accessed and dirty bits are preset, so the CPU
never writes to a table.

What the CPU may still hold after a change is the caller's to revoke (vmm/cpu.py: Accelerator), by this rule: not
present -> present and more rights need nothing; a leaf changed or cleared, and that is a 2 MiB page split, too, needs
`revoke` of the frames it pointed to; table frames that are reused need `revoke_all`. Tables stay where they are until
`free_tables`, so that no other entry above a leaf ever changes. (Where KVM shadows page tables a 2 MiB page leaves more
behind than `revoke` takes back: an accelerator that wants none says so, see Accelerator.large_pages.)
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from vmm.layout import DOORBELL, LARGE_SIZE, PAGE_SHIFT, PAGE_SIZE, STUB, SYSTEM
from vmm.memory.frames import BLOCK_FRAMES, add_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.memory.frames import Frames, Run
    from vmm.memory.physical import GuestRam

PRESENT = 1 << 0
WRITE = 1 << 1
USER = 1 << 2
WRITE_THROUGH = 1 << 3
CACHE_DISABLE = 1 << 4
ACCESSED = 1 << 5
DIRTY = 1 << 6
LARGE = 1 << 7
"""In an entry of a page directory: a 2 MiB page."""
GLOBAL = 1 << 8
NX = 1 << 63

ADDRESS = 0x000F_FFFF_FFFF_F000
"""The bits of an entry that hold a guest-physical address."""
RIGHTS = PRESENT | WRITE | NX
"""The bits of a leaf that `protect` changes."""
_PRESET = ACCESSED | DIRTY
_TABLE = PRESENT | WRITE | USER | ACCESSED
_GIB = 1 << 30
_NOTHING = memoryview(array("Q", [0]) * 512)


class KernelHalf:
    """The upper half (PML4 slots 256-511), shared by all address spaces of a machine.

    Its PML4 entries, those of the areas of vmm/layout.py, exist from the start and never change, so that a page mapped
    later is seen in every address space. Raises OutOfFrames.
    """

    __slots__ = ("_frames", "_words", "entries")

    def __init__(self, ram: GuestRam, frames: Frames) -> None:
        self._words = ram.words
        self._frames = frames
        self.entries: dict[int, int] = {}
        """PML4 entries by slot number."""
        for va in (STUB, DOORBELL, SYSTEM):
            number = va >> 39 & 511
            if number not in self.entries:
                self.entries[number] = frames.allocate() | _TABLE

    def map(self, va: int, pa: int, flags: int) -> None:
        """Map the 4 KiB page `va` to guest-physical `pa`, which may lie outside of RAM.

        `flags` are this module's constants; PRESENT, ACCESSED and DIRTY are added. Raises OutOfFrames, and ValueError
        for a page of no area of vmm/layout.py or one that is mapped already."""
        entry = self.entries.get(va >> 39 & 511, 0)
        if not entry or va >> 47 != 0x1FFFF or (va | pa) & (PAGE_SIZE - 1):
            raise ValueError(f"{va:#x} -> {pa:#x} is no page of the monitor's half")
        words = self._words
        for shift in (30, 21):
            slot = ((entry & ADDRESS) >> 3) + (va >> shift & 511)
            entry = words[slot]
            if not entry:
                words[slot] = entry = self._frames.allocate() | _TABLE
        slot = ((entry & ADDRESS) >> 3) + (va >> 12 & 511)
        if words[slot]:
            raise ValueError(f"{va:#x} is mapped already")
        words[slot] = pa | flags | PRESENT | _PRESET


class PageTable:
    """The tables of one guest address space; `root` is the guest-physical address of its PML4. Raises OutOfFrames.

    Addresses and lengths are page-aligned and below TASK_SIZE: the caller sees to that. `pages` counts the 4 KiB pages
    that have a frame, `tables` the frames of the tables themselves.
    """

    __slots__ = ("_counts", "_directories", "_frames", "_owned", "_words", "pages", "root")

    def __init__(self, ram: GuestRam, frames: Frames, half: KernelHalf) -> None:
        self._words = ram.words
        self._frames = frames
        self._counts = frames.counts
        self._directories: dict[int, int] = {}
        """Slot of the first entry of each page directory, by va >> 30."""
        self._owned = array("Q")
        """Addresses of all table frames."""
        self.pages = 0
        self.root = self._table()
        for number, entry in half.entries.items():
            self._words[(self.root >> 3) + number] = entry

    @property
    def tables(self) -> int:
        return len(self._owned)

    def _table(self) -> int:
        address = self._frames.allocate()
        self._owned.append(address)
        return address

    def _directory(self, va: int) -> int:
        """Slot of the page directory of `va`, which is made if need be."""
        first = self._directories.get(va >> 30)
        if first is not None:
            return first
        words = self._words
        address = self.root
        for shift in (39, 30):
            slot = (address >> 3) + (va >> shift & 511)
            entry = words[slot]
            if not entry:
                words[slot] = entry = self._table() | _TABLE
            address = entry & ADDRESS
        self._directories[va >> 30] = address >> 3
        return address >> 3

    def entry(self, va: int) -> int:
        """The leaf entry that covers `va`, 0 if there is none. LARGE in it tells a 2 MiB page."""
        first = self._directories.get(va >> 30)
        if first is None:
            return 0
        entry = self._words[first + (va >> 21 & 511)]
        if not entry or entry & LARGE:
            return entry
        return self._words[((entry & ADDRESS) >> 3) + (va >> 12 & 511)]

    def translate(self, va: int, write: bool) -> int:
        """Guest-physical address of the byte at `va`, as a user-mode access would find it; -1 where it would fault."""
        first = self._directories.get(va >> 30)
        if first is None:
            return -1
        entry = self._words[first + (va >> 21 & 511)]
        if not entry & LARGE:
            if not entry:
                return -1
            entry = self._words[((entry & ADDRESS) >> 3) + (va >> 12 & 511)]
            if not entry & PRESENT or (write and not entry & WRITE):
                return -1
            return entry & ADDRESS | va & (PAGE_SIZE - 1)
        if not entry & PRESENT or (write and not entry & WRITE):
            return -1
        return entry & ADDRESS | va & (LARGE_SIZE - 1)

    def extents(self, va: int, end: int, write: bool) -> list[tuple[int, int]]:
        """(guest-physical address, bytes) of the memory from `va` on, any byte, joined where it is contiguous; it ends
        before `end` at the first page that a user-mode access would fault on."""
        found: list[tuple[int, int]] = []
        need = PRESENT | WRITE if write else PRESENT
        words = self._words
        start = va
        while va < end:
            directory = self._directories.get(va >> 30)
            entry = 0 if directory is None else words[directory + (va >> 21 & 511)]
            limit = min(end, (va | (LARGE_SIZE - 1)) + 1)
            if not entry or (entry & LARGE and entry & need != need):
                break
            if entry & LARGE:
                _extend(found, entry & ADDRESS | va & (LARGE_SIZE - 1), limit - va)
                va = limit
                continue
            slot = ((entry & ADDRESS) >> 3) + (va >> 12 & 511)
            for leaf in words[slot : slot + ((limit - 1 >> 12) - (va >> 12)) + 1].tolist():
                if leaf & need != need:
                    break
                _extend(found, leaf & ADDRESS | va & (PAGE_SIZE - 1), PAGE_SIZE - (va & (PAGE_SIZE - 1)))
                va = (va | (PAGE_SIZE - 1)) + 1
            if va < limit:
                break
        if va > end:
            pa, size = found[-1]
            found[-1] = (pa, size - (va - end))
        return found if start < end else []

    def _leaves(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(va, slot, count) of the runs of leaf entries that exist in a range, in order; count 0 is a 2 MiB page."""
        first, last = start >> 30, (end - 1) >> 30
        keys = (first,) if first == last else sorted(k for k in self._directories if first <= k <= last)
        words = self._words
        for key in keys:
            directory = self._directories.get(key)
            if directory is None:
                continue
            low, high = max(start, key * _GIB), min(end, (key + 1) * _GIB)
            region, stop = low >> 21 & 511, ((high - 1) >> 21 & 511) + 1
            for index, entry in enumerate(words[directory + region : directory + stop].tolist(), region):
                if not entry:
                    continue
                base = key * _GIB + index * LARGE_SIZE
                if entry & LARGE:
                    yield base, directory + index, 0
                    continue
                va = max(base, low)
                count = (min(base + LARGE_SIZE, high) - va) >> PAGE_SHIFT
                yield va, ((entry & ADDRESS) >> 3) + (va >> 12 & 511), count

    # Mapping

    def _slot(self, va: int) -> int:
        """Slot of the 4 KiB entry of `va`, whose table is made if need be."""
        slot = self._directory(va) + (va >> 21 & 511)
        entry = self._words[slot]
        if not entry:
            self._words[slot] = entry = self._table() | _TABLE
        return ((entry & ADDRESS) >> 3) + (va >> 12 & 511)

    def prepare(self, va: int, large: bool = False) -> None:
        """Have a table, or with `large` a directory, for `va`, so that `map` (`map_large`) cannot fail there. Raises
        OutOfFrames."""
        if large:
            self._directory(va)
        else:
            self._slot(va)

    def region(self, va: int) -> int:
        """The directory entry of the 2 MiB region of `va`: 0 if there is neither a table nor a 2 MiB page."""
        directory = self._directories.get(va >> 30)
        return 0 if directory is None else self._words[directory + (va >> 21 & 511)]

    def map(self, va: int, pa: int, count: int, flags: int) -> None:
        """Map `count` pages from `va` on to contiguous frames from `pa` on; the entries take over a reference each.

        `flags` are this module's constants; ACCESSED and DIRTY are added, PRESENT is not. The pages lie in one 2 MiB
        region, not in a 2 MiB page, and have no entry yet. Raises OutOfFrames, having mapped nothing."""
        slot = self._slot(va)
        flags |= pa | _PRESET
        if count == 1:
            self._words[slot] = flags
        else:
            entries = array("Q", range(flags, flags + (count << PAGE_SHIFT), PAGE_SIZE))
            self._words[slot : slot + count] = memoryview(entries)
        self.pages += count

    def map_large(self, va: int, pa: int, flags: int) -> None:
        """Map a 2 MiB page where no entry and no table is (`region`), flags as for `map`. Raises OutOfFrames."""
        self._words[self._directory(va) + (va >> 21 & 511)] = pa | flags | _PRESET | LARGE
        self.pages += BLOCK_FRAMES

    def replace(self, va: int, pa: int, flags: int) -> None:
        """Let a page whose 4 KiB entry exists be another frame, or have other rights; see `map` for `flags`.

        The entry's old reference passes to the caller."""
        self._words[self._slot(va)] = pa | flags | _PRESET

    def vacant(self, va: int, low: int, high: int) -> tuple[int, int]:
        """The pages around `va`, in its 2 MiB region and in [low, high), that have no entry: (start, end), empty if
        `va` itself has one."""
        base = va & -LARGE_SIZE
        low, high = max(low, base), min(high, base + LARGE_SIZE)
        directory = self._directories.get(va >> 30)
        entry = 0 if directory is None else self._words[directory + (va >> 21 & 511)]
        if not entry:
            return low, high
        if entry & LARGE:
            return va, va
        first = (entry & ADDRESS) >> 3
        start, at, end = (low >> 12 & 511), (va >> 12 & 511), (low >> 12 & 511) + (high - low >> PAGE_SHIFT)
        entries = self._words[first + start : first + end].tolist()
        at -= start
        if entries[at]:
            return va, va
        left = next((i + 1 for i in range(at - 1, -1, -1) if entries[i]), 0)
        right = next((i for i in range(at + 1, len(entries)) if entries[i]), len(entries))
        return low + (left << PAGE_SHIFT), low + (right << PAGE_SHIFT)

    # Changing

    def split(self, va: int) -> list[Run]:
        """Make the 2 MiB page that covers `va`, if there is one and it does not begin there, 4 KiB pages.

        The run of its frames, to be revoked, when it did. Raises OutOfFrames."""
        if not va & (LARGE_SIZE - 1):
            return []
        directory = self._directories.get(va >> 30)
        if directory is None:
            return []
        slot = directory + (va >> 21 & 511)
        entry = self._words[slot]
        if not entry & LARGE:
            return []
        table = self._table()
        first = entry & ~LARGE
        self._words[table >> 3 : (table >> 3) + BLOCK_FRAMES] = memoryview(
            array("Q", range(first, first + LARGE_SIZE, PAGE_SIZE))
        )
        self._words[slot] = table | _TABLE
        return [(entry & ADDRESS, BLOCK_FRAMES)]

    def split_range(self, start: int, end: int) -> list[Run]:
        """`split` for every 2 MiB page that a range touches, wholly or not."""
        large = [va for va, _, count in self._leaves(start, end) if not count]
        return [run for va in large for run in self.split(va + PAGE_SIZE)]

    def runs(self, start: int, end: int) -> list[Run]:
        """The frames of the pages of a range, whose ends lie in no 2 MiB page, in order."""
        runs: list[Run] = []
        for _, slot, count in self._leaves(start, end):
            if count:
                _frames_of(self._words[slot : slot + count].tolist(), runs)
            else:
                add_run(runs, self._words[slot] & ADDRESS, BLOCK_FRAMES)
        return runs

    def present(self, start: int, end: int) -> bytearray:
        """A byte for each page of a range: 1 if it has a frame."""
        found = bytearray((end - start) >> PAGE_SHIFT)
        for va, slot, count in self._leaves(start, end):
            if count:
                first = (va - start) >> PAGE_SHIFT
                found[first : first + count] = bytes(map(bool, self._words[slot : slot + count]))
            else:
                low, high = max(va, start), min(va + LARGE_SIZE, end)
                size = (high - low) >> PAGE_SHIFT
                found[(low - start) >> PAGE_SHIFT : (high - start) >> PAGE_SHIFT] = b"\1" * size
        return found

    def clear(self, start: int, end: int) -> list[Run]:
        """Take the entries of a range out; their frames, whose references pass to the caller, as runs in order.

        The range's ends lie in no 2 MiB page (see `split`)."""
        runs: list[Run] = []
        words = self._words
        for _, slot, count in self._leaves(start, end):
            if not count:
                add_run(runs, words[slot] & ADDRESS, BLOCK_FRAMES)
                words[slot] = 0
                self.pages -= BLOCK_FRAMES
                continue
            span = words[slot : slot + count]
            if span != _NOTHING[:count]:
                self.pages -= _frames_of(span.tolist(), runs)
                span[:] = _NOTHING[:count]
        return runs

    def protect(self, start: int, end: int, flags: int, shared: bool) -> list[Run]:
        """Give the pages of a range the rights PRESENT, WRITE and NX of `flags`; the runs that lost a right.

        Without `shared`, a frame that has other users stays read-only: a write to it is to copy it. The range's ends
        lie in no 2 MiB page."""
        runs: list[Run] = []
        for _, slot, count in self._leaves(start, end):
            span = self._words[slot : slot + (count or 1)]
            old = span.tolist()
            if not any(old):
                continue
            new = [entry and (entry & ~RIGHTS | flags) for entry in old]
            if flags & WRITE and not shared:
                new = [entry if self._sole(entry, count) else entry & ~WRITE for entry in new]
            span[:] = memoryview(array("Q", new))
            for entry, changed in zip(old, new, strict=True):
                if entry & PRESENT and (entry & ~changed & (PRESENT | WRITE) or changed & ~entry & NX):
                    add_run(runs, entry & ADDRESS, 1 if count else BLOCK_FRAMES)
        return runs

    def _sole(self, entry: int, count: int) -> bool:
        """Is the address space the only user of an entry's frames? `count` 0: the entry is a 2 MiB page."""
        first = (entry & ADDRESS) >> PAGE_SHIFT
        return self._counts[first] == 1 if count else self._frames.sole_block(first)

    def move(self, start: int, end: int, to: int) -> list[Run]:
        """Move the entries of a range to the range that begins at `to`, where there are none; the runs that moved.

        Each 2 MiB page in the range lies in it wholly and moves by a multiple of 2 MiB (else: `split_range`). Raises
        OutOfFrames before anything was moved."""
        words = self._words
        shift = to - start
        leaves = [leaf for leaf in self._leaves(start, end) if not leaf[2] or any(words[leaf[1] : leaf[1] + leaf[2]])]
        for va, _, count in leaves:
            if count:
                self._slot(va + shift)
                self._slot(va + shift + (count - 1 << PAGE_SHIFT))
            else:
                self._directory(va + shift)
        runs: list[Run] = []
        for va, slot, count in leaves:
            entries = words[slot : slot + (count or 1)].tolist()
            words[slot : slot + (count or 1)] = _NOTHING[: count or 1]
            if count:
                _frames_of(entries, runs)
                self._put(va + shift, entries)
            else:
                add_run(runs, entries[0] & ADDRESS, BLOCK_FRAMES)
                self._put_large(va + shift, entries[0])
        return runs

    def share(self, child: PageTable, start: int, end: int, copied: bool, lost: list[Run]) -> None:
        """Give `child`, which maps nothing in the range, the same pages; with `copied`, both may only read them until a
        write has copied them. Frames that could be written to before are added to `lost`: they are to be revoked, also
        when this raises OutOfFrames; then `child` has a part of the pages."""
        words = self._words
        for va, slot, count in self._leaves(start, end):
            entries = words[slot : slot + (count or 1)].tolist()
            if not any(entries):
                continue
            if count:
                child._slot(va)
            else:
                child._directory(va)
            if copied and any(entry & WRITE for entry in entries):
                _written_frames(entries, lost, count)
                entries = [entry & ~WRITE for entry in entries]
                words[slot : slot + (count or 1)] = memoryview(array("Q", entries))
            runs: list[Run] = []
            if count:
                child.pages += _frames_of(entries, runs)
                child._put(va, entries)
            else:
                child.pages += BLOCK_FRAMES
                add_run(runs, entries[0] & ADDRESS, BLOCK_FRAMES)
                child._put_large(va, entries[0])
            for address, frames in runs:
                self._frames.reference(address, frames)

    def _put(self, va: int, entries: list[int]) -> None:
        """Write 4 KiB entries from `va` on."""
        done = 0
        while done < len(entries):
            part = entries[done : done + BLOCK_FRAMES - (va >> 12 & 511)]
            slot = self._slot(va)
            self._words[slot : slot + len(part)] = memoryview(array("Q", part))
            done += len(part)
            va += len(part) << PAGE_SHIFT

    def _put_large(self, va: int, entry: int) -> None:
        """Write the entry of a 2 MiB page, or its parts where a table is."""
        slot = self._directory(va) + (va >> 21 & 511)
        if self._words[slot]:
            first = entry & ~LARGE
            self._put(va, list(range(first, first + LARGE_SIZE, PAGE_SIZE)))
        else:
            self._words[slot] = entry

    def free_tables(self) -> None:
        """Free the tables themselves; nothing is mapped any more, no CPU uses them, and `revoke_all` was called."""
        self._frames.release_runs(self.take_tables())

    def take_tables(self) -> list[Run]:
        """The frames of the tables themselves, which the caller frees once no CPU can take them for tables any more."""
        runs: list[Run] = []
        for address in sorted(self._owned):
            add_run(runs, address, 1)
        self._owned = array("Q")
        self._directories.clear()
        self.root = 0
        return runs


def _written_frames(entries: list[int], runs: list[Run], count: int) -> None:
    """Add the frames that entries allow to be written to; `count` is 0 for the entry of a 2 MiB page."""
    for entry in entries:
        if entry & WRITE:
            add_run(runs, entry & ADDRESS, 1 if count else BLOCK_FRAMES)


def _frames_of(entries: list[int], runs: list[Run]) -> int:
    """Add the frames of 4 KiB entries to `runs`; how many there are."""
    frames = 0
    first = follows = count = 0
    for entry in entries:
        if not entry:
            continue
        frames += 1
        address = entry & ADDRESS
        if address != follows:
            if count:
                add_run(runs, first, count)
            first, count = address, 0
        count += 1
        follows = address + PAGE_SIZE
    if count:
        add_run(runs, first, count)
    return frames


def _extend(extents: list[tuple[int, int]], pa: int, size: int) -> None:
    """Add an extent, joined to the last one when it follows it."""
    if extents:
        last, length = extents[-1]
        if last + length == pa:
            extents[-1] = (last, length + size)
            return
    extents.append((pa, size))
