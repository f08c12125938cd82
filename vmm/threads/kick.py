"""Kick: make the system call in which a job's thread is blocked return EINTR.

A vCPU thread sits in ``ioctl(KVM_RUN)`` for as long as the guest runs. To make it look at something else (a guest
signal, a stop, its time slice) it is sent a signal, which KVM answers with ``EINTR``.

**The handler must not be a Python one.** CPython's C handler notes the signal, writes to the wake-up descriptor and
lets the *main* thread run the Python function: each kick of a vCPU would wake the asyncio loop, and the main thread
would have to take the GIL from the vCPU threads, to do nothing. Also ``signal.signal`` works in the main thread only,
and a machine may be started from another one. So the action is installed with ``sigaction`` through ctypes and its
handler is a function of libc that has no effect and is safe in a signal handler: ``abs``, which is called with the
signal's number. ``SIG_IGN`` would not do: an ignored signal interrupts nothing. ``SA_RESTART`` is not set, else
``read`` and its like would go on sleeping.

**What a kick does not do.** It interrupts the system call that the thread *is in*. A thread that is about to enter
one takes the signal just before, and then blocks. So set what the thread checks first and kick second;
``kvm_run.immediate_exit`` exists for this: KVM reads it on entry and heeds every signal from then on, so that no kick
is lost. And since CPython's own blocking calls (``os.read``, ``Lock.acquire``, ``time.sleep``) go on after EINTR when
no Python handler raised (PEP 475), a kick does not end them; ``fcntl.ioctl`` raises ``InterruptedError``, and a
ctypes call returns what the C function returned.

**No kick goes astray.** A kick holds the job's lock while it checks that the job still runs and sends the signal; a
job takes the same lock to end. So the thread is alive and the job's own. A kick sent in the last moment is delivered
before the next job of that thread begins: a thread's pending signals are delivered when it next leaves the kernel,
and a worker makes a system call (prctl, for the thread's name) between any two jobs.

Why a real-time signal: none of them has a meaning of its own, so any number of libraries in a process can each have
one, and the first of ours whose action is still the default is taken. The price is that they queue instead of
merging: a client that may kick often remembers that it has kicked and waits for the answer before it kicks again.
"""

import ctypes
import errno
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmm.threads.job import Job

# The lowest few are the ones that other programs of this kind take without looking (crosvm, Firecracker, kvmtool).
_FIRST_OFFSET = 4


class _SigAction(ctypes.Structure):
    """``struct sigaction`` of the C library on x86-64 (glibc and musl agree): 152 bytes."""

    _fields_ = (
        ("sa_handler", ctypes.c_void_p),
        ("sa_mask", ctypes.c_ulong * 16),
        ("sa_flags", ctypes.c_int),
        ("sa_restorer", ctypes.c_void_p),
    )


_install_lock = threading.Lock()
_signal: int | None = None


def _sigaction(libc: ctypes.CDLL, number: int, new: _SigAction | None) -> _SigAction:
    """sigaction(2): set `new` if given, return the action from before."""
    old = _SigAction()
    if libc.sigaction(number, None if new is None else ctypes.byref(new), ctypes.byref(old)):
        code = ctypes.get_errno()
        raise OSError(code, f"sigaction of signal {number}")
    return old


def install() -> int:
    """Install the kick signal's action, once a process, from whatever thread; return the signal's number.

    Raises RuntimeError when other code has taken every real-time signal that we would use.
    """
    global _signal
    with _install_lock:
        if _signal is not None:
            return _signal
        libc = ctypes.CDLL(None, use_errno=True)
        action = _SigAction(sa_handler=ctypes.cast(libc.abs, ctypes.c_void_p).value)
        for number in range(signal.SIGRTMIN + _FIRST_OFFSET, signal.SIGRTMAX + 1):
            if _sigaction(libc, number, None).sa_handler is None:  # SIG_DFL is a null pointer
                _sigaction(libc, number, action)
                _signal = number
                return number
    raise RuntimeError("no real-time signal is free: each has a handler already")


def unblock() -> None:
    """Unblock the kick signal in the calling thread: a new thread inherits the mask of the thread that started it."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {install()})


def kick(job: "Job[Any]") -> bool:
    """Interrupt the system call in which `job`'s thread is blocked, with EINTR. From any thread, at any time.

    Returns whether the signal was sent: False when the job has not started or has ended; then nothing happens.
    Raises OSError EAGAIN when the system cannot queue one more signal (``RLIMIT_SIGPENDING``, counted per user) and no
    earlier kick is still on its way to the thread; if one is, that one does for both. pthread_kill(3), sigqueue(3).
    """
    with job._lock:
        worker = job._worker
        if worker is None:
            return False
        assert worker.ident is not None
        assert worker.native_id is not None
        number = install()
        try:
            signal.pthread_kill(worker.ident, number)
        except OSError as error:
            if error.errno != errno.EAGAIN or not _is_pending(worker.native_id, number):
                raise
        return True


def _is_pending(native_id: int, number: int) -> bool:
    """Is the signal pending for this thread of the process? ``SigPnd`` in proc_pid_status(5)."""
    with open(f"/proc/self/task/{native_id}/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("SigPnd:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
