"""The ways to run a static program: on the host, in pyvmm on each accelerator, and in the peers that are installed."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness import ACCELERATORS, ROOT, kvm_missing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PEERS = ("runsc", "qemu-user", "qiling")
ORDER = ("native", *ACCELERATORS, *PEERS)
QILING = "qiling>=1.4.6,<2"


class Missing(Exception):
    """A way that this machine does not have; the text says why."""


class Way:
    """How to run a program: what stands before its path, and between that and its arguments."""

    def __init__(self, name: str, before: Sequence[str | Path] = (), between: Sequence[str] = ()) -> None:
        self.name = name
        self._before = [str(word) for word in before]
        self._between = list(between)

    def command(self, program: Path, arguments: Sequence[str] = ()) -> list[str]:
        return [*self._before, str(program), *(self._between if arguments else []), *arguments]


def environment(cache: Path) -> dict[str, str]:
    """Environment of what is measured: compiled modules are kept in `cache`, so that the tree stays clean."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return env | {"PYTHONPATH": path, "PYTHONPYCACHEPREFIX": str(cache)}


def pyvmm(accelerator: str) -> Way:
    """`pyvmm boot` with this interpreter. Raises Missing."""
    reason = kvm_missing() if accelerator == "kvm" else None
    if reason:
        raise Missing(reason)
    return Way(accelerator, [sys.executable, "-m", "vmm", "boot", f"--accel={accelerator}"], ["--"])


def runsc() -> Way:
    """gVisor on its ptrace platform (its kvm platform needs hardware virtualization). Raises Missing."""
    rootless = ["--rootless"] if os.geteuid() else []
    before = [_installed("runsc"), "--platform=ptrace", "--network=none", "--ignore-cgroups", *rootless, "do"]
    return _checked(Way("runsc", before))


def qemu_user() -> Way:
    """QEMU's user-mode emulation. Raises Missing."""
    return _checked(Way("qemu-user", [_installed("qemu-x86_64-static", "qemu-x86_64")]))


def qiling_environment() -> Path:
    """Where Qiling's own virtual environment is, if it is anywhere."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pyvmm" / "qiling"


def install_qiling() -> None:
    """Make Qiling's environment. subprocess.CalledProcessError when that does not work."""
    place = qiling_environment()
    if not (place / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
    subprocess.run([place / "bin" / "python", "-m", "pip", "install", "--quiet", QILING], check=True)


def qiling() -> Way:
    """Qiling, in an environment of its own. Raises Missing."""
    python = qiling_environment() / "bin" / "python"
    if not python.exists():
        raise Missing(f"not in {qiling_environment()}; --with-qiling installs it there")
    return _checked(Way("qiling", [python, Path(__file__).with_name("qiling_run.py")]))


def available() -> tuple[list[Way], dict[str, str]]:
    """Every way that there is, in the columns' order, and the reasons of those that are missing, by name."""
    found, missing = [Way("native")], {}
    makers: dict[str, Callable[[], Way]] = {name: functools.partial(pyvmm, name) for name in ACCELERATORS}
    makers |= {"runsc": runsc, "qemu-user": qemu_user, "qiling": qiling}
    for name, make in makers.items():
        try:
            found.append(make())
        except Missing as reason:
            missing[name] = str(reason)
    return found, missing


def _installed(*names: str) -> str:
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise Missing(f"{names[0]} is not installed")


def _checked(way: Way) -> Way:
    """The way, if a trivial static program comes to its end in it."""
    import images

    try:
        done = subprocess.run(
            way.command(Path(images.path("hello"))), stdin=subprocess.DEVNULL, capture_output=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(str(error)) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise Missing(f"does not run here: {said[-1] if said else f'status {done.returncode}'}")
    return way
