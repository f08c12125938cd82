"""vmm.threads.kick: EINTR for the job that is meant, and for no other; no kick lost; nothing for Python to handle."""

import ctypes
import errno
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import pytest

from tests.unit.vmm.threads_support import LONG, Pool, checked_pool, eventually
from vmm.threads import Job, kick
from vmm.threads.kick import _SigAction

LIBC = ctypes.CDLL(None, use_errno=True)
SYS_READ, SYS_PAUSE, SYS_NANOSLEEP, SYS_CLOCK_NANOSLEEP = 0, 34, 35, 230  # <asm/unistd_64.h>


class Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


@pytest.fixture
def pool() -> Iterator[Pool]:
    with checked_pool() as made:
        yield made


def pause() -> int:
    """pause(2), for as long as it takes; its errno."""
    assert LIBC.pause() == -1
    return ctypes.get_errno()


def nanosleep(seconds: float) -> int:
    """nanosleep(2) once, without Python's retries; its errno, 0 when it slept through."""
    whole = int(seconds)
    request = Timespec(whole, int((seconds - whole) * 1e9))
    return ctypes.get_errno() if LIBC.nanosleep(ctypes.byref(request), None) else 0


def is_blocked(native_id: int | None, *numbers: int) -> bool:
    """Is the thread blocked in one of these system calls? proc_pid_syscall(5)."""
    with open(f"/proc/self/task/{native_id}/syscall", encoding="ascii") as file:
        return file.read().split()[0] in map(str, numbers)


def wait_blocked(job: Job[int], *numbers: int) -> None:
    eventually(lambda: job.native_id is not None and is_blocked(job.native_id, *numbers), f"{job} blocks")


# One kick, one EINTR


@pytest.mark.parametrize("dedicated", [False, True])
def test_a_kick_ends_a_blocking_call(pool: Pool, dedicated: bool) -> None:
    runtime = pool.runtime(1)
    for _ in range(100):
        job = runtime.spawn(pause, dedicated=dedicated)
        wait_blocked(job, SYS_PAUSE)
        assert kick.kick(job)
        assert job.join(LONG) == errno.EINTR


def test_a_kick_ends_a_call_that_sa_restart_would_restart(pool: Pool) -> None:
    reader, writer = os.pipe()
    try:

        def read() -> int:
            assert LIBC.read(reader, ctypes.create_string_buffer(1), 1) == -1
            return ctypes.get_errno()

        job = pool.runtime(1).spawn(read)
        wait_blocked(job, SYS_READ)
        kick.kick(job)
        assert job.join(LONG) == errno.EINTR
    finally:
        os.close(reader)
        os.close(writer)


def test_pythons_own_calls_go_on(pool: Pool) -> None:
    """What the module's text says of PEP 475."""
    reader, writer = os.pipe()
    try:
        job = pool.runtime(1).spawn(lambda: len(os.read(reader, 100)))
        for _ in range(10):
            wait_blocked(job, SYS_READ)
            assert kick.kick(job)
        assert not job.done()
        os.write(writer, b"seven b")
        assert job.join(LONG) == 7
    finally:
        os.close(reader)
        os.close(writer)


def test_a_kick_from_a_job(pool: Pool) -> None:
    runtime = pool.runtime(2)
    job = runtime.spawn(pause)
    wait_blocked(job, SYS_PAUSE)
    assert runtime.spawn(kick.kick, job).join(LONG)
    assert job.join(LONG) == errno.EINTR


# No other job's


def test_a_kick_of_a_job_that_does_not_run_does_nothing(pool: Pool) -> None:
    runtime = pool.runtime(1)
    first = runtime.spawn(pause)
    queued = runtime.spawn(nanosleep, 0.001)
    wait_blocked(first, SYS_PAUSE)
    assert not kick.kick(queued)
    assert kick.kick(first)
    first.join(LONG)
    assert queued.join(LONG) == 0
    assert not kick.kick(first)
    assert not kick.kick(queued)


