"""What the lab runs when it is told nothing else, and the bytecode it needs."""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.lab.errors import LabError

# Everything runs 20 to 50 times slower than on the host, so the selection is what the kind of KVM decides: what is
# marked kvm, which each test is that opens /dev/kvm or boots a guest on it. The emulator, the models and the project's
# own tests are the same everywhere, and a test that is slow on the host would take minutes.
MARKERS = "kvm and not slow"
PATHS = (
    "tests/host",
    "tests/guest/test_hostile.py",
    "tests/guest/test_languages.py",
    "tests/guest/test_machine.py",
    "tests/guest/test_same.py",
    "tests/guest/test_signals.py",
)
"""Without the tests of what is in files: they are the same on every KVM."""

# What QEMU's TCG cannot show.
DESELECTED = (
    # It raises no unmasked SSE exception (#XM) and lets reserved bits of MXCSR pass (#GP).
    "tests/guest/test_signals.py::test_what_only_a_real_cpu_raises",
    "tests/guest/test_same.py::test_same_on_both_kernels[kvm-signals_return]",
    # A thousand vCPUs take minutes.
    "tests/guest/test_hostile.py::test_threads_without_end_get_eagain[kvm]",
)

# -v: should the lab itself die, the last name is that of the test that was running.
# -x: one failure is enough to know, and the rest would take its time. The per-test limits of pyproject.toml are for
# the host. No cache: the checkout is read-only in the lab.
PYTEST_ARGUMENTS = ("-v", "-x", "-p", "no:cacheprovider", "--timeout=300", "-o", "faulthandler_timeout=240")

PACKAGES = ("vmm", "devices", "guest", "images", "tests")


def prepare_bytecode(root: Path) -> None:
    """Write the __pycache__ of the checkout, as Python itself would: in the lab each process would compile anew.

    A checkout that may not be written to is taken as it is.
    """
    for package in PACKAGES:
        compileall.compile_dir(root / package, quiet=2, maxlevels=10)


def collected_files(listing: str) -> list[str]:
    """The files in the output of `pytest --collect-only -q`, each once, in order."""
    nodes = (line.partition("::") for line in listing.splitlines())
    return list(dict.fromkeys(path for path, colons, _ in nodes if colons and path.endswith(".py")))


def default_command(root: Path) -> list[str]:
    """pytest over the default selection, in this interpreter's environment.

    The host finds the files that have a selected test, so that the lab need not import the others; it also leaves
    pytest's own rewritten bytecode behind for them. Raises LabError when there is no such test or collecting fails.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", MARKERS, *PATHS]
    done = subprocess.run(
        collect, cwd=root, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 5):  # 5: nothing collected
        sys.stdout.write(done.stdout + done.stderr)
        raise LabError(f"pytest cannot collect the tests (status {done.returncode}), see above")
    files = collected_files(done.stdout)
    if not files:
        raise LabError(f"there is no test to run: none is marked {MARKERS!r}")
    return pytest_command(files)


def pytest_command(files: Sequence[str]) -> list[str]:
    deselected = [f"--deselect={node}" for node in DESELECTED]
    return [sys.executable, "-m", "pytest", *PYTEST_ARGUMENTS, *deselected, "-m", MARKERS, *files]
