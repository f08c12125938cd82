"""Mounting in the guest and on the host, where it is done in a mount namespace that ends with the program."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.harness import boot, native, program, skip_on_older_hosts


def test_mounts_are_as_on_the_host(accelerator: str) -> None:
    skip_on_older_hosts("vfs_mounts")
    before = set(Path("/dev/shm").iterdir())
    unshare = shutil.which("unshare")
    if unshare is None or native([unshare, "-m", "/bin/true"]).returncode:
        pytest.skip("the host gives no mount namespace")
    command = program("vfs_mounts")
    try:
        expected = native([unshare, "-m", command])
        result = boot(accelerator, ["host", command])
    finally:
        for left in set(Path("/dev/shm").iterdir()) - before:
            if left.name.startswith("vfs"):
                shutil.rmtree(left)
    assert expected.returncode == 0
    assert result.stdout.decode() == expected.stdout.decode()
    assert (result.returncode, result.stderr) == (0, b"")
