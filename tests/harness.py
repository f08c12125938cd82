"""What the tests share: is there a KVM, run a program in the guest, run it on the host, compile C.

The same program on both kernels is the main oracle: compare `boot()` with `native()`.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
GUEST = ROOT / "guest"

ACCELERATORS = ("kvm", "emulator")

_KVM_GET_API_VERSION = 0xAE00
_KVM_CREATE_VM = 0xAE01


@functools.cache
def kvm_missing() -> str | None:
    """Why KVM cannot be used here; None when it can."""
    import fcntl

    try:
        device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    try:
        version = fcntl.ioctl(device, _KVM_GET_API_VERSION, 0)
        if version != 12:
            return f"/dev/kvm speaks API version {version}, not 12"
        os.close(fcntl.ioctl(device, _KVM_CREATE_VM, 0))
    except OSError as error:
        return f"/dev/kvm is there but makes no VM: {error.strerror}"
    finally:
        os.close(device)
    return None


def boot(
    accelerator: str,
    argv: Sequence[str | Path],
    *,
    input: bytes = b"",
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run `pyvmm boot`: the program argv[0] in the guest with the arguments argv[1:], and return its status and output.

    `env` holds variables of the guest's program, `options` are more options of `pyvmm boot`. A run longer than
    `timeout` seconds is killed and raises subprocess.TimeoutExpired.
    """
    variables = [f"--env={name}={value}" for name, value in (env or {}).items()]
    command = [sys.executable, "-m", "vmm", "boot", f"--accel={accelerator}", *variables, *options, argv[0]]
    if len(argv) > 1:
        command += ["--", *argv[1:]]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        command, input=input, capture_output=True, timeout=timeout, env=os.environ | {"PYTHONPATH": path}
    )


def native(
    argv: Sequence[str | Path],
    *,
    input: bytes = b"",
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run the program argv on the host's own kernel, with `env` as its whole environment."""
    return subprocess.run(argv, input=input, capture_output=True, timeout=timeout, env=env or {})


def shell_status(returncode: int) -> int:
    """A status of `native()` as a shell and pyvmm say it: 128 + N for an end by signal N."""
    return 128 - returncode if returncode < 0 else returncode


@functools.cache
def program(name: str) -> Path:
    """Path of the guest program guest/programs/NAME.c, built first if it is missing or older than its source."""
    target = f"_built/programs/{name}"
    _run(["make", "-s", "-C", GUEST, target])
    return GUEST / target


@functools.cache
def built(name: str) -> Path:
    """Path of the file `name` that the guest build ships ("stub.bin", "vdso.so"), built first if need be."""
    _run(["make", "-s", "-C", GUEST, f"_built/{name}"])
    return GUEST / "_built" / name


@functools.cache
def built_image(name: str) -> Path:
    """Path of the image `name` that pyvmm brings along, built first if need be."""
    _run(["make", "-s", "-C", GUEST, "shipped"])
    return ROOT / "images" / "_built" / name / name


def skip_on_older_hosts(name: str) -> None:
    """Skip a guest program that uses what the host's kernel does not know yet: it could not say what is right. The
    program says so in a line `// needs Linux X.Y`."""
    import pytest

    needed = re.search(r"^// needs Linux (\d+)\.(\d+)", (GUEST / "programs" / f"{name}.c").read_text(), re.MULTILINE)
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if needed and release and tuple(map(int, release.groups())) < tuple(map(int, needed.groups())):
        pytest.skip(f"the host's kernel is older than Linux {needed[1]}.{needed[2]}")


def compile_c(source: Path, output: Path, *flags: str) -> Path:
    """Compile a C program for the host, warnings being errors, and return `output`."""
    _run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", output, source, *flags])
    return output


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}"
