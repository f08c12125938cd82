"""The mirrored constants and layouts against the kernel's own headers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from devices.signals import abi, fpstate, frame
from devices.signals.info import FAULT, HEADER, QUEUED, SENDER, SigInfo
from tests import harness
from vmm import cpu

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    check = harness.compile_c(HERE / "abi_check.c", tmp_path_factory.mktemp("abi") / "check")
    lines = subprocess.run([check], capture_output=True, text=True, check=True).stdout.splitlines()
    return {name: int(value) for name, value in map(str.split, lines)}


def test_constants(header: dict[str, int]) -> None:
    names = [name for name in header if name.isupper() and not name.startswith("NSIG") and "." not in name]
    assert len(names) > 70
    assert {name: getattr(abi, name) for name in names} == {name: header[name] for name in names}
    for signo, constant in ((abi.SIGILL, "NSIGILL"), (abi.SIGFPE, "NSIGFPE"), (abi.SIGBUS, "NSIGBUS")):
        assert abi.CODES_OF[signo] == header[constant]
    assert abi.CODES_OF[abi.SIGCHLD] == header["NSIGCHLD"]
    assert abi.CODES_OF[abi.SIGSYS] == header["NSIGSYS"]
    assert header["NSIGPOLL"] == abi.NSIGPOLL


def test_signal_names(header: dict[str, int]) -> None:
    assert {name: abi.SIGNALS[name] for name in abi.SIGNAMES} == {name: header[name] for name in abi.SIGNAMES}


def test_sizes(header: dict[str, int]) -> None:
    assert header["siginfo"] == abi.SIGINFO_SIZE
    assert abi.SIGACTION.size == header["sigaction"]
    assert abi.STACK.size == header["stack"]
    assert abi.SIGCONTEXT.size == header["sigcontext"]
    assert abi.FPX_SW_BYTES.size == header["sw_bytes"]
    assert abi.UCONTEXT.size == header["uc_sigmask"] + 8
    assert 8 + abi.UCONTEXT.size + abi.SIGINFO_SIZE == abi.FRAME_SIZE
    assert len(SigInfo(1, 0).pack()) == abi.SIGINFO_SIZE


def test_sigcontext(header: dict[str, int]) -> None:
    fields = [
        *(cpu.REGISTERS[n] for n in frame.ORDER),
        "cs",
        "gs",
        "fs",
        "ss",
        "err",
        "trapno",
        "oldmask",
        "cr2",
        "fpstate",
    ]
    values = range(1, len(fields) + 1)
    packed = abi.SIGCONTEXT.pack(*values)
    for name, value in zip(fields, values, strict=True):
        offset = header.get(f"sigcontext.{name.replace('rflags', 'eflags')}")
        if offset is not None:
            assert packed[offset] == value, name
    assert sum(name.startswith("sigcontext.") for name in header) == 18


def test_struct_sigaction(header: dict[str, int]) -> None:
    packed = abi.SIGACTION.pack(1, 2, 3, 4)
    assert [packed[header[name]] for name in ("sa_handler", "sa_flags", "sa_restorer", "sa_mask")] == [1, 2, 3, 4]


def test_fpstate(header: dict[str, int]) -> None:
    assert header["sw_reserved"] == abi.SW_RESERVED
    assert header["xstate_hdr"] == fpstate.XSTATE_BV
    assert header["ymmh"] == fpstate.HEADER_END


def test_siginfo(header: dict[str, int]) -> None:
    assert HEADER.size + SENDER.size == header["si_uid"] + 4
    assert HEADER.size + QUEUED.size == header["si_value"] + 8
    info = SigInfo(1, 2, QUEUED.pack(3, 4, 5), 6).pack()
    assert [info[n] for n in (0, 4, 8, header["si_pid"], header["si_uid"], header["si_value"])] == [1, 6, 2, 3, 4, 5]
    assert SigInfo(1, 2, FAULT.pack(7)).pack()[header["si_addr"]] == 7
