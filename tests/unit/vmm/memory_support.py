"""A model of CPUs that cache translations as eagerly as the manual lets them, and catches stale ones.

`absorb` puts every translation that a page table offers now into the model's TLB, with the upper entries it came
through; `check` then fails if one is left that the page table no longer gives and that nobody revoked. Written apart
from vmm/memory/pagetable.py: it walks the raw words by the manual (Intel SDM volume 3, section 4.5).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from vmm.memory.frames import Frames
from vmm.memory.pagetable import KernelHalf
from vmm.memory.physical import GuestRam

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.cpu import Cpu

P, W, U, LARGE, NX = 1, 2, 4, 0x80, 1 << 63
ADDRESS = 0x000F_FFFF_FFFF_F000


class Translation(NamedTuple):
    """A TLB entry: the frame's address, the rights, and the (slot, value) of each entry above the leaf."""

    frame: int
    writable: bool
    executable: bool
    above: tuple[tuple[int, int], ...]


class WatchedRam(GuestRam):
    """Guest RAM that tells the model what is discarded, and checks that the host agrees to populate."""

    model: ModelAccelerator | None = None

    def discard(self, address: int, length: int) -> None:
        super().discard(address, length)
        if self.model is not None and self.model.discard_revokes:
            self.model.drop(address, length)


class ModelAccelerator:
    """An accelerator without CPUs: a TLB for all address spaces, and a log."""

    name = "model"
    max_cpus = 1
    cpuid_features = 0
    hwcap2 = 0
    fpu_size = 512
    tsc = None

    def __init__(self, ram: WatchedRam, *, large_pages: bool, discard_revokes: bool, populates: bool) -> None:
        self.large_pages = large_pages
        self.discard_revokes = discard_revokes
        self.populates = populates
        self.words = ram.words
        self.tlb: dict[tuple[int, int], Translation] = {}
        """Of the CPUs that look on."""
        self.own: dict[tuple[int, int], Translation] = {}
        """Of the one CPU that does something, which walks anew when it faults."""
        self.revoked: list[tuple[int, int]] = []
        self.revoked_all = 0
        self.forgotten: list[tuple[int, int]] = []
        ram.model = self

    def create_cpu(self) -> Cpu:
        raise OSError("the model has no CPU")

    def drop(self, address: int, length: int) -> None:
        for tlb in (self.tlb, self.own):
            for key in [k for k, t in tlb.items() if address <= t.frame < address + length]:
                del tlb[key]

    def revoke(self, address: int, length: int) -> None:
        assert address % 4096 == 0
        assert length > 0
        assert length % 4096 == 0
        self.revoked.append((address, length))
        self.drop(address, length)

    def revoke_all(self) -> None:
        self.revoked_all += 1
        self.tlb.clear()
        self.own.clear()

    def forget_code(self, address: int, length: int) -> None:
        self.forgotten.append((address, length))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        yield

    def close(self) -> None:
        return None

    # The CPU

    def walk(self, root: int, va: int) -> Translation | None:
        """What a user-mode access to `va` finds in the tables."""
        table = root
        above: list[tuple[int, int]] = []
        writable, executable = True, True
        for level in (39, 30, 21, 12):
            slot = (table >> 3) + (va >> level & 511)
            entry = self.words[slot]
            if not entry & P or not entry & U:
                return None
            writable = writable and bool(entry & W)
            executable = executable and not entry & NX
            if level == 12 or entry & LARGE:
                assert level in (12, 21), "only 4 KiB and 2 MiB pages are there"
                mask = (1 << level) - 1
                assert not entry & ADDRESS & mask, "a misaligned 2 MiB page"
                assert entry & 0x60 == 0x60, "accessed and dirty bits are preset"
                return Translation((entry & ADDRESS | va & mask) & -4096, writable, executable, tuple(above))
            above.append((slot, entry))
            table = entry & ADDRESS
        return None

    def mappings(self, root: int) -> dict[tuple[int, int], Translation]:
        """Every translation of the lower half that the tables at `root` give, by (root, va)."""
        found: dict[tuple[int, int], Translation] = {}
        for i, pdpt in self._entries(root, 256):
            for j, pd in self._entries(pdpt, 512):
                for k, entry in self._entries(pd, 512):
                    base = i << 39 | j << 30 | k << 21
                    above = tuple(
                        (slot, self.words[slot]) for slot in ((root >> 3) + i, (pdpt & ADDRESS) // 8 + j)
                    )  # fmt: skip
                    if entry & LARGE:
                        leaves = [(n, entry & ~LARGE | n << 12) for n in range(512)]
                    else:
                        leaves = self._entries(entry, 512)
                        above += (((pd & ADDRESS) // 8 + k, entry),)
                    for n, leaf in leaves:
                        if leaf & U:
                            rights = bool(leaf & W), not leaf & NX
                            found[root, base + (n << 12)] = Translation(leaf & ADDRESS, *rights, above)
        return found

    def _entries(self, table: int, count: int) -> list[tuple[int, int]]:
        """(index, entry) of the present entries of a table."""
        first = (table & ADDRESS) >> 3
        return [(n, entry) for n, entry in enumerate(self.words[first : first + count].tolist()) if entry & P]

    def absorb(self, root: int) -> None:
        """Cache everything that the tables at `root` give and that is not cached already."""
        self.tlb = self.mappings(root) | self.tlb

    def translate(self, root: int, va: int, write: bool, fetch: bool = False) -> int:
        """Physical address for an access, from the TLB if it is there and stale or not; -1 for a page fault."""
        key = (root, va & -4096)
        for found in (self.own.get(key), self.walk(root, va)):
            if found is not None and not (write and not found.writable) and not (fetch and not found.executable):
                self.own[key] = found
                return found.frame | va & 4095
        return -1

    def check(self, alive: set[int]) -> None:
        """No translation is cached that the tables do not give; `alive` are the roots in use."""
        valid: dict[tuple[int, int], Translation] = {}
        for root in alive:
            valid |= self.mappings(root)
        for (root, va), cached in (*self.tlb.items(), *self.own.items()):
            assert root in alive, f"{va:#x} is cached for an address space that is gone"
            now = valid.get((root, va))
            if now == cached:
                continue
            assert now is not None, f"{va:#x} is cached, and mapped no more"
            assert now.frame == cached.frame, f"{va:#x} is cached with another frame"
            assert now.writable or not cached.writable, f"{va:#x} is cached writable"
            assert now.executable or not cached.executable, f"{va:#x} is cached executable"
            assert now.above == cached.above, f"{va:#x} is cached through other tables"


class ModelMachine:
    """RAM, frames and upper half over a model accelerator, and what is in use before any address space."""

    def __init__(
        self,
        mib: int = 32,
        *,
        large_pages: bool = False,
        discard_revokes: bool = False,
        populates: bool = False,
    ) -> None:
        self.ram = WatchedRam(mib << 20)
        self.frames = Frames(self.ram)
        self.half = KernelHalf(self.ram, self.frames)
        self.accelerator = ModelAccelerator(
            self.ram, large_pages=large_pages, discard_revokes=discard_revokes, populates=populates
        )
        self.free = self.frames.free

    def assert_all_free(self) -> None:
        """Every frame came back, is zero, and takes no memory from the host."""
        import os

        assert self.frames.free == self.free
        used = self.frames.total - self.free
        assert sum(1 for n in self.frames.counts if n) == used
        assert os.fstat(self.ram.fd).st_blocks * 512 <= (used + 1) * 4096

    def close(self) -> None:
        self.ram.close()
