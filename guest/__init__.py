"""What runs inside the VM: the system call stub, the vDSO, and the programs of the tests.

The sources are assembly and C, and so is what the monitor itself cannot say in Python (atomics.S). `make guest` builds
them into `guest/_built/`; a wheel carries what it built.
"""

import os

BUILT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_built")
"""Folder of the built files."""


class NotBuilt(Exception):
    """A file that the guest build makes is not there."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is missing: `make guest` in the source tree builds it")


def built(name: str) -> bytes:
    """Read a built file, such as "stub.bin" or "vdso.so".

    Raises NotBuilt when it is not there.
    """
    path = os.path.join(BUILT, name)
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except FileNotFoundError:
        raise NotBuilt(path) from None
