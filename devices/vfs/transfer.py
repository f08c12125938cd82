"""Moving bytes between a host descriptor and guest memory: straight into and out of guest frames, no copy between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.errors import SysError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devices.task.task import Task
    from devices.vfs.files import Segments

CHUNK = 1 << 20
"""Bytes that one host call moves at most: bounds the time in the host and the pages made present at once."""
HOST_IOV_MAX = 1024


def chunks(task: Task, segments: Segments, write: bool) -> Iterator[list[memoryview]]:
    """Views of the guest's buffers in pieces that one host call takes. `write`: the guest's memory is written to.

    SysError(EFAULT) at the first piece that the guest may not access that way."""
    for address, length in segments:
        done = 0
        while done < length:
            size = min(length - done, CHUNK)
            views = task.memory.views(address + done, size, write)
            for first in range(0, len(views), HOST_IOV_MAX):
                yield views[first : first + HOST_IOV_MAX]
            done += size


def transfer(task: Task, segments: Segments, write: bool, move: Callable[[list[memoryview], int], int]) -> int:
    """Move all the segments with `move(views, bytes moved so far)` until it falls short; the bytes moved.

    An error after some progress ends the transfer with what was moved, as Linux's does; before it, it is the call's."""
    total = 0
    try:
        for views in chunks(task, segments, write):
            wanted = sum(map(len, views))
            moved = move(views, total)
            total += moved
            if moved < wanted:
                break
    except SysError:
        if not total:
            raise
    return total
