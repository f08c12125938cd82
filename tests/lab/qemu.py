"""QEMU for the lab: its command line, and a run of it that is bounded in time and surely ended."""

from __future__ import annotations

import ctypes
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.lab.errors import LabError

QEMU = "qemu-system-x86_64"
CPUS = 2

# smap: QEMU before 9.1 reads the stack of an IRET in user mode with the kernel's rights. With SMAP that is a fault of
# the kernel's, so that any program could end the lab: tests/guest/test_hostile.py has one that does IRET.
# pku: with protection keys Linux makes PROT_EXEC mappings unreadable, and the guest's CPUs have none to compare with.
CPU = "max,-smap,-pku"

KERNEL_ARGUMENTS = (
    *("console=ttyS0", "quiet"),
    # An oops ends the run at once instead of leaving a half-dead kernel to the time-out; QEMU exits at the reboot.
    *("panic=-1", "oops=panic"),
    # Time saved: nothing in the lab is worth a defence; the crypto code's self-tests prove nothing here; TCG reuses
    # translated code only at the same virtual address, so programs must be mapped alike each time (a quarter saved).
    *("mitigations=off", "nokaslr", "norandmaps", "cryptomgr.notests"),
    # The watchdog would distrust the TSC when the host is busy.
    *("tsc=reliable", "random.trust_cpu=on"),
)

PR_SET_PDEATHSIG = 1


class Files(NamedTuple):
    """What QEMU opens: kernel image, initramfs, and where the kernel's console goes."""

    kernel: str
    initramfs: str
    console: str


def accelerator(host_cpus: int | None = None) -> str:
    """TCG with a thread for each of the lab's CPUs where the host has more CPUs than the lab, else with one for both.

    A CPU of the lab that waits in a spin loop takes QEMU's big lock at each PAUSE, and with no host CPU to spare the
    CPU that it waits for does not get that lock: the same work took 1.5 to 2 times longer on a host of two.
    """
    count = len(os.sched_getaffinity(0)) if host_cpus is None else host_cpus
    return "tcg,thread=multi" if count > CPUS else "tcg,thread=single"


def command_line(files: Files, memory: int, qemu: str = QEMU) -> list[str]:
    """QEMU's arguments; memory in MiB. The second serial port is QEMU's standard output."""
    return [
        # q35 boots a little quicker than pc.
        *(qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35", "-accel", accelerator(), "-cpu", CPU, "-smp", str(CPUS), "-m", str(memory)),
        *("-kernel", files.kernel, "-initrd", files.initramfs, "-append", " ".join(KERNEL_ARGUMENTS)),
        *("-chardev", f"file,id=console,path={files.console}", "-serial", "chardev:console"),
        *("-chardev", "stdio,id=result,signal=off", "-serial", "chardev:result"),
        *("-virtfs", "local,path=/,mount_tag=hostroot,security_model=none,readonly=on,multidevs=remap"),
    ]


def find_qemu() -> str:
    """QEMU's path. Raises LabError with what to do."""
    path = shutil.which(QEMU)
    if path is None:
        raise LabError(f"{QEMU} is not installed: apt-get install qemu-system-x86")
    return path


def qemu_version(qemu: str) -> str:
    """Such as 7.2.22."""
    text = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=False).stdout
    words = text.split()
    return words[3] if len(words) > 3 else "of unknown version"


def memory_file(name: str, data: bytes = b"") -> int:
    """A file without a name, so that nothing stays behind whatever end the run takes."""
    descriptor = os.memfd_create(name)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    return descriptor


def contents(descriptor: int) -> bytes:
    """All of a memory file."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _die_with_parent() -> None:
    # A monitor that is killed outright runs no `finally`; the kernel ends QEMU then.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Qemu:
    """A QEMU that lives as long as the `with` block, no longer."""

    def __init__(self, qemu: str, kernel: bytes, initramfs: bytes, memory: int) -> None:
        with ExitStack() as stack:
            self._descriptors = []
            for name, data in (("kernel", kernel), ("initramfs", initramfs), ("console", b""), ("messages", b"")):
                self._descriptors.append(memory_file(name, data))
                stack.callback(os.close, self._descriptors[-1])
            self._console, self._messages = self._descriptors[2:]
            files = Files(*(f"/proc/self/fd/{descriptor}" for descriptor in self._descriptors[:3]))
            self._process = subprocess.Popen(
                command_line(files, memory, qemu),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._messages,
                pass_fds=self._descriptors[:3],
                start_new_session=True,  # a terminal's Ctrl-C is for this process, which then ends QEMU
                preexec_fn=_die_with_parent,
            )
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stack.close()

    def kill(self) -> None:
        """End it, now, if it has not ended by itself."""
        self._process.kill()
        self._process.wait()

    def read(self, feed: Callable[[bytes], bool], deadline: Callable[[], float]) -> bool:
        """Feed the second serial port's bytes until feed() says that it is enough, or QEMU ends.

        deadline() is asked anew before each wait, in terms of time.monotonic(). Returns False when it passed.
        """
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while (left := deadline() - time.monotonic()) > 0:
                if not selector.select(left):
                    continue
                data = os.read(descriptor, 1 << 16)
                if not data:
                    self._process.wait()
                    return True
                if feed(data):
                    return True
        return False

    @property
    def status(self) -> int | None:
        """QEMU's own exit status; negative for a signal, None while it runs."""
        return self._process.poll()

    @property
    def console(self) -> str:
        """What the kernel printed so far."""
        return contents(self._console).decode(errors="replace").replace("\r\n", "\n")

    @property
    def messages(self) -> str:
        """What QEMU itself printed so far."""
        return contents(self._messages).decode(errors="replace")


def keep(folder: Path, kernel: bytes, initramfs: bytes, memory: int) -> None:
    """Write what a run is made of to a folder, with a script that boots it again by hand."""
    files = Files("vmlinux", "initramfs.cpio", "console.log")
    (folder / files.kernel).write_bytes(kernel)
    (folder / files.initramfs).write_bytes(initramfs)
    script = folder / "boot.sh"
    words: Sequence[str] = command_line(files, memory)
    script.write_text(f'#!/bin/sh\ncd "$(dirname "$0")" && exec {shlex.join(words)}\n')
    script.chmod(0o755)
