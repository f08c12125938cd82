"""A monitor that is killed amid writes to a read-write mount loses nothing that write(2) had returned for."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.harness import ROOT, program

if TYPE_CHECKING:
    from pathlib import Path

RECORD = 4096
NUMBER = struct.Struct("<Q")


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_monitor_loses_nothing(seed: int, accelerator: str, tmp_path: Path) -> None:
    image, shared = tmp_path / "image", tmp_path / "shared"
    image.mkdir()
    shared.mkdir()
    (image / "appender").write_bytes(program("appender").read_bytes())
    (image / "appender").chmod(0o755)
    words = ["boot", f"--accel={accelerator}", f"--mount={shared}:/m:rw", str(image), "--", "/appender", "/m"]
    wanted = random.Random(seed).randrange(20, 400)
    with subprocess.Popen([sys.executable, "-m", "vmm", *words], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        seen = process.stdout.read(wanted * NUMBER.size)
        process.kill()
        seen += process.stdout.read()
    assert process.returncode == -9
    done = NUMBER.unpack_from(seen, (len(seen) // NUMBER.size - 1) * NUMBER.size)[0]
    assert done >= wanted
    check(shared, done)


def check(shared: Path, done: int) -> None:
    """`done` rounds of guest/programs/appender.c are whole; of the next one there may be something."""
    appended = (shared / "appended").read_bytes()
    assert done * RECORD <= len(appended) <= (done + 1) * RECORD
    for n in range(1, done + 1):
        assert appended[(n - 1) * RECORD : n * RECORD] == NUMBER.pack(n) * (RECORD // NUMBER.size)
    with open(shared / "placed", "rb") as file:
        for n in range(max(1, done - 63), done + 1):
            place = os.pread(file.fileno(), RECORD, n % 64 * RECORD)
            assert place in [NUMBER.pack(m) * (RECORD // NUMBER.size) for m in (n, n + 64) if m <= done + 1]
    for n in range(max(1, done - 7), done + 1):
        assert (shared / f"record{n % 8}").read_bytes() in (NUMBER.pack(n), NUMBER.pack(n + 8))
