"""Copies between a program's memory and the monitor: the only way in which devices/ touch guest memory.

Every address is the program's word: it may be anything. An access that the program itself could not make raises
SysError(EFAULT); nothing at or above TASK_SIZE is ever touched. Pages come in as they do for the program's own accesses
(demand zero, files, stack growth, copy-on-write). As on x86, a page that may be written or executed may be read.

A copy inside one page that was used before costs about 0.4 us: two dicts hold page number -> frame, one for each kind
of access, and are emptied by every change that takes a page or a right away (`Core.forget_translations`).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from devices.errors import SysError
from devices.memory.abi import VM_MAYSHARE
from devices.memory.faults import Faults, OutOfMemory
from devices.memory.machine import Pinned
from vmm.cpu import PF_USER, PF_WRITE
from vmm.layout import PAGE_SHIFT, PAGE_SIZE, TASK_SIZE

if TYPE_CHECKING:
    import ctypes
    import struct
    from collections.abc import Hashable

TRANSLATIONS = 4096
"""Pages that a software TLB holds at most."""
Buffer = bytes | bytearray | memoryview


class UserAccess(Faults):
    """The part of an address space that the monitor's own accesses use."""

    # Bytes

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes of the program's memory; EFAULT unless all can be read (copy_from_user())."""
        offset = address & 4095
        frame = self._readable.get(address >> 12)
        if frame is not None and 0 <= size <= PAGE_SIZE - offset:
            offset += frame
            return self._map[offset : offset + size]
        memory = self._map
        return b"".join([memory[pa : pa + n] for pa, n in self._extents(address, size, False)])

    def write(self, address: int, data: Buffer) -> None:
        """Write bytes to the program's memory; EFAULT, and nothing is written, unless all can be (copy_to_user())."""
        offset = address & 4095
        size = len(data)
        frame = self._writable.get(address >> 12)
        if frame is not None and size <= PAGE_SIZE - offset:
            offset += frame
            self._map[offset : offset + size] = data
            return
        self._store(self._extents(address, size, True), data)

    def read_partial(self, address: int, size: int) -> bytes:
        """As `read`, but what can be read from the start on, where that is not all; EFAULT where it is nothing."""
        memory = self._map
        return b"".join([memory[pa : pa + n] for pa, n in self._extents(address, size, False, partial=True)])

    def write_partial(self, address: int, data: Buffer) -> int:
        """As `write`, but as much from the start on as can be; the bytes written. EFAULT where it is nothing."""
        extents = self._extents(address, len(data), True, partial=True)
        self._store(extents, data)
        return sum(n for _, n in extents)

    def _store(self, extents: list[tuple[int, int]], data: Buffer) -> None:
        view = self.machine.ram.view
        done = 0
        with memoryview(data) as source:
            for pa, n in extents:
                view[pa : pa + n] = source[done : done + n]
                done += n
                self.machine.code_written(pa, n)

    def read_cstring(self, address: int, limit: int) -> bytes:
        """A C string without its NUL, which must be among its first `limit` bytes (else ENAMETOOLONG); EFAULT."""
        parts: list[bytes] = []
        memory = self._map
        while limit > 0:
            pa = self._locate(address, False)
            end = pa + min(limit, PAGE_SIZE - (address & 4095))
            nul = memory.find(b"\0", pa, end)
            if nul >= 0:
                parts.append(memory[pa:nul])
                return b"".join(parts)
            parts.append(memory[pa:end])
            limit -= end - pa
            address += end - pa
        raise SysError(errno.ENAMETOOLONG, "string too long")

    # Numbers, naturally aligned ones with one access

    def read_u32(self, address: int) -> int:
        """The unsigned int at `address`; EFAULT."""
        if address & 3:
            return int.from_bytes(self.read(address, 4), "little")
        frame = self._readable.get(address >> 12)
        if frame is None:
            frame = self._locate(address & -PAGE_SIZE, False)
        return self._dwords[(frame + (address & 4095)) >> 2]

    def read_i32(self, address: int) -> int:
        """The int at `address`; EFAULT."""
        return (self.read_u32(address) ^ 0x8000_0000) - 0x8000_0000

    def read_u64(self, address: int) -> int:
        """The unsigned long at `address`; EFAULT."""
        if address & 7:
            return int.from_bytes(self.read(address, 8), "little")
        frame = self._readable.get(address >> 12)
        if frame is None:
            frame = self._locate(address & -PAGE_SIZE, False)
        return self._words[(frame + (address & 4095)) >> 3]

    def write_u32(self, address: int, value: int) -> None:
        """Store `value` modulo 2^32; EFAULT."""
        frame = self._writable.get(address >> 12)
        if frame is None or address & 3:
            self.write(address, (value & 0xFFFF_FFFF).to_bytes(4, "little"))
        else:
            self._dwords[(frame + (address & 4095)) >> 2] = value & 0xFFFF_FFFF

    def write_u64(self, address: int, value: int) -> None:
        """Store `value` modulo 2^64; EFAULT."""
        frame = self._writable.get(address >> 12)
        if frame is None or address & 7:
            self.write(address, (value & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little"))
        else:
            self._words[(frame + (address & 4095)) >> 3] = value & 0xFFFF_FFFF_FFFF_FFFF

    # Structures

    def read_struct(self, address: int, layout: struct.Struct) -> tuple[Any, ...]:
        """The values of a struct at `address`; EFAULT."""
        return layout.unpack(self.read(address, layout.size))

    def write_struct(self, address: int, layout: struct.Struct, *values: Any) -> None:
        """Write a struct's values to `address`; EFAULT."""
        self.write(address, layout.pack(*values))

    def read_into(self, address: int, target: ctypes.Structure) -> None:
        """Fill a ctypes structure from `address`; EFAULT."""
        with memoryview(target).cast("B") as view:
            view[:] = self.read(address, len(view))

    # Without a copy

    def views(self, address: int, size: int, write: bool) -> list[memoryview]:
        """The memory itself, to be read from or (`write`) written to by the host while the kernel lock is held; EFAULT
        unless all of it may be accessed."""
        return self._views(self._extents(address, size, write), write)

    def views_partial(self, address: int, size: int, write: bool) -> list[memoryview]:
        """As `views`, but what may be accessed from the start on; EFAULT where that is nothing."""
        return self._views(self._extents(address, size, write, partial=True), write)

    def _views(self, extents: list[tuple[int, int]], write: bool) -> list[memoryview]:
        view = self.machine.ram.view
        if write:
            for pa, n in extents:
                self.machine.code_written(pa, n)
        return [view[pa : pa + n] for pa, n in extents]

    def pin(self, address: int, size: int, write: bool) -> Pinned:
        """As `views`, for a host call that is made with the kernel lock dropped: a context manager with `.views`.

        Enter and leave it with the lock held. The memory stays the program's until then, whatever it unmaps."""
        extents = self._extents(address, size, write)
        if write:
            for pa, n in extents:
                self.machine.code_written(pa, n)
        return Pinned(self.machine, extents)

    def frame_of(self, address: int, write: bool) -> int:
        """Guest-physical address of the byte at `address`, which is made present; EFAULT."""
        return self._locate(address, write)

    def futex_key(self, address: int, shared: bool) -> Hashable:
        """What names the futex at `address` (get_futex_key()): the place in the memory that processes share, or, of a
        private futex and in private memory, the address in this address space. EFAULT."""
        if address + 4 > TASK_SIZE or address < 0:
            raise SysError(errno.EFAULT)
        if shared:
            self._locate(address, False)
            vma = self.vmas.at(address)
            if vma is not None and vma.flags & VM_MAYSHARE and vma.backing is not None:
                return (vma.backing, vma.offset_of(address))
        return (self, address)

    # Translation

    def _locate(self, address: int, write: bool) -> int:
        """Guest-physical address of a byte that is to be read or written; EFAULT."""
        frame = (self._writable if write else self._readable).get(address >> PAGE_SHIFT)
        if frame is not None:
            return frame + (address & 4095)
        if not 0 <= address < TASK_SIZE:
            raise SysError(errno.EFAULT, "no address of the program")
        pa = self.table.translate(address, write)
        if pa < 0:
            self._fault_in(address, write)
            pa = self.table.translate(address, write)
            if pa < 0:
                raise SysError(errno.EFAULT, "the page tables were tampered with")
        self._note(address, pa & -PAGE_SIZE, write)
        return pa

    def _note(self, address: int, frame: int, write: bool) -> None:
        """Enter a translation into the software TLBs."""
        if len(self._readable) >= TRANSLATIONS:
            self.forget_translations()
        self._readable[address >> PAGE_SHIFT] = frame
        if write and not self.machine.is_code(frame):
            self._writable[address >> PAGE_SHIFT] = frame

    def _extents(self, address: int, size: int, write: bool, partial: bool = False) -> list[tuple[int, int]]:
        """(guest-physical address, bytes) of memory that is made accessible; EFAULT where none (`partial`) or not all
        of it can be."""
        if size <= 0:
            return []
        end = address + size
        if address < 0 or end > TASK_SIZE:
            raise SysError(errno.EFAULT, "beyond the program's address space")
        found = self.table.extents(address, end, write)
        done = sum(n for _, n in found)
        while done < size:
            try:
                self._fault_in(address + done, write)
            except SysError:
                if partial and done:
                    break
                raise
            more = self.table.extents(address + done, end, write)
            if not more:
                raise SysError(errno.EFAULT, "the page tables were tampered with")
            done += sum(n for _, n in more)
            found += more
        if len(found) == 1:
            self._note(address, (found[0][0] - (address & 4095)), write)
        return found

    def _fault_in(self, address: int, write: bool) -> None:
        """Have the page of `address` as a fault of the program would; EFAULT where it would get a signal."""
        problem = self.fault_in(address, PF_USER | PF_WRITE if write else PF_USER)
        if problem is None:
            return
        if isinstance(problem, OutOfMemory):
            self.machine.on_out_of_memory()
        raise SysError(errno.EFAULT, "not the program's to access")
