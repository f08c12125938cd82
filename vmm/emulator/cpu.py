"""A CPU of the emulator: the registers of a program, and where they are at the moment."""

from __future__ import annotations

import ctypes
from array import array
from typing import TYPE_CHECKING

from vmm.cpu import (
    FIXED_RFLAGS,
    INTERRUPTED,
    PF_FETCH,
    R11,
    RAX,
    RCX,
    REGISTERS,
    RFLAGS,
    RIP,
    USER_RFLAGS,
    CpuException,
    Exit,
    InternalError,
    PageFault,
)
from vmm.emulator import abi, fpu, ring3
from vmm.emulator.hooks import ALL_REGISTERS, ON_CALL
from vmm.emulator.turns import Contender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.emulator import EmulatorAccelerator
    from vmm.emulator.engine import Engine

_CR2 = 18
_TF = 1 << 8
_AT_GATE = (ring3.GATE, ring3.GATE_JUMP)
_MAXIMUM_IDLE = 1000
"""So often in a row an engine may stop, nobody having asked for it, before that counts as an error."""
_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF2, 0xF3, *range(0x40, 0x50)))
_ONE_REGISTER = ctypes.c_int * 1

ALL = 1
"""EmulatorCpu.state, beside ON_CALL: `regs` holds all, as the engine has them unless changed here (`_seen`)."""
CALL_ORDER = (0, 5, 4, 3, 10, 8, 9)
"""Indices of RAX, RDI, RSI, RDX, R10, R8, R9 in `regs`: the order of hooks.CALL_REGISTERS."""


