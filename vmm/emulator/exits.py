"""From what made the engine stop to what vmm/cpu.py calls it.

Two things cannot be told at once, and are found out by going on one instruction at a time (`EmulatorCpu.step`, with TF,
which the program does not see):

* a fault at fetching code: Unicorn translates a run of instructions before it carries out the first of them, and
  reports a fault at the next page with the RIP of the run's beginning;
* an AVX instruction in a run (decode.py): what is before it has to be done before it faults.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from vmm.cpu import BP, DB, GP, OF, PF, PF_FETCH, RBP, RSP, SS, SYSCALL, UD, Exit, InternalError
from vmm.emulator import abi, decode, ring3
from vmm.emulator.hooks import ALL_REGISTERS

if TYPE_CHECKING:
    from vmm.emulator.calibrate import Offsets
    from vmm.emulator.cpu import EmulatorCpu
    from vmm.emulator.engine import Engine

_U64 = (1 << 64) - 1


class Exits:
    """Reads, with the gate held, what an engine's run has left."""

    __slots__ = ("_engine", "_error_code", "_hooks", "_library", "_previous", "_scratch", "_software")

    def __init__(self, engine: Engine, offsets: Offsets) -> None:
        self._engine = engine
        self._hooks = engine.hooks
        self._library = engine.unicorn.library
        self._scratch = engine.unicorn.new_context()
        base = self._scratch.value or 0
        self._error_code, self._software, self._previous = (
            ctypes.c_int32.from_address(base + offset) for offset in (offsets.error, offsets.software, offsets.previous)
        )

    def close(self) -> None:
        self._engine.unicorn.free_context(self._scratch)

    def outcome(self, cpu: EmulatorCpu, code: int) -> Exit | None:
        """Why the run of `cpu` ended, `uc_emu_start` having returned `code`; None if it was only stopped."""
        hooks = self._hooks
        called, hooks.called = hooks.called, False
        if called and not code:
            cpu.after_call(self._engine.unicorn.read(abi.REG_RIP))
            return SYSCALL
        refused, hooks.refused = hooks.refused, False
        if refused:
            cpu.overwrite()
        else:
            self._library.reg_read_batch(self._engine.unicorn.handle, ALL_REGISTERS, cpu.all_values, 19)
            cpu.after_exit()
        vector = hooks.take_vector()
        foreign, hooks.foreign = hooks.foreign, -1
        error, hooks.error = hooks.error, None
        if error is not None:
            raise error
        if refused:
            if vector >= 0:
                self._clear_previous()
            return cpu.exception(GP, 0)
        if foreign >= 0:
            return self._foreign(cpu, foreign)
        if code == abi.ERR_INSN_INVALID:
            vector = UD
        elif code:
            return InternalError(f"the emulator stopped: {self._library.strerror(code).decode()}", cpu.dump())
        return None if vector < 0 else self._exception(cpu, vector)

    def _exception(self, cpu: EmulatorCpu, vector: int) -> Exit | None:
        self._clear_previous()
        error = self._error_code.value
        if vector == PF and not self._software.value:
            return self._page_fault(cpu, error)
        if self._software.value and vector not in (BP, OF):
            # There is no gate that ring 3 may use. Unicorn has gone past the instruction, but for INT 6.
            cpu.move_rip(0 if vector == UD else -2)
            return cpu.exception(GP, vector * 8 + 2)
        if vector == UD:
            return self._undefined(cpu)
        if vector == DB and cpu.stepping:
            cpu.stepped()
            return None
        if vector == GP and not error and self._is_stack_fault(cpu):
            return cpu.exception(SS, 0)
        return cpu.exception(vector, error)

    def _clear_previous(self) -> None:
        """Get what Unicorn keeps of the last exception; see that the next one is not taken for a double fault."""
        unicorn = self._engine.unicorn
        unicorn.save_context(self._scratch)
        if self._previous.value != -1:
            self._previous.value = -1
            unicorn.restore_context(self._scratch)

    def _page_fault(self, cpu: EmulatorCpu, error: int) -> Exit | None:
        address = cpu.fault_address
        if error & PF_FETCH and address not in (cpu.rip, ring3.GATE) and not cpu.stepping:
            cpu.step(address)
            return None
        return cpu.page_fault(error)

    def _foreign(self, cpu: EmulatorCpu, address: int) -> Exit | None:
        physical = self._engine.tables.translate(cpu.root, cpu.rip)
        if physical < 0:
            return None  # the page tables were changed meanwhile
        self._engine.drop_code(physical)
        if address == cpu.rip:
            return cpu.exception(UD, 0)
        cpu.step(address + 1)
        return None

    def _is_stack_fault(self, cpu: EmulatorCpu) -> bool:
        """Was it an access by RSP or RBP to an address that is not canonical?"""
        base = decode.stack_base(self._engine.tables.read(cpu.root, cpu.rip, 15))
        if base < 0:
            return False
        address = cpu.regs[RSP] if base == 4 else cpu.regs[RBP]
        return any(at >> 47 not in (0, 0x1FFFF) for at in (address, address - 8 & _U64))

    def _undefined(self, cpu: EmulatorCpu) -> Exit:
        """#UD, and two instructions that Unicorn lacks and a CPU has."""
        code = self._engine.tables.read(cpu.root, cpu.rip, 2)
        if code[:1] == b"\xf1":  # INT1
            cpu.move_rip(1)
            return cpu.exception(DB, 0)
        if code == b"\x0f\x33":  # RDPMC, with CR4.PCE clear
            return cpu.exception(GP, 0)
        return cpu.exception(UD, 0)
