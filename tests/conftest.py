"""Fixtures of all tests; the functions behind them are in tests/harness.py."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests import harness

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# The machine may be busy: a slow example is no failure. CI draws the same examples every time.
settings.register_profile("pyvmm", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("pyvmm")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a KVM where there is none."""
    if item.get_closest_marker("kvm") and (reason := harness.kvm_missing()):
        pytest.skip(reason)


@pytest.fixture(params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in harness.ACCELERATORS])
def accelerator(request: pytest.FixtureRequest) -> str:
    """Each accelerator in turn, as --accel names it; kvm is skipped where there is none."""
    return str(request.param)


@pytest.fixture(scope="session")
def program() -> Callable[[str], Path]:
    """program(name): path of a built guest program."""
    return harness.program
