"""The main oracle: the same compiled program on the host's kernel and in the guest says the same.

Every program in guest/programs is run on both, on every accelerator, and must print the same and end the same way. A
program that is not meant for that (a benchmark, a hostile one) says so in a line `// not compared: WHY`; its arguments,
if it takes any, stand in a line `// arguments: ...`. One that needs files has a line `// boot: host`: it runs in the
host's root file system instead of by itself. One that uses what only newer kernels have names the oldest that will do
in a line `// needs Linux 6.3`.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.harness import GUEST, boot, native, program, shell_status, skip_on_older_hosts

NOT_COMPARED = re.compile(r"^// not compared: ", re.MULTILINE)
ARGUMENTS = re.compile(r"^// arguments: (.*)$", re.MULTILINE)


IN_HOST = re.compile(r"^// boot: host$", re.MULTILINE)


def compared() -> list[str]:
    sources = sorted((GUEST / "programs").glob("*.c"))
    return [source.stem for source in sources if not NOT_COMPARED.search(source.read_text())]


def arguments(name: str) -> list[str]:
    found = ARGUMENTS.search((GUEST / "programs" / f"{name}.c").read_text())
    return found[1].split() if found else []


@pytest.mark.parametrize("name", compared())
def test_same_on_both_kernels(name: str, accelerator: str) -> None:
    skip_on_older_hosts(name)
    argv: list[str | Path] = [program(name), *arguments(name)]
    expected = native(argv)
    root = ["host"] if IN_HOST.search((GUEST / "programs" / f"{name}.c").read_text()) else []
    result = boot(accelerator, [*root, *argv])
    assert result.stdout.decode() == expected.stdout.decode()
    assert result.stderr.decode() == expected.stderr.decode()
    assert result.returncode == shell_status(expected.returncode)


def test_programs_do_not_end_by_surprise() -> None:
    """The comparison would also be passed by two crashes: on the host every program must end with status 0."""
    for name in compared():
        done = native([program(name), *arguments(name)])
        assert done.returncode == 0, (name, signal.Signals(-done.returncode) if done.returncode < 0 else done)


BUSYBOX = Path("/bin/busybox")
needs_busybox = pytest.mark.skipif(not BUSYBOX.exists(), reason="Debian's busybox-static is not installed")


@needs_busybox
def test_busybox_uname(accelerator: str) -> None:
    result = boot(accelerator, [BUSYBOX, "uname", "-a"])
    assert (result.returncode, result.stderr) == (0, b"")
    words = result.stdout.decode().split()
    assert words[0] == "Linux"
    assert words[-2:] == ["x86_64", "GNU/Linux"]


@needs_busybox
def test_busybox_shell_counts(accelerator: str) -> None:
    script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo $i"
    result = boot(accelerator, [BUSYBOX, "sh", "-c", script])
    assert (result.returncode, result.stdout, result.stderr) == (0, b"100000\n", b"")


@needs_busybox
@pytest.mark.parametrize("applet", [["echo", "a b"], ["seq", "1", "2000"], ["factor", "1234567890"], ["false"]])
def test_busybox_applets_as_on_the_host(applet: list[str], accelerator: str) -> None:
    expected = native([BUSYBOX, *applet])
    result = boot(accelerator, [BUSYBOX, *applet])
    assert (result.returncode, result.stdout, result.stderr) == (
        expected.returncode,
        expected.stdout,
        expected.stderr,
    )


@needs_busybox
@pytest.mark.parametrize("applet", [["cat"], ["md5sum"], ["wc"], ["gzip", "-c"]])
def test_busybox_reads_its_input(applet: list[str], accelerator: str) -> None:
    data = bytes(range(256)) * 5000
    expected = native([BUSYBOX, *applet], input=data)
    result = boot(accelerator, [BUSYBOX, *applet], input=data)
    assert (result.returncode, result.stdout) == (expected.returncode, expected.stdout)
