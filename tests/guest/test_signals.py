"""Signals in the guest, where comparing whole programs on all accelerators (test_same.py) is not enough."""

from __future__ import annotations

import functools

import pytest

from tests.harness import boot, native, program, shell_status

DEATHS = (
    "null_pointer", "abort", "sigterm", "sigkill", "sigquit", "sigusr1", "real_time_signal", "sigsys", "blocked_fault",
    "ignored_fault", "ignored_division", "fault_in_the_handler", "signal_when_unblocked", "second_signal", "full_stack",
    "full_alternate_stack", "no_stack", "missing_restorer", "handler_nowhere", "handler_not_canonical",
    "return_without_a_frame", "return_from_the_stack", "thread_fault", "signal_from_a_thread", "icebp",
)  # fmt: skip


@functools.cache
def host_status(case: str) -> int:
    return shell_status(native([program("signals_death"), case]).returncode)


@pytest.mark.parametrize("case", DEATHS)
def test_death_by_signal(case: str, accelerator: str) -> None:
    expected = host_status(case)
    assert expected > 128
    result = boot(accelerator, [program("signals_death"), case])
    assert (result.returncode, result.stdout) == (expected, b"")


def test_every_death_is_tried() -> None:
    assert native([program("signals_death")]).stdout.decode().split() == list(DEATHS)


@pytest.mark.kvm
def test_what_only_a_real_cpu_raises() -> None:
    argv = [program("signals_hardware")]
    result = boot("kvm", argv)
    assert (result.returncode, result.stdout) == (0, native(argv).stdout)
    assert b"nothing happened" in result.stdout
