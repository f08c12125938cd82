"""The host functions of guest/atomics.S: what they do, that they are atomic, and what they refuse."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import harness
from vmm.memory import atomics
from vmm.memory.atomics import Atomics, Code, read_tsc
from vmm.memory.physical import GuestRam

if TYPE_CHECKING:
    from collections.abc import Iterator

U32 = 0xFFFF_FFFF
WORDS = st.one_of(st.integers(0, U32), st.sampled_from([0, 1, 0x7FFF_FFFF, 0x8000_0000, U32]))
SIZE = 2 << 20


@pytest.fixture(scope="module")
def ram() -> Iterator[GuestRam]:
    harness.built("atomics.bin")
    ram = GuestRam(SIZE)
    yield ram
    ram.close()


@pytest.fixture(scope="module")
def ops(ram: GuestRam) -> Atomics:
    return Atomics(ram)


@given(word=WORDS, operand=st.one_of(WORDS, st.integers(-(1 << 31), -1)))
def test_each_returns_the_old_value_and_stores_the_new(ram: GuestRam, ops: Atomics, word: int, operand: int) -> None:
    masked = operand & U32
    for operation, new in (
        (ops.xchg_u32, masked),
        (ops.fetch_add_u32, (word + masked) & U32),
        (ops.fetch_or_u32, word | masked),
        (ops.fetch_and_u32, word & masked),
        (ops.fetch_xor_u32, word ^ masked),
    ):
        ram.dwords[5] = word
        assert operation(20, operand) == word
        assert ram.dwords[5] == new
        assert (ram.dwords[4], ram.dwords[6]) == (0, 0)


@given(word=WORDS, expected=WORDS, new=WORDS)
def test_compare_and_exchange(ram: GuestRam, ops: Atomics, word: int, expected: int, new: int) -> None:
    ram.dwords[5] = word
    assert ops.cmpxchg_u32(20, expected, new) == word
    assert ram.dwords[5] == (new if word == expected else word)
    ram.dwords[5] = word
    assert ops.cmpxchg_u32(20, word, new) == word
    assert ram.dwords[5] == new


@pytest.mark.parametrize(
    "address", [-4, 1, 2, 3, SIZE, SIZE - 3, SIZE - 2, 1 << 63, 1 << 64, (1 << 64) - 4, -(1 << 70)]
)
def test_only_aligned_words_of_ram(ops: Atomics, address: int) -> None:
    for operation in (ops.xchg_u32, ops.fetch_add_u32, ops.fetch_or_u32, ops.fetch_and_u32, ops.fetch_xor_u32):
        with pytest.raises(ValueError, match="not the address"):
            operation(address, 0)
    with pytest.raises(ValueError, match="not the address"):
        ops.cmpxchg_u32(address, 0, 0)


def test_the_first_and_last_word(ram: GuestRam, ops: Atomics) -> None:
    for address in (0, SIZE - 4):
        assert ops.xchg_u32(address, 77) == 0
        assert ops.xchg_u32(address, 0) == 77


OTHER_CORE = """
#include <stdint.h>
/* What guest threads do at the same time: LOCK instructions on the same word. */
void add(uint32_t *word, unsigned times, uint32_t by)
{
    while (times--)
        __atomic_fetch_add(word, by, __ATOMIC_SEQ_CST);
}
"""


@pytest.mark.parametrize("name", ["fetch_add_u32", "cmpxchg_u32", "fetch_or_u32", "fetch_and_u32", "fetch_xor_u32"])
def test_they_are_atomic_against_other_cores(ram: GuestRam, ops: Atomics, tmp_path: Path, name: str) -> None:
    """A thread without the GIL adds 16 all the time while we change the low four bits: no addition is lost."""
    source = tmp_path / "other_core.c"
    source.write_text(OTHER_CORE)
    other_core = ctypes.CDLL(str(harness.compile_c(source, tmp_path / "other_core.so", "-shared", "-fPIC")))
    times = 3_000_000
    ram.dwords[8] = 0
    thread = threading.Thread(target=other_core.add, args=(ctypes.c_void_p(ram.address + 32), times, 16))
    thread.start()
    rounds = 0
    while thread.is_alive():
        rounds += 1
        if name == "fetch_add_u32":
            ops.fetch_add_u32(32, 1)
            ops.fetch_add_u32(32, -1)
        elif name == "cmpxchg_u32":
            old = ram.dwords[8]
            ops.cmpxchg_u32(32, old, old ^ 1)
        elif name == "fetch_or_u32":
            ops.fetch_or_u32(32, 5)
        elif name == "fetch_and_u32":
            ops.fetch_and_u32(32, ~3 & U32)
        else:
            ops.fetch_xor_u32(32, 9)
    thread.join()
    assert rounds > 100
    assert ram.dwords[8] >> 4 == (times & U32 >> 4)


def test_the_code_is_never_writable_and_executable(ops: Atomics) -> None:
    start = ctypes.addressof(ctypes.c_char.from_buffer(atomics.code()._mapping))
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(n, 16) for n in line.split()[0].split("-"))
        if first <= start < last:
            assert line.split()[1] == "r-xp"
            break
    else:
        pytest.fail("the mapping is not there")


def test_a_binary_of_another_version_is_refused() -> None:
    good = harness.built("atomics.bin").read_bytes()
    for bad in (b"", good[:31], b"\x06" + good[1:], good[:4] + b"\xff\xff" + good[6:], good[:4] + b"\0" + good[5:]):
        with pytest.raises(ValueError, match=r"atomics\.bin"):
            Code(bad)


def test_the_operations_outlive_a_closed_ram() -> None:
    """A thread that comes late must not crash the monitor."""
    gone = GuestRam(SIZE)
    late = Atomics(gone)
    gone.close()
    assert late.xchg_u32(0, 1) == 0


def test_the_tsc_goes_on() -> None:
    readings = [read_tsc() for _ in range(100)]
    assert readings == sorted(readings)
    assert readings[-1] > readings[0]