def test_a_kick_hits_nobody_else(pool: Pool) -> None:
    runtime = pool.runtime(4)
    others = [runtime.spawn(pause) for _ in range(3)]
    for other in others:
        wait_blocked(other, SYS_PAUSE)
    for _ in range(50):
        job = runtime.spawn(pause, name="kicked")
        wait_blocked(job, SYS_PAUSE)
        kick.kick(job)
        assert job.join(LONG) == errno.EINTR
    assert not any(other.done() for other in others)
    for other in others:
        assert kick.kick(other)
        assert other.join(LONG) == errno.EINTR


def test_a_kick_never_hits_the_next_job_of_the_thread(pool: Pool) -> None:
    """Jobs end under a hail of kicks; what the same thread runs next sleeps through."""
    runtime = pool.runtime(1)
    target: list[Job[int]] = []
    stop = threading.Event()
    sent = [0]

    def hail() -> None:
        # Not without a pause: real-time signals queue up, and a thread under a flood of them never gets to the GIL.
        while not stop.wait(0.00005):
            if target:
                sent[0] += kick.kick(target[0])

    kicker = pool.runtime(1).spawn(hail)
    try:
        ids = set()
        for _ in range(150):
            target[:] = [runtime.spawn(threading.get_native_id)]
            sleeper = runtime.spawn(nanosleep, 0.0002)
            ids.add(target[0].join(LONG))
            assert sleeper.join(LONG) == 0, "interrupted by a kick of the job before"
            assert sleeper.native_id in ids
        assert len(ids) == 1
        target[:] = [runtime.spawn(pause)]
        assert target[0].join(LONG) == errno.EINTR, "the kicker does kick"
    finally:
        stop.set()
        kicker.join(LONG)
    assert sent[0]


# The signal


def test_python_sees_nothing(pool: Pool) -> None:
    """No Python handler, no byte for the main thread's wake-up descriptor."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    old = signal.set_wakeup_fd(writer)
    try:
        job = pool.runtime(1).spawn(pause)
        wait_blocked(job, SYS_PAUSE)
        kick.kick(job)
        job.join(LONG)
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
        assert signal.getsignal(kick.install()) in (signal.SIG_DFL, None)
    finally:
        signal.set_wakeup_fd(old)
        os.close(reader)
        os.close(writer)


def test_layout_of_sigaction(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: cannot look at <signal.h>")
    fields = [name for name, *_ in _SigAction._fields_]
    offsets = "".join(f'printf("%zu ", offsetof(struct sigaction, {name}));' for name in fields)
    source = tmp_path / "layout.c"
    source.write_text(
        "#define _GNU_SOURCE\n#include <signal.h>\n#include <stddef.h>\n#include <stdio.h>\n"
        f'int main(void) {{ {offsets} printf("%zu", sizeof(struct sigaction)); }}'
    )
    subprocess.run([compiler, "-o", tmp_path / "layout", source], check=True, timeout=LONG)
    seen = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True, timeout=LONG).stdout
    assert list(map(int, seen.split())) == [
        *(getattr(_SigAction, name).offset for name in fields),
        ctypes.sizeof(_SigAction),
    ]


PROGRAM = """
import ctypes, errno, os, resource, signal, sys, threading
from vmm.threads import Runtime, kick
LIBC = ctypes.CDLL(None, use_errno=True)

def blocked(job, number):
    while job.native_id is None or not open(f"/proc/self/task/{job.native_id}/syscall").read().startswith(number):
        os.sched_yield()

def kick_one():
    with Runtime(1) as runtime:
        job = runtime.spawn(lambda: (LIBC.pause(), ctypes.get_errno())[1], observed=True)
        blocked(job, "34")
        kick.kick(job)
        assert job.join(30) == errno.EINTR
"""


def run(program: str) -> str:
    """Run it with `PROGRAM` before it in an interpreter of its own; what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program], capture_output=True, text=True, timeout=LONG, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_first_use_off_the_main_thread() -> None:
    assert run("t = threading.Thread(target=kick_one); t.start(); t.join(); print(kick._signal)").strip().isdigit()


