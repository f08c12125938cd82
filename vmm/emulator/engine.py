"""The machine's one engine: which CPU's state is in it, running it, stopping it, and what it keeps of the page tables.

Locks, in the order in which they may be taken:

1. the turn (turns.py): held by a CPU from the beginning of `run()` to its end;
2. `_priority`: who wants the engine between two instructions, and no turn for it (`exclusive`);
3. `gate`: held while guest code runs and while the engine's state is worked on. A system call that is served in place
   lets go of it: the program is between two instructions then, and who serves may wait for the kernel lock;
4. `_switching`: which CPU is loaded. Never held for long.

Stopping. `uc_emu_stop` is lost if it comes while `uc_emu_start` is on its way in. So a wish to stop is written down
first (`kicked`, `give_way`, `wanted`), and every run begins at the gate (ring3.py), a SYSCALL whose hook, called from
inside the engine's loop, looks at these and stops if need be; then it jumps to the program.
"""

from __future__ import annotations

import ctypes
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any

from vmm.emulator import abi, calibrate, ring3
from vmm.emulator.code_pages import CodePages
from vmm.emulator.exits import Exits
from vmm.emulator.hooks import WRITTEN_REGISTERS, Hooks
from vmm.emulator.tables import Tables
from vmm.emulator.turns import Turns
from vmm.emulator.unicorn import Unicorn
from vmm.layout import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from types import TracebackType

    from vmm.cpu import Exit
    from vmm.emulator.cpu import EmulatorCpu
    from vmm.memory.frames import Frames
    from vmm.memory.pagetable import KernelHalf
    from vmm.memory.physical import GuestRam

SLICE = 0.005
"""Seconds that CPUs which compute get by turns."""

_GATE, _ZERO, _NO_COUNT = ctypes.c_uint64(ring3.GATE), ctypes.c_uint64(0), ctypes.c_size_t(0)
_offsets: calibrate.Offsets | None = None


