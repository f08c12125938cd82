"""Signals and the structures of their calls, as strace prints them."""

from __future__ import annotations

import pytest

from devices.args import Call, arg_of
from devices.signals import abi
from devices.signals.abi import SIGACTION, SIGBUS, SIGCHLD, SIGFPE, SIGRTMIN, SIGSEGV, SIGTRAP, SIGUSR1, show_set
from devices.signals.info import SigInfo
from devices.signals.show import describe
from tests.unit.devices.signals.support import DATA, U64, World, signals

SENT = bytes.fromhex("00000000 07000000 08000000 05000000 00000000")


@pytest.mark.parametrize(
    ("info", "shown"),
    [
        (SigInfo.kernel(SIGSEGV), ("SI_KERNEL", "")),
        (SigInfo.fault(SIGSEGV, 1, 0x10), ("SEGV_MAPERR", "si_addr=0x10")),
        (SigInfo.fault(SIGBUS, 2, 0), ("BUS_ADRERR", "si_addr=NULL")),
        (SigInfo.fault(SIGFPE, 1, 0x400000), ("FPE_INTDIV", "si_addr=0x400000")),
        (SigInfo.fault(SIGTRAP, 99, 1), ("0x63", "si_addr=0x1")),
        (SigInfo(SIGUSR1, 0, SENT), ("SI_USER", "si_pid=7, si_uid=8")),
        (SigInfo(SIGUSR1, -6, SENT), ("SI_TKILL", "si_pid=7, si_uid=8")),
        (SigInfo(SIGRTMIN, -1, SENT), ("SI_QUEUE", "si_pid=7, si_uid=8, si_value={int=5, ptr=0x5}")),
        (SigInfo(SIGRTMIN, -2, SENT), ("SI_TIMER", "si_timerid=0x7, si_overrun=8, si_value={int=5, ptr=0x5}")),
        (SigInfo(SIGUSR1, -100), ("0xffffff9c", "si_pid=0, si_uid=0, si_value={int=0, ptr=NULL}")),
    ],
)
def test_siginfo(info: SigInfo, shown: tuple[str, str]) -> None:
    assert describe(info) == shown


@pytest.mark.parametrize(
    ("mask", "shown"),
    [
        (0, "[]"),
        (signals(1, 2, 17), "[HUP INT CHLD]"),
        (signals(32, 64), "[RT_0 RT_32]"),
        (U64, "~[]"),
        (U64 & ~signals(9, 19), "~[KILL STOP]"),
    ],
)
def test_signal_sets(mask: int, shown: str) -> None:
    assert show_set(mask) == shown


def test_structures() -> None:
    task = World().task()
    task.memory.write(DATA, SIGACTION.pack(0x1000, 0x1400_0004, 0x2000, signals(SIGCHLD)))
    action, old = arg_of(abi.SigactionPtr), arg_of(abi.SigactionOut)
    text = "{sa_handler=0x1000, sa_mask=[CHLD], sa_flags=SA_SIGINFO|SA_RESTORER|SA_RESTART, sa_restorer=0x2000}"
    assert action.show(task, DATA, Call({})) == text
    assert action.show(task, 0, Call({})) == "NULL"
    assert action.show(task, 0x10, Call({})) == "0x10"
    assert old.late
    failed = Call({})
    failed.result = -22
    assert old.show(task, DATA, failed) == hex(DATA)
    task.memory.write(DATA, SIGACTION.pack(1, 0, 0, 0))
    assert action.show(task, DATA, Call({})).startswith("{sa_handler=SIG_IGN, sa_mask=[], sa_flags=0,")
    task.memory.write_u64(DATA, signals(SIGUSR1))
    assert arg_of(abi.SigsetPtr).show(task, DATA, Call({})) == "[USR1]"
    assert arg_of(abi.SigsetOut).late
    assert arg_of(abi.Signal).show(task, 34, Call({})) == "SIGRT_2"
    assert arg_of(abi.SigHow).show(task, 0, Call({})) == "SIG_BLOCK"
