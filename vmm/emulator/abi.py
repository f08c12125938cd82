"""Unicorn's C API through ctypes: what pyvmm uses of <unicorn/unicorn.h> and <unicorn/x86.h>.

The Python binding is not imported: that costs 44 ms and a call through it 5 to 10 times as much as one made here. Only
its shared library is used; constants are mirrored by hand and tested against the binding's own.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MINIMUM_VERSION = (2, 1, 4)
"""Older ones do not say where an instruction is that they stop at."""
INSTALL = "install it with: pip install 'unicorn>=2.1.4'"

ARCH_X86 = 4
MODE_64 = 1 << 3
PROT_ALL = 7
CPU_X86_HASWELL = 19

# enum uc_err: those that pyvmm tells apart.
ERR_OK = 0
ERR_INSN_INVALID = 10

# enum uc_hook_type
HOOK_INTR = 1 << 0
HOOK_INSN = 1 << 1
HOOK_MEM_FETCH_UNMAPPED = 1 << 6
HOOK_EDGE_GENERATED = 1 << 15

# enum uc_x86_insn: instructions that UC_HOOK_INSN accepts
INS_CPUID = 113
INS_IN = 218
INS_OUT = 500
INS_SYSCALL = 699
INS_SYSENTER = 700

# enum uc_x86_reg
REG_CS, REG_FPSW, REG_SS = 11, 31, 49
REG_RAX, REG_RBP, REG_RBX, REG_RCX, REG_RDI, REG_RDX, REG_RIP = range(35, 42)
REG_RSI, REG_RSP = 43, 44
REG_CR0, REG_CR2, REG_CR3, REG_CR4 = 50, 52, 53, 54
REG_R8 = 106
REG_ST0, REG_XMM0 = 114, 122
REG_GDTR, REG_FPCW, REG_FPTAG, REG_MSR, REG_MXCSR = 243, 246, 247, 248, 249
REG_FS_BASE, REG_GS_BASE, REG_RFLAGS = 250, 251, 253
REG_FIP, REG_FCS, REG_FDP, REG_FDS, REG_FOP = range(254, 259)

_WRITE = 1


def _control(kind: int, arguments: int, direction: int) -> int:
    """The UC_CTL() macro: `kind` of enum uc_control_type with its number of arguments and its direction."""
    return kind | arguments << 26 | direction << 30


CTL_USE_EXITS = _control(4, 1, _WRITE)
CTL_CPU_MODEL = _control(7, 1, _WRITE)
CTL_TB_REMOVE_CACHE = _control(9, 2, _WRITE)
CTL_TB_FLUSH = _control(10, 0, _WRITE)
CTL_TLB_FLUSH = _control(11, 0, _WRITE)
CTL_TCG_BUFFER_SIZE = _control(13, 1, _WRITE)

ON_INTERRUPT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
"""uc_cb_hookintr_t: void (*)(uc_engine *, uint32_t number, void *)"""
ON_INSTRUCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
"""uc_cb_insn_syscall_t: void (*)(uc_engine *, void *), also of SYSENTER"""
ON_CPUID = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
"""uc_cb_insn_cpuid_t: int (*)(uc_engine *, void *); not 0: the instruction is done"""
ON_IN = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p)
"""uc_cb_insn_in_t: uint32_t (*)(uc_engine *, uint32_t port, int size, void *)"""
ON_OUT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p)
"""uc_cb_insn_out_t: void (*)(uc_engine *, uint32_t port, int size, uint32_t value, void *)"""


ON_EDGE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
"""uc_hook_edge_gen_t: void (*)(uc_engine *, uc_tb *current, uc_tb *previous, void *)"""
ON_MEMORY = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
)
"""uc_cb_eventmem_t: bool (*)(uc_engine *, uc_mem_type, uint64_t address, int size, int64_t value, void *)"""


class MemoryRegister(ctypes.Structure):
    """struct uc_x86_mmr: GDTR, IDTR, LDTR, TR."""

    _fields_ = (
        ("selector", ctypes.c_uint16),
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


class ModelSpecificRegister(ctypes.Structure):
    """struct uc_x86_msr."""

    _fields_ = (("rid", ctypes.c_uint32), ("value", ctypes.c_uint64))


class EmulatorUnavailable(Exception):
    """Unicorn cannot be used here; the text says why and what to do, in one line."""


class UnicornError(Exception):
    """A call of Unicorn's failed: `code` is its enum uc_err."""

    def __init__(self, function: str, code: int, text: str) -> None:
        super().__init__(f"{function}: {text}")
        self.code = code