class Engine:
    """Made ready for CPUs to run in it. Raises EmulatorUnavailable."""

    def __init__(self, ram: GuestRam, frames: Frames, half: KernelHalf, slice_seconds: float = SLICE) -> None:
        if ram.size > ring3.PRIVATE:
            raise abi.EmulatorUnavailable(f"the emulator has at most {ring3.PRIVATE >> 30} GiB of memory")
        self.turns = Turns(slice_seconds, self.stop)
        self.tables = Tables(ram)
        self._counts = frames.counts
        self.running: EmulatorCpu | None = None
        """Whose code runs now, or whose system call is being served."""
        self.wanted = False
        """Somebody waits for the gate in `exclusive`."""
        self.stops = 0
        """How often somebody wished that the code which runs should stop."""
        self.gate = Lock()
        self._priority = RLock()
        self._depth = 0
        self._switching = Lock()
        self._alive = RLock()
        self._loaded: EmulatorCpu | None = None
        self._cr3 = self._cached = ring3.ROOT  # the register; the page tables whose translations are kept
        self._pages = ring3.Pages(ram.size)
        self.unicorn = Unicorn(abi.load())
        self._handle = self.unicorn.handle
        library = self.unicorn.library
        self._start, self._stop = library.emu_start, library.emu_stop
        self._code_pages = CodePages(self.unicorn)
        self.template = self.unicorn.new_context()
        self._exits: Exits | None = None
        try:
            self._prepare(ram, half)
        except BaseException:
            self.close()
            raise

    def _prepare(self, ram: GuestRam, half: KernelHalf) -> None:
        global _offsets
        unicorn, pages = self.unicorn, self._pages
        unicorn.map(0, ram.size, ram.address)
        unicorn.map(ring3.PRIVATE, pages.size, pages.address)
        self.hooks = Hooks(self)
        ring3.bring_up(unicorn, pages)
        unicorn.save_context(self.template)
        if _offsets is None:
            _offsets = calibrate.context_offsets(unicorn, pages, self.hooks.take_vector)
        self._exits = Exits(self, _offsets)
        calibrate.stop_between_instructions(unicorn, pages)
        self.feature_bits = ring3.feature_bits(unicorn, pages)
        pages.map_into(half)

    def close(self) -> None:
        """Free everything; no CPU may be left."""
        with self._alive:
            if not self._handle:
                return
            if self._exits is not None:
                self._exits.close()
            self.unicorn.free_context(self.template)
            self.unicorn.close()
            self._handle = ctypes.c_void_p()
        self._pages.close()

    # Running

    def execute(self, cpu: EmulatorCpu) -> Exit | None:
        """Run `cpu`, whose turn it is, until something happens; None if it is to go on."""
        assert self._exits is not None
        self.pass_gate()
        try:
            if self._loaded is not cpu:
                self._switch(cpu)
            if self._cr3 != cpu.root or self._cached != cpu.root:
                self.load_cr3(cpu.root)
            begin = _GATE
            if cpu.commit(self):
                # One instruction and then #DB: a stop that is lost does no harm, but the gate is an instruction, too.
                begin = ctypes.c_uint64(cpu.rip)
            self._pages.slot.value = cpu.rip
            self.running = cpu
            code = self._start(self._handle, begin, _ZERO, _ZERO, _NO_COUNT)
            self.running = None
            return self._exits.outcome(cpu, code)
        finally:
            self.running = None
            self.gate.release()

    def pass_gate(self) -> None:
        """Take the gate; whoever wants it without a turn goes first."""
        self.gate.acquire()
        while self.wanted:
            self.gate.release()
            with self._priority:
                pass
            self.gate.acquire()

    def _switch(self, cpu: EmulatorCpu) -> None:
        unicorn = self.unicorn
        with self._switching:
            before = self._loaded
            if before is not None:
                unicorn.save_context(before.context)
                before.context_root = self._cr3
            unicorn.restore_context(cpu.context)
            self._cr3 = cpu.context_root
            self._loaded = cpu

    def load_cr3(self, root: int) -> None:
        """Use other page tables, with the gate held; forgets all translations."""
        self.unicorn.write(abi.REG_CR3, root)
        self._cr3 = self._cached = root

    def code_at(self, physical: int) -> None:
        """Code at a guest-physical address was translated; gate held."""
        if self._code_pages.add(physical & -PAGE_SIZE) and self._counts[physical >> PAGE_SHIFT] > 1:
            # Another page with the same frame may be taken for data already.
            self.unicorn.control(abi.CTL_TLB_FLUSH)

    # From any thread

    def stop(self) -> None:
        """Make guest code that runs come to a halt, soon. Write down why before."""
        with self._alive:
            self.stops += 1
            if self._handle:
                # Twice: the engine clears its flag and then looks at the request without a fence between, so a store
                # of the first call may be overwritten; what the second finds is the request in place.
                self._stop(self._handle)
                self._stop(self._handle)

    def exclusive(self) -> Exclusive:
        return Exclusive(self)

    def enter_exclusive(self) -> None:
        self._priority.acquire()
        try:
            if self._depth == 0:
                self.wanted = True
                if self.gate.locked():
                    self.stop()  # else: who takes the gate now sees what is wanted
                self.gate.acquire()
            self._depth += 1
        except BaseException:
            self._priority.release()
            raise
        finally:
            self.wanted = False

    def leave_exclusive(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.gate.release()
        self._priority.release()

    def forget_translations(self) -> None:
        """Those of all page tables; in effect when it returns."""
        with self.exclusive():
            self.unicorn.control(abi.CTL_TLB_FLUSH)

    def forget_code(self, address: int, length: int) -> None:
        """What was translated from a run of guest-physical memory, and all translations as well; in effect when it
        returns."""
        with self.exclusive():
            self.drop_code(address, length)

    def drop_code(self, address: int, length: int = 1) -> None:
        """As forget_code, with the gate held."""
        unicorn, before = self.unicorn, self._cr3
        # Unicorn takes a virtual address: in the monitor's own address space that is the physical one.
        unicorn.write(abi.REG_CR3, ring3.ROOT)
        try:
            unicorn.control(abi.CTL_TB_REMOVE_CACHE, ctypes.c_uint64(address), ctypes.c_uint64(address + length))
        finally:
            self.load_cr3(before)
        self._code_pages.discard(address, length)

    # A CPU's state outside of its run(), wherever it is. `registers` and `values` are arrays of `count`.

    def read_state(self, cpu: EmulatorCpu, registers: Any, values: Any, count: int) -> None:
        library = self.unicorn.library
        with self._switching:
            if self._loaded is cpu:
                code = library.reg_read_batch(self._handle, registers, values, count)
            else:
                code = library.context_reg_read_batch(cpu.context, registers, values, count)
        library.check("uc_reg_read_batch", code)

    def write_state(self, cpu: EmulatorCpu, registers: Any, values: Any, count: int) -> None:
        library = self.unicorn.library
        with self._switching:
            if self._loaded is cpu:
                code = library.reg_write_batch(self._handle, registers, values, count)
            else:
                code = library.context_reg_write_batch(cpu.context, registers, values, count)
        library.check("uc_reg_write_batch", code)

    def write_registers(self, values: Any) -> None:
        """Those of WRITTEN_REGISTERS, of the loaded CPU, gate held."""
        self.unicorn.library.reg_write_batch(self._handle, WRITTEN_REGISTERS, values, 17)

    def write_result(self, value: Any) -> None:
        """RAX of the loaded CPU, gate held."""
        self.unicorn.library.reg_write(self._handle, abi.REG_RAX, value)

    def begin_anew(self, cpu: EmulatorCpu) -> None:
        """Give `cpu`, which does not run, the state of a new program."""
        with self._switching:
            if self._loaded is cpu:
                self._loaded = None
            ctypes.memmove(cpu.context, self.template, self.unicorn.context_size)
            cpu.context_root = ring3.ROOT

    def forget(self, cpu: EmulatorCpu) -> None:
        """`cpu` is no more."""
        with self._switching:
            if self._loaded is cpu:
                self._loaded = None
        self.unicorn.free_context(cpu.context)


class Exclusive:
    """While entered, no guest code runs: the program is between two instructions. May be entered again inside."""

    __slots__ = ("_engine",)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        self._engine.enter_exclusive()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.leave_exclusive()
