"""pyvmm syscalls: the support table (devices/table.py)."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from devices.table import TABLE
from vmm.cli import UsageError, parser_of

if TYPE_CHECKING:
    from collections.abc import Sequence

LEVELS = ("full", "partial", "enosys")


def run(words: Sequence[str]) -> int:
    """Run `pyvmm syscalls`; the exit status."""
    parser = parser_of("syscalls", "List the x86-64 system calls and how far each is served.")
    parser.add_argument("names", metavar="NAME", nargs="*", help="only these calls (names or numbers)")
    parser.add_argument("--level", choices=LEVELS, help="only the calls of this level")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(words)
    wanted = {number_of(name) for name in options.names} or set(TABLE)
    rows = [
        {"number": number, "name": entry.name, "level": entry.level, "missing": entry.missing}
        for number, entry in sorted(TABLE.items())
        if number in wanted and options.level in (None, entry.level)
    ]
    if options.json:
        json.dump(rows, sys.stdout, indent=1)
        print()
        return 0
    for row in rows:
        print(f"{row['number']:>4}  {row['name']:<24} {row['level']:<8} {row['missing']}".rstrip())
    if not options.names and not options.level:
        counts = [sum(entry.level == level for entry in TABLE.values()) for level in LEVELS]
        print(", ".join(f"{count} {level}" for count, level in zip(counts, LEVELS, strict=True)))
    return 0


def number_of(name: str) -> int:
    """A call's number from its name or number."""
    for number, entry in TABLE.items():
        if name in (entry.name, str(number)):
            return number
    raise UsageError(f"syscalls: there is no system call {name!r} on x86-64")
