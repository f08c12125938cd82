"""Fixtures: a model machine and an address space on it, of which every frame must come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.devices.memory.memory_model import Machine, Space

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = {
    "kvm": {"populates": True, "discard_revokes": True},
    "hardware": {"populates": True, "discard_revokes": True, "large_pages": True},
    "emulator": {},
}
"""Accelerators as they differ for memory."""


@pytest.fixture(params=KINDS)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    machine = Machine(32, **KINDS[request.param])
    yield machine
    machine.model.close()


@pytest.fixture
def large_machine() -> Iterator[Machine]:
    """A machine that uses 2 MiB pages."""
    machine = Machine(32, **KINDS["hardware"])
    yield machine
    machine.model.close()


@pytest.fixture
def space(machine: Machine) -> Iterator[Space]:
    with machine.checked_space() as space:
        yield space
