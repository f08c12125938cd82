"""Conversion of registers to C types, and how arguments are shown."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Annotated, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import args
from devices.args import Call, EnumSet, Fd, FlagSet, Int, Long, Mode, Path, Pid, Ptr, Size, UInt, ULong, arg_of, quote
from devices.bus import compose, parameters_of
from devices.errors import SysError

if TYPE_CHECKING:
    from devices.task.task import Task

U64 = st.integers(0, 2**64 - 1)
INT_MIN_MAX = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
CTYPES = [
    (Int, ctypes.c_int),
    (UInt, ctypes.c_uint),
    (Long, ctypes.c_long),
    (ULong, ctypes.c_ulong),
    (Size, ctypes.c_size_t),
    (Fd, ctypes.c_int),
    (Pid, ctypes.c_int),
    (Mode, ctypes.c_uint),
    (Ptr, ctypes.c_ulong),
]


class FakeMemory:
    def __init__(self, data: dict[int, bytes]) -> None:
        self.data = data

    def read(self, address: int, length: int) -> bytes:
        if address not in self.data:
            raise SysError(14)
        return self.data[address][:length]

    def read_cstring(self, address: int, limit: int) -> bytes:
        return self.read(address, limit).partition(b"\0")[0]


class FakeTask:
    def __init__(self, data: dict[int, bytes] | None = None) -> None:
        self.memory = FakeMemory(data or {})


def fake(data: dict[int, bytes] | None = None) -> Task:
    return cast("Task", FakeTask(data))


@pytest.mark.parametrize(("annotation", "ctype"), CTYPES)
@given(register=U64 | st.sampled_from(INT_MIN_MAX))
def test_conversion_follows_c(annotation: Any, ctype: Any, register: int) -> None:
    assert arg_of(annotation).decode(register) == ctype(register).value


def test_composed_call_converts_every_register() -> None:
    def handler(task: Task, a: Int, b: UInt, c: Long, d: Size, e: Fd, f: Ptr) -> int:
        seen.extend((a, b, c, d, e, f))
        return 7

    seen: list[int] = []
    call = compose(handler, [arg for _, arg in parameters_of(handler)])
    values = {5: 2**32 - 1, 4: 2**40 + 5, 3: 2**64 - 3, 10: 2**64 - 1, 8: 2**64 - 100, 9: 123}
    registers = memoryview(bytearray(18 * 8)).cast("Q")
    for index, value in values.items():
        registers[index] = value
    assert call(fake(), registers) == 7
    assert seen == [-1, 5, -3, 2**64 - 1, -100, 123]


def test_path_is_copied_in() -> None:
    def handler(task: Task, pathname: Path) -> int:
        return len(pathname)

    call = compose(handler, [arg for _, arg in parameters_of(handler)])
    registers = memoryview(bytearray(18 * 8)).cast("Q")
    registers[5] = 0x1000
    assert call(fake({0x1000: b"/bin/sh\0rest"}), registers) == 7
    registers[5] = 0x2000
    with pytest.raises(SysError):
        call(fake(), registers)


def test_wrong_declarations_are_refused() -> None:
    def untyped(task: Task, a: int) -> int:
        return a

    def seven(task: Task, a: Int, b: Int, c: Int, d: Int, e: Int, f: Int, g: Int) -> int:
        return a

    with pytest.raises(TypeError):
        parameters_of(untyped)
    with pytest.raises(TypeError):
        parameters_of(seven)


def show(annotation: Any, register: int, task: Task | None = None, **call: int) -> str:
    return arg_of(annotation).show(task or fake(), register, Call(call))


def test_shown_as_strace_shows_it() -> None:
    access = Annotated[int, FlagSet({"O_CREAT": 0o100}, enum=3, values={"O_RDONLY": 0, "O_RDWR": 2})]
    assert show(access, 0) == "O_RDONLY"
    assert show(access, 0o102) == "O_RDWR|O_CREAT"
    assert show(access, 0o10100) == "O_RDONLY|O_CREAT|0x1000"
    prot = Annotated[int, FlagSet({"PROT_NONE": 0, "PROT_READ": 1, "PROT_WRITE": 2})]
    assert show(prot, 0) == "PROT_NONE"
    assert show(prot, 3) == "PROT_READ|PROT_WRITE"
    assert show(Annotated[int, EnumSet({"SEEK_SET": 0})], 0) == "SEEK_SET"
    assert show(Annotated[int, EnumSet({"SEEK_SET": 0})], 99) == "99"
    assert show(Fd, 2**64 - 100) == "AT_FDCWD"
    assert show(Fd, 2**64 - 1) == "-1"
    assert show(Ptr, 0) == "NULL"
    assert show(Ptr, 0x1234) == "0x1234"
    assert show(Mode, 0o644) == "0644"
    assert show(Path, 16, fake({16: b"a\nb\0"})) == '"a\\nb"'
    assert show(Path, 17, fake()) == "0x11"
    assert show(args.TimespecPtr, 8, fake({8: bytes([1]) + bytes(15)})) == "{tv_sec=1, tv_nsec=0}"
    buffer = Annotated[int, args.BytesArg("count")]
    assert show(buffer, 8, fake({8: b"x" * 50}), count=50) == '"' + "x" * 32 + '"...'


@given(st.binary(max_size=40))
def test_quoted_bytes_are_a_c_string_of_the_same_bytes(data: bytes) -> None:
    import ast

    quoted = quote(data)
    assert quoted[0] == quoted[-1] == '"'
    assert ast.literal_eval("b" + quoted) == data
