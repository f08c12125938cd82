"""The table's numbers and names against the kernel's own header, and its modules against what they declare."""

from __future__ import annotations

import re
import subprocess

import pytest

from devices import bus
from devices.table import TABLE

NEWER_THAN_DEBIAN_12 = 451


def header_numbers() -> dict[int, str]:
    source = "#include <asm/unistd_64.h>\n"
    run = subprocess.run(["gcc", "-E", "-dM", "-"], input=source, capture_output=True, text=True, check=True)
    return {int(n): name for name, n in re.findall(r"#define __NR_(\w+) (\d+)", run.stdout)}


def test_numbers_are_the_kernels() -> None:
    theirs = header_numbers()
    ours = {number: entry.name for number, entry in TABLE.items()}
    assert {n: name for n, name in ours.items() if n < NEWER_THAN_DEBIAN_12} == {
        n: name for n, name in theirs.items() if n < NEWER_THAN_DEBIAN_12
    }
    assert len(set(ours.values())) == len(ours)


@pytest.mark.parametrize("number", [n for n, entry in TABLE.items() if entry.module])
def test_every_served_call_is_declared_where_the_table_says(number: int) -> None:
    entry = TABLE[number]
    __import__(entry.module)
    declaration = bus.DECLARED[entry.name]
    assert declaration.handler.__module__ == entry.module
    assert declaration.handler.__name__.rstrip("_") == entry.name


def test_nothing_is_declared_that_the_table_does_not_name() -> None:
    for entry in TABLE.values():
        if entry.module:
            __import__(entry.module)
    served = {entry.name for entry in TABLE.values() if entry.module}
    assert set(bus.DECLARED) == served
