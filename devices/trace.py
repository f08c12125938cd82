"""--trace: every system call, signal and end of a task, in strace's own line format.

One line a call, written when the call has ended (a call that never returns ends in `= ?`); lines of a process with
several threads begin with `[pid N] `. Behind a failed call its reason, where the device gave one.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING

from devices.args import Call
from devices.errors import Interrupted, LeaveGuest, SysError, TaskExit
from devices.table import TABLE

if TYPE_CHECKING:
    from typing import TextIO

    from devices.bus import Declaration, Handler
    from devices.task.task import Task

RESTART_NAMES = {512: "ERESTARTSYS", 513: "ERESTARTNOINTR", 514: "ERESTARTNOHAND", 516: "ERESTART_RESTARTBLOCK"}
RESTART_TEXTS = {
    512: "To be restarted if SA_RESTART is set",
    513: "To be restarted",
    514: "To be restarted if no handler",
    516: "Interrupted by signal",
}
ADDRESS_RESULTS = frozenset(("mmap", "brk", "mremap"))
NEVER_RETURN = frozenset(("exit", "exit_group"))


class Tracer:
    """Writes the trace of a machine to `out`."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self._several = False
        self._failed = False

    def tracing(self, declaration: Declaration, call: Handler) -> Handler:
        """`call`, with a line written for each of its calls."""
        from devices.bus import ARGUMENT_REGISTERS

        name = declaration.name
        parameters = list(zip(declaration.parameters, ARGUMENT_REGISTERS, strict=False))

        def traced(task: Task, registers: memoryview) -> int:
            record = Call({parameter: registers[r] for (parameter, _), r in parameters})
            shown = {
                parameter: "" if arg.late else arg.show(task, registers[r], record)
                for (parameter, arg), r in parameters
            }

            def line(tail: str) -> None:
                for (parameter, arg), _ in parameters:
                    if arg.late:
                        shown[parameter] = arg.show(task, record.values[parameter], record)
                text = f"{name}({', '.join(shown.values())})"
                self._line(task, f"{text:<39} = {tail}")

            if name in NEVER_RETURN:
                line("?")
                return call(task, registers)
            try:
                record.result = result = call(task, registers)
            except SysError as error:
                record.result = -error.errno
                line(failure(error.errno, error.reason))
                raise
            except Interrupted as stop:
                record.result = -stop.restart
                line(f"? {RESTART_NAMES.get(stop.restart, stop.restart)} ({RESTART_TEXTS.get(stop.restart, '')})")
                raise
            except LeaveGuest:
                raise
            except TaskExit:
                line("?")
                raise
            if -4096 < result < 0:
                line(failure(-result))
            else:
                line(hex(result) if name in ADDRESS_RESULTS else str(result))
            return result

        return traced

    def unknown(self, task: Task, number: int, values: list[int]) -> None:
        """A call that pyvmm does not serve."""
        entry = TABLE.get(number)
        name = entry.name if entry else f"syscall_{number:#x}"
        text = f"{name}({', '.join(hex(v) for v in values)})"
        self._line(task, f"{text:<39} = {failure(errno.ENOSYS)}")

    def signal(self, task: Task, signo: int, code: str, detail: str = "") -> None:
        """A signal is acted upon: `code` is the si_code's name, `detail` further fields (`si_addr=0x10`)."""
        fields = f"si_signo={signal_name(signo)}, si_code={code}" + (f", {detail}" if detail else "")
        self._line(task, f"--- {signal_name(signo)} {{{fields}}} ---")

    def task_gone(self, task: Task) -> None:
        """The end of a task: `+++ exited with N +++` or `+++ killed by SIGX +++`."""
        status = task.process.status if task.process.exiting else task.exit_status
        signo = status & 0x7F
        how = f"killed by {signal_name(signo)}" if signo else f"exited with {status >> 8 & 0xFF}"
        self._line(task, f"+++ {how} +++")

    def _line(self, task: Task, text: str) -> None:
        if self._failed:
            return
        self._several = self._several or len(task.kernel.tasks) > 1
        try:
            self.out.write(f"[pid {task.tid:5}] {text}\n" if self._several else f"{text}\n")
        except OSError as error:  # whoever read it has enough, or the disk is full: the program goes on
            self._failed = True
            task.kernel.notices.append(f"the trace ends here: {error.strerror}")


def failure(number: int, reason: str = "") -> str:
    name = errno.errorcode.get(number, str(number))
    note = f" /* {reason} */" if reason else ""
    return f"-1 {name} ({os.strerror(number)}){note}"


def signal_name(signo: int) -> str:
    """SIGINT, ... SIGRT_1, as strace names them."""
    if signo >= 32:
        return f"SIGRT_{signo - 32}"
    return signal.Signals(signo).name if signo in signal.Signals.__members__.values() else f"SIG_{signo}"