class Library:
    """The loaded shared library: its functions, unchecked.

    They hold the GIL while they run (none takes longer than letting it go would), but `emu_start`, which releases it.
    Pass pointers as ctypes objects and 64-bit values as `c_uint64`: the functions that are called for every system
    call have no `argtypes`, because converting arguments costs more there than the call itself.
    """

    __slots__ = (
        "close",
        "context_alloc",
        "context_free",
        "context_reg_read",
        "context_reg_read_batch",
        "context_reg_write",
        "context_reg_write_batch",
        "context_restore",
        "context_save",
        "context_size",
        "ctl",
        "emu_start",
        "emu_stop",
        "hook_add",
        "hook_del",
        "mem_map_ptr",
        "open",
        "path",
        "reg_read",
        "reg_read_batch",
        "reg_write",
        "reg_write_batch",
        "strerror",
        "version",
    )
    version: tuple[int, int, int]
    path: str
    emu_start: Callable[..., int]

    def __init__(self, path: str) -> None:
        """Load the library at `path`. Raises OSError or AttributeError when it is not a Unicorn 2."""
        self.path = path
        holding = ctypes.PyDLL(path)
        for name in self.__slots__:
            if name not in ("path", "version", "emu_start"):
                setattr(self, name, getattr(holding, f"uc_{name}"))
        self.emu_start = ctypes.CDLL(path).uc_emu_start
        _declare(holding)
        number = int(holding.uc_version(None, None))
        self.version = number >> 24, number >> 16 & 0xFF, number >> 8 & 0xFF

    def __getattr__(self, name: str) -> Callable[..., Any]:  # for the type checker: every slot is filled above
        raise AttributeError(name)

    def check(self, function: str, code: int) -> None:
        """Raise UnicornError unless `code` is UC_ERR_OK."""
        if code:
            raise UnicornError(function, code, self.strerror(code).decode())


def _declare(library: ctypes.PyDLL) -> None:
    """Types of what is not called often, so that a mistake is an error and not a crash."""
    pointer, u64 = ctypes.c_void_p, ctypes.c_uint64
    library.uc_version.restype = ctypes.c_uint
    library.uc_version.argtypes = (pointer, pointer)
    library.uc_strerror.restype = ctypes.c_char_p
    library.uc_strerror.argtypes = (ctypes.c_int,)
    library.uc_open.argtypes = (ctypes.c_int, ctypes.c_int, pointer)
    library.uc_close.argtypes = (pointer,)
    library.uc_mem_map_ptr.argtypes = (pointer, u64, u64, ctypes.c_uint32, pointer)
    library.uc_hook_del.argtypes = (pointer, pointer)
    library.uc_context_size.restype = ctypes.c_size_t
    library.uc_context_size.argtypes = (pointer,)
    library.uc_context_alloc.argtypes = (pointer, pointer)
    library.uc_context_free.argtypes = (pointer,)


def _candidates() -> Iterator[str]:
    """Where the library may be: LIBUNICORN_PATH (the binding's own variable), installed packages, the system."""
    folders = [os.environ["LIBUNICORN_PATH"]] if os.environ.get("LIBUNICORN_PATH") else []
    folders += [os.path.join(entry or ".", "unicorn", "lib") for entry in sys.path]
    for folder in folders:
        if os.path.isdir(folder):
            yield from (os.path.join(folder, name) for name in sorted(_libraries(folder)))
    yield "libunicorn.so.2"


def _libraries(folder: str) -> Iterator[str]:
    return (name for name in os.listdir(folder) if name.startswith("libunicorn.so"))


_loaded: Library | None = None


def load() -> Library:
    """The library, loaded once a process (about 10 ms). Raises EmulatorUnavailable."""
    global _loaded
    if _loaded is None:
        _loaded = _load()
    return _loaded


def _load() -> Library:
    problem = "Unicorn, the emulator's CPU, is not installed"
    for path in _candidates():
        try:
            library = Library(path)
        except (OSError, AttributeError) as error:
            if os.path.exists(path):
                problem = f"{path} cannot be used: {error}"
            continue
        if library.version >= MINIMUM_VERSION:
            return library
        problem = "Unicorn {}.{}.{} is too old".format(*library.version) + f" ({path})"
    raise EmulatorUnavailable(f"{problem}; {INSTALL}")
