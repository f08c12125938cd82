"""Where a program's parts are in its memory: the numbers of struct mm_struct that /proc shows."""

from __future__ import annotations

from typing import NamedTuple


class ProgramLayout(NamedTuple):
    """Set by exec, the same after fork. Addresses are the program's."""

    start_code: int = 0
    end_code: int = 0
    start_data: int = 0
    end_data: int = 0
    start_stack: int = 0
    arg_start: int = 0
    arg_end: int = 0
    env_start: int = 0
    env_end: int = 0
    auxv: bytes = b""
    """The auxiliary vector as it was put on the stack, AT_NULL included."""
