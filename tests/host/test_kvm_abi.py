"""vmm/kvm/abi.py against <linux/kvm.h>: a C program prints what the header says of every name that the mirror has."""

from __future__ import annotations

import ctypes
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests import harness
from vmm.kvm import abi

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Not in the uapi: the kernel's arch/x86/include/asm/msr-index.h. tests/host/test_kvm_cpu.py shows that they are right.
_INTERNAL = ("MSR_",)
# struct kvm_vcpu_events is mirrored as bytes but for its flags, and nothing reads those of a kvm_run's `exit` by name.
_OPAQUE = {"kvm_vcpu_events.waiting", "kvm_vcpu_events.more", "kvm_run.exit", "kvm_run.exit.padding"}


def _structs() -> dict[str, type[ctypes.Structure]]:
    return {
        name: value
        for name, value in vars(abi).items()
        if name.startswith("kvm_") and isinstance(value, type) and issubclass(value, ctypes.Structure)
    }


def _fields(struct: type[ctypes.Structure | ctypes.Union], path: str = "") -> Iterator[str]:
    """Every field of a struct, and those of structs in it, as paths."""
    for name, kind, *_ in struct._fields_:
        yield path + name
        if issubclass(kind, ctypes.Structure | ctypes.Union):
            yield from _fields(kind, f"{path}{name}.")


def _size_of(struct: type[ctypes.Structure | ctypes.Union], path: str) -> int:
    for name in path.split("."):
        struct = next(kind for known, kind, *_ in struct._fields_ if known == name)  # type: ignore[assignment]
    return ctypes.sizeof(struct)


def _mirrored() -> dict[str, int]:
    """C expressions and the values that the mirror gives them."""
    wanted = {}
    for name, struct in _structs().items():
        wanted[f"sizeof(struct {name})"] = ctypes.sizeof(struct)
        for path in _fields(struct):
            if f"{name}.{path}" in _OPAQUE or path.endswith(("events.waiting", "events.more")):
                continue
            field = path.removeprefix("exit.")
            wanted[f"offsetof(struct {name}, {field})"] = abi.offsetof(struct, path)
            wanted[f"sizeof(((struct {name} *)0)->{field})"] = _size_of(struct, path)
    for name, value in vars(abi).items():
        if name.startswith("KVM_"):
            wanted[name] = value
    return wanted


def test_mirror_is_the_header(tmp_path: Path) -> None:
    wanted = _mirrored()
    assert len(wanted) > 250
    lines = [f'printf("%llu\\n", (unsigned long long)({expression}));' for expression in wanted]
    source = tmp_path / "abi.c"
    source.write_text(
        "\n".join(
            ["#include <stddef.h>", "#include <stdio.h>", "#include <linux/kvm.h>", "int main(void) {", *lines, "}", ""]
        )
    )
    program = harness.compile_c(source, tmp_path / "abi", "-O0")
    output = subprocess.run([program], capture_output=True, check=True, text=True).stdout.split()
    found = dict(zip(wanted, map(int, output), strict=True))
    assert found == wanted


def test_every_constant_is_checked() -> None:
    constants = {name for name, value in vars(abi).items() if name.isupper() and type(value) is int}
    unchecked = {name for name in constants - set(_mirrored()) if not name.startswith(("_", *_INTERNAL))}
    assert not unchecked


def test_size_is_asserted() -> None:
    with pytest.raises(AssertionError, match="has 4 bytes, not 8"):

        @abi._size(8)
        class wrong(ctypes.Structure):
            _fields_ = (("field", ctypes.c_uint32),)
