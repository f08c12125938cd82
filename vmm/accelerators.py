"""Choosing what runs the guest: KVM where it works, else the emulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.cpu import Accelerator
    from vmm.memory.frames import Frames
    from vmm.memory.pagetable import KernelHalf
    from vmm.memory.physical import GuestRam

NAMES = ("kvm", "emulator")


class AcceleratorUnavailable(Exception):
    """The accelerator that was asked for does not work here; one line says why."""


def create(name: str, ram: GuestRam, frames: Frames, half: KernelHalf) -> Accelerator:
    """The accelerator `name`: "kvm", "emulator", or "auto" for the first of them that works."""
    reasons = []
    for candidate in NAMES if name == "auto" else (name,):
        try:
            return _create_one(candidate, ram, frames, half)
        except AcceleratorUnavailable as error:
            reasons.append(str(error))
    raise AcceleratorUnavailable("; ".join(reasons))


def _create_one(name: str, ram: GuestRam, frames: Frames, half: KernelHalf) -> Accelerator:
    if name == "kvm":
        from vmm.kvm import KvmAccelerator, KvmUnavailable

        try:
            return KvmAccelerator(ram, frames, half)
        except KvmUnavailable as error:
            raise AcceleratorUnavailable(str(error)) from error
    from vmm.emulator import EmulatorAccelerator, EmulatorUnavailable

    try:
        return EmulatorAccelerator(ram, frames, half)
    except EmulatorUnavailable as error:
        raise AcceleratorUnavailable(str(error)) from error
