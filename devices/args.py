"""Argument types of system calls: how a 64-bit register becomes a C value, and how --trace shows it.

A handler's annotations are these types (`fd: Fd, count: Size`). To Python and mypy each is the plain int or bytes that
the handler gets; the `Arg` in its Annotated metadata holds the conversion as an *expression*, which devices/bus.py puts
into one lambda a handler: a call then converts its arguments without a function call of its own. C's rules hold:
the kernel truncates a register to the parameter's width and extends it by the parameter's sign.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from devices.task.task import Task

PATH_MAX = 4096
STRING_SHOWN = 32
"""Bytes of a buffer that a trace shows (strace's -s)."""


class Call:
    """What a trace formats: the raw values of the call's parameters by name, and its result once it is there."""

    __slots__ = ("result", "values")

    def __init__(self, values: Mapping[str, int]) -> None:
        self.values = values
        self.result: int | None = None


class Arg:
    """A parameter's C type. `code` is a Python expression with {r} for the register's value."""

    __slots__ = ("code", "ctype")
    late = False
    """True: shown after the call, because the call fills it."""

    def __init__(self, ctype: str, code: str = "{r}") -> None:
        self.ctype = ctype
        self.code = code

    def decode(self, register: int) -> int:
        """The C value of a register, for traces and tests (calls use `code`)."""
        return int(eval(self.code.format(r=register), {}))

    def show(self, task: Task, register: int, call: Call) -> str:
        return str(self.decode(register))


INT = "(({r} & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000"
UINT = "{r} & 0xFFFFFFFF"
LONG = "({r} ^ 0x8000000000000000) - 0x8000000000000000"


class HexArg(Arg):
    def show(self, task: Task, register: int, call: Call) -> str:
        return hex(register) if register else "NULL"


class OctalArg(Arg):
    def show(self, task: Task, register: int, call: Call) -> str:
        return f"0{self.decode(register):o}"


class FdArg(Arg):
    def show(self, task: Task, register: int, call: Call) -> str:
        fd = self.decode(register)
        return "AT_FDCWD" if fd == -100 else str(fd)


class FlagSet(Arg):
    """Flags as `A|B|0x8`. `enum` is a mask whose bits hold a value out of `values` (O_ACCMODE), not flags."""

    __slots__ = ("enum", "flags", "values")

    def __init__(
        self, flags: Mapping[str, int], *, code: str = INT, enum: int = 0, values: Mapping[str, int] | None = None
    ) -> None:
        super().__init__("int", code)
        self.flags = flags
        self.enum = enum
        self.values = values or {}

    def show(self, task: Task, register: int, call: Call) -> str:
        rest = self.decode(register) & 0xFFFF_FFFF_FFFF_FFFF
        names = [name for name, value in self.values.items() if self.enum and value == rest & self.enum]
        rest &= ~self.enum if names else -1
        for name, value in self.flags.items():
            if value and rest & value == value:
                names.append(name)
                rest &= ~value
        if rest:
            names.append(hex(rest))
        return "|".join(names) or next((name for name, value in self.flags.items() if value == 0), "0")


class EnumSet(Arg):
    """One of several named values."""

    __slots__ = ("names",)

    def __init__(self, values: Mapping[str, int], code: str = INT) -> None:
        super().__init__("int", code)
        self.names = {value: name for name, value in values.items()}

    def show(self, task: Task, register: int, call: Call) -> str:
        value = self.decode(register)
        return self.names.get(value) or (str(value) if abs(value) < 4096 else hex(value))


class StringArg(Arg):
    """A C string that the call reads: the handler gets bytes without the NUL. EFAULT, ENAMETOOLONG."""

    def __init__(self, limit: int = PATH_MAX) -> None:
        super().__init__("const char *", f"task.memory.read_cstring({{r}}, {limit})")

    def decode(self, register: int) -> int:
        return register

    def show(self, task: Task, register: int, call: Call) -> str:
        return show_string(task, register)


class BytesArg(HexArg):
    """A buffer whose length is another parameter; `late` if the call fills it."""

    __slots__ = ("late", "size")

    def __init__(self, size: str, late: bool = False) -> None:
        super().__init__("void *")
        self.size = size
        self.late = late

    def show(self, task: Task, register: int, call: Call) -> str:
        length = call.values[self.size] if not self.late else (call.result or 0)
        if length < 0 or not register:
            return super().show(task, register, call)
        data = peek(task, register, min(length, STRING_SHOWN))
        if data is None:
            return hex(register)
        return quote(data) + ("..." if length > STRING_SHOWN else "")


class StructArg(HexArg):
    """A pointer to a struct, shown as {name=value, ...}: `fields` are names, `layout` a struct format of integers."""

    __slots__ = ("fields", "late", "layout")

    def __init__(self, ctype: str, layout: str, fields: tuple[str, ...], late: bool = False) -> None:
        super().__init__(f"struct {ctype} *")
        self.layout = layout
        self.fields = fields
        self.late = late

    def show(self, task: Task, register: int, call: Call) -> str:
        import struct

        failed = self.late and call.result is not None and call.result < 0
        data = peek(task, register, struct.calcsize(self.layout)) if register and not failed else None
        if data is None:
            return super().show(task, register, call)
        values = struct.unpack(self.layout, data)
        return "{" + ", ".join(f"{n}={v}" for n, v in zip(self.fields, values, strict=True)) + "}"


def peek(task: Task, address: int, length: int) -> bytes | None:
    """Guest memory for a trace; None where it is not readable."""
    from devices.errors import SysError

    try:
        return task.memory.read(address, length)
    except SysError:
        return None


def quote(data: bytes) -> str:
    """Bytes as a C string literal, as strace prints them."""
    escapes = {9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}
    out = []
    for i, byte in enumerate(data):
        if byte in escapes:
            out.append(escapes[byte])
        elif 32 <= byte < 127:
            out.append(chr(byte))
        else:
            digit_follows = data[i + 1 : i + 2].isdigit()
            out.append(f"\\{byte:03o}" if digit_follows else f"\\{byte:o}")
    return '"' + "".join(out) + '"'


def show_string(task: Task, address: int, limit: int = 256) -> str:
    """A C string of the guest, quoted; the address if it cannot be read."""
    from devices.errors import SysError

    if not address:
        return "NULL"
    try:
        return quote(task.memory.read_cstring(address, limit))
    except SysError:
        return hex(address)


Int = Annotated[int, Arg("int", INT)]
UInt = Annotated[int, Arg("unsigned int", UINT)]
Long = Annotated[int, Arg("long", LONG)]
ULong = Annotated[int, Arg("unsigned long")]
Size = Annotated[int, Arg("size_t")]
Off = Annotated[int, Arg("off_t", LONG)]
Ptr = Annotated[int, HexArg("void *")]
Fd = Annotated[int, FdArg("int", INT)]
Pid = Annotated[int, Arg("pid_t", INT)]
Uid = Annotated[int, Arg("uid_t", UINT)]
Mode = Annotated[int, OctalArg("mode_t", UINT)]
Path = Annotated[bytes, StringArg()]

TIMESPEC = ("<qq", ("tv_sec", "tv_nsec"))
TimespecPtr = Annotated[int, StructArg("timespec", *TIMESPEC)]
TimespecOut = Annotated[int, StructArg("timespec", *TIMESPEC, late=True)]
TimevalPtr = Annotated[int, StructArg("timeval", "<qq", ("tv_sec", "tv_usec"))]
TimevalOut = Annotated[int, StructArg("timeval", "<qq", ("tv_sec", "tv_usec"), late=True)]


def arg_of(annotation: Any) -> Arg:
    """The Arg in an annotation; TypeError for one that has none (a handler declared wrongly)."""
    for item in getattr(annotation, "__metadata__", ()):
        if isinstance(item, Arg):
            return item
    raise TypeError(f"{annotation!r} is not an argument type of devices/args.py")