def test_signals_that_others_have_taken_are_left_alone() -> None:
    first = int(run("print(kick.install())"))
    program = f"""
hits = []
signal.signal({first}, lambda *_: hits.append(1))
signal.signal({first + 1}, signal.SIG_IGN)
kick_one()
signal.raise_signal({first})
print(kick.install(), len(hits))
"""
    assert run(program).split() == [str(first + 2), "1"]


def test_all_signals_taken() -> None:
    program = """
for number in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):
    signal.signal(number, signal.SIG_IGN)
try:
    Runtime(1)
except RuntimeError as error:
    print(error)
"""
    assert "no real-time signal is free" in run(program)


def test_a_full_signal_queue_is_an_error_unless_a_kick_is_on_its_way() -> None:
    """RLIMIT_SIGPENDING 0 refuses a signal; with a kick pending (the job blocks the signal) one more merges."""
    program = """
def set_limit(number):
    resource.setrlimit(resource.RLIMIT_SIGPENDING, (number, hard))

def job():
    signal.pthread_sigmask(signal.SIG_BLOCK, {kick.install()})
    ready.set()
    go.wait()

soft, hard = resource.getrlimit(resource.RLIMIT_SIGPENDING)
ready, go = threading.Event(), threading.Event()
with Runtime(2) as runtime:
    running = runtime.spawn(job)
    ready.wait()
    set_limit(0)
    try:
        kick.kick(running)
    except OSError as error:
        print(errno.errorcode[error.errno])
    set_limit(soft)
    print(kick.kick(running))
    set_limit(0)
    print(kick.kick(running))
    set_limit(soft)
    go.set()
kick_one()
"""
    assert run(program).split() == ["EAGAIN", "True", "True"]


# The main client


@pytest.mark.kvm
def test_kicks_of_a_spinning_vcpu_are_not_lost(pool: Pool) -> None:
    """`jmp $` in real mode; immediate_exit, then kick, as kick.py says. Each must bring the vCPU out of KVM_RUN."""
    kvm_run, create_vm, create_vcpu, memory_region = 0xAE80, 0xAE01, 0xAE41, 0x4020AE46
    get_mmap_size, get_sregs, set_sregs = 0xAE04, 0x8138AE83, 0x4138AE84
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = ioctl(kvm, create_vm, 0)
    memory = mmap.mmap(-1, 0x2000)
    memory[:2] = b"\xeb\xfe"
    anchor = ctypes.c_char.from_buffer(memory)
    region = (ctypes.c_uint64 * 4)(0, 0, 0x2000, ctypes.addressof(anchor))
    ioctl(vm, memory_region, bytes(region))
    vcpu = ioctl(vm, create_vcpu, 0)
    shared = mmap.mmap(vcpu, ioctl(kvm, get_mmap_size, 0))
    sregs = bytearray(0x138)
    ioctl(vcpu, get_sregs, sregs)
    sregs[0:8] = bytes(8)  # cs.base
    sregs[12:14] = bytes(2)  # cs.selector
    ioctl(vcpu, set_sregs, sregs)
    ioctl(vcpu, 0x4090AE82, bytes(16 * 8) + bytes(8) + (2).to_bytes(8, "little"))  # KVM_SET_REGS: rip 0, rflags 2
    requested, answered, stop = [0], [0], [False]

    def loop() -> None:
        while not stop[0]:
            with pytest.raises(InterruptedError):
                ioctl(vcpu, kvm_run, 0)
            shared[1] = 0  # immediate_exit: this before a look at what is wanted; the other side in reverse
            answered[0] = requested[0]

    try:
        job = pool.runtime(1).spawn(loop, name="vcpu-0", dedicated=True)
        eventually(lambda: job.native_id is not None, "the start of the vCPU")
        for request in range(1, 501):
            stop[0] = request == 500
            requested[0] = request
            shared[1] = 1
            assert kick.kick(job)
            deadline = time.monotonic() + LONG
            while answered[0] < request:
                assert time.monotonic() < deadline, f"kick {request} was lost"
                time.sleep(0)
        job.join(LONG)
    finally:
        shared.close()
        for fd in (vcpu, vm, kvm):
            os.close(fd)
        del anchor
        memory.close()
