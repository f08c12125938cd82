"""One Unicorn engine: the checked calls, for everything but the hot paths (engine.py makes those itself)."""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING, Any

from vmm.emulator import abi

if TYPE_CHECKING:
    from vmm.emulator.abi import Library

CODE_BUFFER = 128 << 20
"""Bytes of address space for translated code; when it is full, all of it is thrown away. Unicorn's default is 1 GiB."""
_ONE, _ZERO = ctypes.c_uint64(1), ctypes.c_uint64(0)


class Unicorn:
    """An engine of a 64-bit x86 CPU without memory. Raises EmulatorUnavailable when the host gives too little."""

    __slots__ = ("_hooks", "_value", "_where", "context_size", "handle", "library")

    def __init__(self, library: Library) -> None:
        self.library = library
        self.handle = ctypes.c_void_p()
        self._hooks: list[Any] = []
        """What Unicorn has pointers to."""
        self._value = ctypes.c_uint64()
        self._where = ctypes.byref(self._value)
        _try_code_buffer()
        library.check("uc_open", library.open(abi.ARCH_X86, abi.MODE_64, ctypes.byref(self.handle)))
        # The newest model whose instructions Unicorn has (SSE4.2, AES, BMI1/2, MOVBE, LZCNT); it masks out AVX itself.
        self.control(abi.CTL_CPU_MODEL, ctypes.c_int(abi.CPU_X86_HASWELL))
        self.control(abi.CTL_TCG_BUFFER_SIZE, ctypes.c_uint32(CODE_BUFFER))
        # With a set of exit addresses that stays empty, no address is special: uc_emu_start's `until` is ignored.
        self.control(abi.CTL_USE_EXITS, ctypes.c_int(1))
        self.context_size = int(library.context_size(self.handle))

    def close(self) -> None:
        """Free the engine. The memory that was mapped must still be there."""
        self.library.close(self.handle)
        self._hooks.clear()

    def control(self, request: int, *arguments: Any) -> None:
        """uc_ctl(3)-like: `request` is one of abi.CTL_*."""
        self.library.check("uc_ctl", self.library.ctl(self.handle, ctypes.c_uint(request), *arguments))

    def drop_code(self) -> None:
        """Forget all translated code."""
        self.control(abi.CTL_TB_FLUSH)

    def map(self, address: int, size: int, host: int) -> None:
        """Make `size` bytes at the host's address `host` guest-physical memory from `address` on."""
        library = self.library
        library.check("uc_mem_map_ptr", library.mem_map_ptr(self.handle, address, size, abi.PROT_ALL, host))

    def hook(self, kind: int, callback: Any, instruction: int = 0, begin: int = 1, end: int = 0) -> ctypes.c_void_p:
        """uc_hook_add: `callback` is an instance of one of abi.ON_*; `begin` > `end` is everywhere.

        Returns its handle. The callback is kept alive as long as the engine."""
        handle = ctypes.c_void_p()
        arguments = (
            ctypes.byref(handle),
            ctypes.c_int(kind),
            callback,
            None,
            ctypes.c_uint64(begin),
            ctypes.c_uint64(end),
        )
        if callback not in self._hooks:
            self._hooks.append(callback)
        self.library.check("uc_hook_add", self.library.hook_add(self.handle, *arguments, ctypes.c_int(instruction)))
        return handle

    def unhook(self, hook: ctypes.c_void_p) -> None:
        """Take a hook out; may be called while guest code is stopped in another hook."""
        self.library.check("uc_hook_del", self.library.hook_del(self.handle, hook))

    def read(self, register: int) -> int:
        """A register of at most 64 bits, one of abi.REG_*."""
        self._value.value = 0
        self.library.check("uc_reg_read", self.library.reg_read(self.handle, register, self._where))
        return self._value.value

    def write(self, register: int, value: int) -> None:
        self._value.value = value
        self.library.check("uc_reg_write", self.library.reg_write(self.handle, register, self._where))

    def write_msr(self, number: int, value: int) -> None:
        msr = abi.ModelSpecificRegister(number, value)
        self.library.check("uc_reg_write", self.library.reg_write(self.handle, abi.REG_MSR, ctypes.byref(msr)))

    def write_gdtr(self, base: int, limit: int) -> None:
        gdtr = abi.MemoryRegister(base=base, limit=limit)
        self.library.check("uc_reg_write", self.library.reg_write(self.handle, abi.REG_GDTR, ctypes.byref(gdtr)))

    def start(self, address: int) -> int:
        """Run from `address` until something stops it; an enum uc_err."""
        return self.library.emu_start(self.handle, ctypes.c_uint64(address), _ZERO, _ZERO, ctypes.c_size_t(0))

    def new_context(self) -> ctypes.c_void_p:
        """Memory for the state of a CPU. Raises UnicornError without memory."""
        context = ctypes.c_void_p()
        self.library.check("uc_context_alloc", self.library.context_alloc(self.handle, ctypes.byref(context)))
        return context

    def free_context(self, context: ctypes.c_void_p) -> None:
        self.library.context_free(context)

    def save_context(self, context: ctypes.c_void_p) -> None:
        self.library.check("uc_context_save", self.library.context_save(self.handle, context))

    def restore_context(self, context: ctypes.c_void_p) -> None:
        """Does not touch what was cached for the page tables of before: see CR3."""
        self.library.check("uc_context_restore", self.library.context_restore(self.handle, context))


def _try_code_buffer() -> None:
    """See that the host allows the code buffer: where it does not, Unicorn calls exit()."""
    try:
        mmap.mmap(
            -1,
            CODE_BUFFER,
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
            prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
        ).close()
    except OSError as error:
        raise abi.EmulatorUnavailable(
            f"the emulator needs {CODE_BUFFER >> 20} MiB of writable and executable address space: {error.strerror}"
        ) from error
