"""A vCPU on a dedicated host thread for each guest task; both are kept for the next task when one ends.

The CPU stays with the thread that made it: KVM is quickest when a vCPU is always run by the same thread, and a pooled
pair saves the 0.3 ms of making both. The pool's lock is a leaf: nothing is called while it is held.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from vmm.threads import Runtime, set_affinity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.cpu import Accelerator, Cpu
    from vmm.threads import Job

END_TIMEOUT = 5.0
"""Seconds that close() waits for vCPU threads."""


class _Vcpu:
    """One pair of CPU and thread, with a place for the next body to run."""

    def __init__(self) -> None:
        self.body: Callable[[Cpu], None] | None = None
        self.go = threading.Lock()
        self.go.acquire()
        self.ready = threading.Lock()
        self.ready.acquire()
        self.error: OSError | None = None
        self.job: Job[None] | None = None


class VcpuPool:
    """The vCPUs of a machine. `pin` gives the host CPU of each vCPU by turns."""

    def __init__(self, accelerator: Accelerator, pin: Sequence[int] = ()) -> None:
        self._accelerator = accelerator
        self._pin = pin
        self._runtime = Runtime(limit=1, name="pyvmm")
        self._lock = threading.Lock()
        self._idle: list[_Vcpu] = []
        self._all: set[_Vcpu] = set()
        self._closed = False

    def start(self, body: Callable[[Cpu], None]) -> None:
        """Run `body` with a reset CPU on that CPU's thread. OSError: the host gives no further thread or vCPU."""
        with self._lock:
            vcpu = self._idle.pop() if self._idle else None
        if vcpu is None:
            vcpu = self._new()
        vcpu.body = body
        vcpu.go.release()

    def _new(self) -> _Vcpu:
        vcpu = _Vcpu()
        with self._lock:
            if self._closed:
                raise OSError("the machine is closed")
            if len(self._all) >= self._accelerator.max_cpus:
                raise OSError(f"{self._accelerator.name} has no more than {self._accelerator.max_cpus} vCPUs")
            self._all.add(vcpu)
        try:
            vcpu.job = self._runtime.spawn(self._run, vcpu, name="vcpu", dedicated=True)
            vcpu.ready.acquire()
        except RuntimeError as error:  # can't start new thread
            self._forget(vcpu)
            raise OSError(str(error)) from error
        if vcpu.error:
            self._forget(vcpu)
            raise vcpu.error
        return vcpu

    def _forget(self, vcpu: _Vcpu) -> None:
        with self._lock:
            self._all.discard(vcpu)

    def _run(self, vcpu: _Vcpu) -> None:
        try:
            cpu = self._accelerator.create_cpu()
        except OSError as error:
            vcpu.error = error
            return
        except BaseException as error:
            vcpu.error = OSError(f"the vCPU could not be made: {error!r}")
            raise
        finally:
            vcpu.ready.release()
        try:
            self._serve(vcpu, cpu)
        finally:
            cpu.close()

    def _serve(self, vcpu: _Vcpu, cpu: Cpu) -> None:
        from vmm.threads.worker import set_os_name

        set_os_name(f"vcpu-{cpu.index}")
        if self._pin:
            set_affinity([self._pin[cpu.index % len(self._pin)]])
        while True:
            vcpu.go.acquire()
            body, vcpu.body = vcpu.body, None
            if body is None:
                return
            body(cpu)
            cpu.reset()
            with self._lock:
                if self._closed:
                    return
                self._idle.append(vcpu)

    def close(self) -> list[Job[None]]:
        """End the idle threads and wait for all; the jobs that have not ended within END_TIMEOUT."""
        import time

        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            vcpus = list(self._all)
        for vcpu in idle:
            vcpu.go.release()
        deadline = time.monotonic() + END_TIMEOUT
        stuck = []
        for vcpu in vcpus:
            assert vcpu.job is not None
            try:
                vcpu.job.join(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                stuck.append(vcpu.job)
        if not stuck:
            self._runtime.close()
        return stuck
