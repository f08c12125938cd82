"""The guest's code, guest/stub.S, taken apart.

Offsets come from the binary's own header, addresses from vmm/layout.py.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from guest import built
from vmm.layout import DOORBELL, EXCEPTION_STUBS, PAGE_SIZE, STUB

_HEADER = struct.Struct("<4s14I")


class Stub(NamedTuple):
    """The parts of stub.bin, and the addresses in the guest that the monitor must know."""

    page: bytes
    """Contents of the page at STUB."""
    exceptions: bytes
    """Contents of the page at EXCEPTION_STUBS: an entry for each vector, `exception_size` bytes apart."""
    exception_size: int
    probe: bytes
    """Position-independent ring-3 code; see vmm/kvm/probe.py."""
    doorbell_entry: int
    """MSR_LSTAR where SYSCALL leaves the CPU in ring 3."""
    doorbell_return: int
    """RIP after the store to the doorbell."""
    port_entry: int
    """MSR_LSTAR where SYSCALL enters ring 0."""
    port_return: int
    """The SYSRETQ behind the OUT."""
    syscall_port: int
    exception_port: int

    @property
    def vectors(self) -> int:
        return len(self.exceptions) // self.exception_size


def load() -> Stub:
    """Read stub.bin and write the doorbell's address into it.

    Raises guest.NotBuilt when it is not there, ValueError when it is not what guest/stub.S makes."""
    data = built("stub.bin")
    if len(data) < _HEADER.size or data[:4] != b"PVMS":
        raise ValueError("stub.bin does not begin with the header of guest/stub.S")
    (_, at, size, exceptions, exceptions_size, exception_size, probe, probe_size,
     doorbell_entry, doorbell_address, doorbell_return, port_entry, port_return,
     syscall_port, exception_port) = _HEADER.unpack_from(data)  # fmt: skip
    places = ((at, size), (exceptions, exceptions_size), (probe, probe_size))
    if any(start + length > len(data) or length > PAGE_SIZE for start, length in places) or size < doorbell_address + 8:
        raise ValueError("stub.bin is cut short, or a part of it is larger than a page")
    page = bytearray(data[at : at + size])
    struct.pack_into("<Q", page, doorbell_address, DOORBELL)
    return Stub(
        bytes(page), data[exceptions : exceptions + exceptions_size], exception_size, data[probe : probe + probe_size],
        STUB + doorbell_entry, STUB + doorbell_return, STUB + port_entry, STUB + port_return,
        syscall_port, exception_port,
    )  # fmt: skip


def vector_of(rip: int, stub: Stub) -> int:
    """Which exception's entry `rip` lies in, -1 for none."""
    offset = rip - EXCEPTION_STUBS
    return offset // stub.exception_size if 0 <= offset < len(stub.exceptions) else -1
