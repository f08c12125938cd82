"""What Unicorn calls while guest code runs, and what it leaves behind for the engine to find when it has stopped.

The callbacks run on the thread of the CPU whose code runs, with the engine's gate held (a system call that is served in
place lets go of it meanwhile). An exception must not leave one, for ctypes would print and lose it: it is kept.
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, Any

from vmm.emulator import abi, decode, ring3
from vmm.layout import TASK_SIZE

if TYPE_CHECKING:
    from vmm.emulator.engine import Engine

CALL_REGISTERS = (ctypes.c_int * 7)(
    abi.REG_RAX, abi.REG_RDI, abi.REG_RSI, abi.REG_RDX, abi.REG_R8 + 2, abi.REG_R8, abi.REG_R8 + 1
)
WRITTEN_REGISTERS = (ctypes.c_int * 17)(
    abi.REG_RAX, abi.REG_RBX, abi.REG_RCX, abi.REG_RDX, abi.REG_RSI, abi.REG_RDI, abi.REG_RSP, abi.REG_RBP,
    *range(abi.REG_R8, abi.REG_R8 + 8), abi.REG_RFLAGS,
)  # fmt: skip
ALL_REGISTERS = (ctypes.c_int * 19)(*WRITTEN_REGISTERS[:16], abi.REG_RIP, abi.REG_RFLAGS, abi.REG_CR2)
ON_CALL = 0
"""EmulatorCpu.state: its `regs` holds the seven registers of a system call; RAX is to be written."""
_BLOCK = struct.Struct("<QHH")
"""struct uc_tb: pc, icount, size."""
_CPUID_XSAVE = 0xD
_CPUID_REGISTERS = abi.REG_RAX, abi.REG_RBX, abi.REG_RCX, abi.REG_RDX


class Hooks:
    """The callbacks of one engine. What they have seen:

    called: the program made a system call that was not served in place; vector: an exception's number, -1 for none;
    refused: an instruction that Unicorn carries out, and ring 3 may not use; foreign: the address of an AVX
    instruction in code that would run next, -1 for none; error: an exception of Python's.
    """

    __slots__ = ("_engine", "_handle", "_library", "called", "error", "foreign", "refused", "vector")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._handle = engine.unicorn.handle
        self._library = engine.unicorn.library
        self.called = self.refused = False
        self.vector = self.foreign = -1
        self.error: BaseException | None = None
        add, instruction = engine.unicorn.hook, abi.HOOK_INSN
        add(abi.HOOK_INTR, abi.ON_INTERRUPT(self._on_interrupt))
        add(instruction, abi.ON_INSTRUCTION(self._enter_hook()), abi.INS_SYSCALL, ring3.GATE, ring3.GATE)
        add(instruction, abi.ON_INSTRUCTION(self._syscall_hook()), abi.INS_SYSCALL, 0, TASK_SIZE)
        add(instruction, abi.ON_INSTRUCTION(self._refuse), abi.INS_SYSENTER)
        add(instruction, abi.ON_IN(self._refuse), abi.INS_IN)
        add(instruction, abi.ON_OUT(self._refuse), abi.INS_OUT)
        add(instruction, abi.ON_CPUID(self._on_cpuid), abi.INS_CPUID)
        add(abi.HOOK_EDGE_GENERATED, abi.ON_EDGE(self._on_new_code))

    def take_vector(self) -> int:
        vector, self.vector = self.vector, -1
        return vector

    def _enter_hook(self) -> Any:
        """At the gate: is there a wish to stop that came too early for Unicorn?"""
        engine, stop, handle, turns = self._engine, self._library.emu_stop, self._handle, self._engine.turns

        def on_enter(_handle: int, _data: int) -> None:
            running = engine.running
            if running is None or running.kicked or turns.give_way or engine.wanted:
                engine.stops += 1
                stop(handle)

        return on_enter

    def _syscall_hook(self) -> Any:
        engine, library, handle = self._engine, self._library, self._handle
        read, write, stop = library.reg_read_batch, library.reg_write, library.emu_stop
        let_go, registers, rax = engine.gate.release, CALL_REGISTERS, abi.REG_RAX

        def on_syscall(_handle: int, _data: int) -> None:
            try:
                cpu = engine.running
                if cpu is not None:
                    read(handle, registers, cpu.call_values, 7)
                    cpu.state = ON_CALL
                    serve = cpu.serve
                    if serve is not None:
                        let_go()
                        try:
                            served = serve()
                        finally:
                            engine.pass_gate()
                        if served:
                            write(handle, rax, cpu.result)
                            return
                    self.called = True
            except BaseException as error:
                self.error = error
            stop(handle)

        return on_syscall

    def _on_interrupt(self, _handle: int, number: int, _data: int) -> None:
        self.vector = number
        self._library.emu_stop(self._handle)

    def _refuse(self, *_arguments: int) -> int:
        """Unicorn lets ring 3 do IN, OUT and SYSENTER, and what comes after them up to the next jump.

        The registers of now are put back when the engine has stopped. Until then, memory cannot be used."""
        cpu = self._engine.running
        if cpu is not None:
            self._library.reg_read_batch(self._handle, ALL_REGISTERS, cpu.all_values, 19)
            self._engine.running = None
            self._engine.load_cr3(ring3.NOTHING)
        self.refused = True
        self._library.emu_stop(self._handle)
        return 0

    def _on_cpuid(self, _handle: int, _data: int) -> int:
        """Leaf 0xD claims AVX state, which this CPU has not. 1: answered; 0: let Unicorn answer."""
        unicorn = self._engine.unicorn
        if self._engine.running is None:
            self._library.emu_stop(self._handle)  # calibrate.py looks when that takes effect
        if unicorn.read(abi.REG_RAX) & 0xFFFF_FFFF != _CPUID_XSAVE:
            return 0
        answer = ring3.xsave_leaf(unicorn.read(abi.REG_RCX) & 0xFFFF_FFFF)
        for register, value in zip(_CPUID_REGISTERS, answer, strict=True):
            unicorn.write(register, value)
        return 1

    def _on_new_code(self, _handle: int, block: int, _before: int, _data: int) -> None:
        """Code was translated and has not run yet."""
        try:
            engine = self._engine
            cpu = engine.running
            if cpu is None:
                return
            start, _, size = _BLOCK.unpack(ctypes.string_at(block, _BLOCK.size))
            tables = engine.tables
            physical = tables.translate(cpu.root, start)
            if physical < 0:
                return  # the gate
            engine.code_at(physical)
            code = tables.read(cpu.root, start, size, physical)
            if b"\xc5" in code or b"\xc4" in code:
                at = decode.find_avx(code)
                if at >= 0:
                    self.foreign = start + at
                    self._library.emu_stop(self._handle)
        except BaseException as error:
            self.error = error
            self._library.emu_stop(self._handle)
