"""Guest RAM: one memfd, mapped shared.

Shared, because revoking a translation (madvise(MADV_DONTNEED) on the host address of a frame, which makes KVM's MMU
notifier drop it) must not lose data; a memfd, because the emulator, io_uring and vhost can be given the descriptor.
It is sparse: a page costs the host nothing before it is written or populated, and nothing again once it is discarded.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

from vmm.layout import LARGE_SIZE

MADV_POPULATE_WRITE = 23


class GuestRam:
    """`size` bytes of guest-physical memory from address 0 on; `size` is a multiple of 2 MiB.

    Raises ValueError for another size, OSError when the host refuses. `view`, `words` and `dwords` show all of it as
    unsigned 8, 64 and 32-bit values; they are bounds-checked by Python, so no guest value reaches beyond it.
    """

    __slots__ = ("_populate", "address", "dwords", "fd", "map", "size", "view", "words")

    def __init__(self, size: int) -> None:
        if size <= 0 or size % LARGE_SIZE:
            raise ValueError(f"guest memory of {size} bytes is not a multiple of 2 MiB")
        self.size = size
        self.fd = os.memfd_create("pyvmm-ram", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size)
            self.map = mmap.mmap(self.fd, size, mmap.MAP_SHARED)
        except BaseException:
            os.close(self.fd)
            raise
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        """Host virtual address of guest-physical address 0."""
        self.view = memoryview(self.map)
        self.words = self.view.cast("Q")
        self.dwords = self.view.cast("I")
        self._populate = True

    def revoke(self, address: int, length: int) -> None:
        """Drop the host's and KVM's translations of a page-aligned run; the data stays (madvise(2) MADV_DONTNEED)."""
        self.map.madvise(mmap.MADV_DONTNEED, address, length)

    def discard(self, address: int, length: int) -> None:
        """Give a page-aligned run back to the host: it reads as zeros and no translation is left (MADV_REMOVE)."""
        self.map.madvise(mmap.MADV_REMOVE, address, length)

    def populate(self, address: int, length: int) -> None:
        """Make the host back a page-aligned run now (MADV_POPULATE_WRITE, Linux 5.14).

        A hint: a host that cannot, or has no memory left, backs the pages when they are touched, or not at all."""
        if not self._populate:
            return
        try:
            self.map.madvise(MADV_POPULATE_WRITE, address, length)
        except OSError as error:
            if error.errno == errno.EINVAL:
                self._populate = False

    def close(self) -> None:
        """Give everything back. May be called again. A view that somebody still holds keeps its mapping alive."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        for view in (self.words, self.dwords, self.view):
            view.release()
        try:
            self.map.close()
        except BufferError:
            return  # slices are in use; the last one to go takes the mapping with it