class EmulatorCpu(Contender):
    """See vmm/cpu.py: Cpu. It may run in the main thread only where no signal handler raises."""

    __slots__ = (
        "_accelerator",
        "_array",
        "_closed",
        "_engine",
        "_exception",
        "_fault",
        "_seen",
        "_step_range",
        "_written_values",
        "all_values",
        "call_values",
        "context",
        "context_root",
        "index",
        "regs",
        "result",
        "rip",
        "root",
        "serve",
        "state",
        "stepping",
    )

    serve: Callable[[], bool] | None
    state: int
    """What `regs` holds: ON_CALL or ALL."""
    rip: int
    """Where the program goes on, whatever `regs` holds."""
    context_root: int
    """CR3 in `context`."""
    _seen: bytes
    _step_range: range

    def __init__(self, accelerator: EmulatorAccelerator, engine: Engine, index: int) -> None:
        super().__init__()
        self.index = index
        self._accelerator = accelerator
        self._engine = engine
        self._array = (ctypes.c_uint64 * 19)()
        self.regs = memoryview(self._array).cast("B").cast("Q")[:18]
        # Pointers into `regs`, for Unicorn to read from and to write to.
        places = [ctypes.addressof(self._array) + 8 * n for n in range(19)]
        self.all_values = (ctypes.c_void_p * 19)(*places)
        self._written_values = (ctypes.c_void_p * 17)(*places[:16], places[RFLAGS])
        self.call_values = (ctypes.c_void_p * 7)(*(places[n] for n in CALL_ORDER))
        self.result = ctypes.c_void_p(places[RAX])
        self._fault = PageFault()
        self._exception = CpuException()
        self.root = 0
        self.stepping = False
        self._closed = False
        self.context = engine.unicorn.new_context()
        self.reset()

    # The protocol

    def run(self) -> Exit:
        if not self.root:
            raise RuntimeError("the CPU has no address space")
        engine = self._engine
        turns = engine.turns
        if self.kicked or not turns.take(self):
            return self._interrupted()
        try:
            idle = 0
            while True:
                stops = engine.stops
                found = engine.execute(self)
                if found is not None:
                    if self.stepping:
                        self._end_stepping()
                    return found
                if self.kicked:
                    return self._interrupted()
                if self.stepping:
                    continue
                idle = idle + 1 if engine.stops == stops else 0
                if idle > _MAXIMUM_IDLE:
                    return InternalError("the emulator stops without a reason", self.dump())
                if turns.give_way and not turns.over(self):
                    return self._interrupted()
        finally:
            turns.give_back(self)

    def _interrupted(self) -> Exit:
        self.kicked = False
        if self.stepping:
            self._end_stepping()
        elif self.state == ON_CALL:
            self.load(self.save())
        return INTERRUPTED

    def save(self) -> list[int]:
        if self.state != ON_CALL:
            return self.regs.tolist()
        values = (ctypes.c_uint64 * 19)()
        pointers = (ctypes.c_void_p * 19)(*(ctypes.addressof(values) + 8 * n for n in range(19)))
        self._engine.read_state(self, ALL_REGISTERS, pointers, 19)
        state = list(values)[:18]
        if self._engine.running is self:
            state[RIP] += self._syscall_length(state[RIP])
        # Unicorn leaves these alone, where a CPU puts the two there.
        state[RCX], state[R11] = state[RIP], state[RFLAGS]
        state[RAX] = self.regs[RAX]
        return state

    def load(self, state: Sequence[int]) -> None:
        if self._engine.running is self:
            raise RuntimeError("the CPU runs")
        if (state[RIP] >> 47) not in (0, 0x1FFFF):
            raise ValueError(f"RIP {state[RIP]:#x} is not canonical")
        values = array("Q", state)
        values[RFLAGS] = values[RFLAGS] & USER_RFLAGS | FIXED_RFLAGS
        self.regs[:] = memoryview(values)
        self.overwrite()

    @property
    def fs_base(self) -> int:
        return self._read_one(abi.REG_FS_BASE)

    @fs_base.setter
    def fs_base(self, value: int) -> None:
        self._write_one(abi.REG_FS_BASE, value)

    @property
    def gs_base(self) -> int:
        return self._read_one(abi.REG_GS_BASE)

    @gs_base.setter
    def gs_base(self, value: int) -> None:
        self._write_one(abi.REG_GS_BASE, value)

    def get_fpu(self) -> bytes:
        return fpu.read(lambda *registers: self._engine.read_state(self, *registers))

    def set_fpu(self, area: bytes) -> None:
        fpu.write(lambda *registers: self._engine.write_state(self, *registers), area)

    def set_address_space(self, root: int) -> None:
        self.root = root

    def reset(self) -> None:
        self.serve = None
        self._engine.begin_anew(self)
        self.load([0] * RFLAGS + [FIXED_RFLAGS])
        self.kicked = False

    def kick(self) -> None:
        self.kicked = True
        if self._engine.running is self:
            self._engine.stop()
        else:
            self._engine.turns.wake(self)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._accelerator.forget(self)

    # For the engine

    def commit(self, engine: Engine) -> bool:
        """Bring the engine's registers, the gate held, to what `regs` says; True if a single step is to come."""
        if self.state == ON_CALL:
            engine.write_result(self.result)
            return False
        regs = self.regs
        if self._seen != regs.tobytes():
            regs[RFLAGS] = regs[RFLAGS] & USER_RFLAGS | FIXED_RFLAGS
            engine.write_registers(self._written_values)
            self.rip = regs[RIP]
            self._seen = regs.tobytes()
        return bool(regs[RFLAGS] & _TF)

    def after_call(self, rip: int) -> None:
        """The program made a system call and goes on at `rip`."""
        self.state = ON_CALL
        self.rip = rip

    def after_exit(self) -> None:
        """`regs` was read from the engine."""
        self.state = ALL
        if self.regs[RIP] in _AT_GATE:
            self.regs[RIP] = self.rip  # stopped before the program was reached
        self._seen = self.regs.tobytes()
        self.rip = self.regs[RIP]

    def overwrite(self) -> None:
        """`regs` holds what the engine is to be given."""
        self.state = ALL
        self._seen = b""
        self.rip = self.regs[RIP]

    def move_rip(self, by: int) -> None:
        self.regs[RIP] = self.rip = (self.rip + by) & 0xFFFF_FFFF_FFFF_FFFF

    def step(self, end: int) -> None:
        """Go on with single steps while the program is between where it is and `end`."""
        self.stepping = True
        self._step_range = range(self.rip, end)
        self.regs[RFLAGS] |= _TF

    def stepped(self) -> None:
        if self.rip not in self._step_range:
            self._end_stepping()

    def _end_stepping(self) -> None:
        if self.state == ON_CALL:
            self.load(self.save())
        self.stepping = False
        self.regs[RFLAGS] &= ~_TF

    @property
    def fault_address(self) -> int:
        """CR2."""
        return self._array[_CR2]

    def page_fault(self, error: int) -> Exit:
        if self.fault_address == ring3.GATE and error & PF_FETCH:
            return InternalError("the address space lacks the monitor's half", self.dump())
        self._fault.address = self.fault_address
        self._fault.error = error
        return self._fault

    def exception(self, vector: int, error: int) -> CpuException:
        self._exception.vector = vector
        self._exception.error = error
        return self._exception

    def dump(self) -> str:
        """Every register, for the log."""
        lines = [f"{name:>6} {value:016x}" for name, value in zip(REGISTERS, self.save(), strict=True)]
        lines += [f"{name:>6} {value:016x}" for name, value in (("fs", self.fs_base), ("gs", self.gs_base))]
        lines += [f"{name:>6} {value:016x}" for name, value in (("cr2", self.fault_address), ("cr3", self.root))]
        return "\n".join("  ".join(lines[at : at + 4]) for at in range(0, len(lines), 4))

    def _syscall_length(self, at: int) -> int:
        """Bytes of the SYSCALL instruction at `at`, which may have prefixes."""
        length = 2
        for byte in self._engine.tables.read(self.root, at, 13):
            if byte not in _PREFIXES:
                break
            length += 1
        return length

    def _read_one(self, register: int) -> int:
        value = ctypes.c_uint64()
        self._engine.read_state(self, _ONE_REGISTER(register), (ctypes.c_void_p * 1)(ctypes.addressof(value)), 1)
        return value.value

    def _write_one(self, register: int, number: int) -> None:
        value = ctypes.c_uint64(number)
        self._engine.write_state(self, _ONE_REGISTER(register), (ctypes.c_void_p * 1)(ctypes.addressof(value)), 1)
