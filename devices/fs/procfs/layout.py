"""Where a program's parts are in its memory: the numbers of struct mm_struct that /proc shows.

Nobody keeps them: they follow from what exec put on the first stack (devices/task/exec.py, build_stack()).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from devices.memory.abi import VM_WRITE

if TYPE_CHECKING:
    from devices.memory.vma import Vma
    from devices.task.process import Process

AT_ENTRY, AT_PLATFORM, AT_EXECFN = 9, 15, 31


class ProgramLayout(NamedTuple):
    """Addresses of the program's; ends are behind the last byte."""

    start_code: int = 0
    end_code: int = 0
    start_data: int = 0
    end_data: int = 0
    start_stack: int = 0
    arg_start: int = 0
    arg_end: int = 0
    env_start: int = 0
    env_end: int = 0


NOTHING = ProgramLayout()


def layout_of(process: Process) -> ProgramLayout:
    """Zeros for a process that has not started a program."""
    vector = dict(struct.iter_unpack("<QQ", process.auxv))
    if AT_EXECFN not in vector:
        return NOTHING
    env_end = vector[AT_EXECFN]
    env_start = env_end - sum(len(s) + 1 for s in process.environ)
    arg_start = env_start - sum(len(s) + 1 for s in process.argv)
    words = 1 + len(process.argv) + 1 + len(process.environ) + 1 + len(process.auxv) // 8
    stack = vector[AT_PLATFORM] - 8 * words & -16
    parts = (*code_and_data(process, vector[AT_ENTRY]), stack, arg_start, env_start, env_start, env_end)
    return ProgramLayout(*parts)


def code_and_data(process: Process, entry: int) -> tuple[int, int, int, int]:
    """The area with the entry point, and the first writable one behind it, as far as they are there still."""
    areas = process.memory.vmas
    code = areas.at(entry)
    if code is None:
        return 0, 0, 0, 0
    at: Vma | None = code
    while at is not None and not at.flags & VM_WRITE:
        following = areas.find(at.end)
        at = following if following is not None and following.backing is code.backing else None
    return code.start, code.end, *((at.start, at.end) if at is not None else (0, 0))
