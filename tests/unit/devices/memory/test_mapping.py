"""devices/memory/mapping.py: mmap, munmap, mprotect and brk; errors as man 2 has them, in Linux's order."""

from __future__ import annotations

import errno

import pytest

from devices.errors import SysError
from devices.memory import abi
from devices.memory.backing import SpecialPages
from tests.unit.devices.memory.memory_model import (
    ANON,
    BASE,
    EXEC,
    FIXED,
    INFINITY,
    MIB,
    NONE,
    PAGE,
    PRIVATE,
    READ,
    REGION,
    RW,
    SHARED,
    TASK_SIZE,
    WRITE,
    Bytes,
    Machine,
    Space,
    fails,
    fault_of,
    layout,
)
from vmm.memory.frames import OutOfFrames

P = PRIVATE | ANON


def anon(space: Space, pages: int, prot: int = RW) -> int:
    return space.mmap(0, pages * PAGE, prot, P)


@pytest.mark.parametrize(
    ("address", "length", "prot", "flags", "offset", "number"),
    [
        (0, 0, READ, P, 0, errno.EINVAL),
        (0, INFINITY, READ, P, 0, errno.ENOMEM),
        (0, INFINITY - PAGE + 1, READ, P, 0, errno.ENOMEM),
        (0, TASK_SIZE + PAGE, READ, P, 0, errno.ENOMEM),
        (0, PAGE, READ, PRIVATE, INFINITY - PAGE + 1, errno.EOVERFLOW),
        (0, PAGE, READ, PRIVATE, (1 << 63) - PAGE, errno.EOVERFLOW),
        (0, PAGE, READ, ANON, 0, errno.EINVAL),
        (0, PAGE, READ, ANON | 3, 0, errno.EINVAL),
        (0, PAGE, READ, ANON | 4, 0, errno.EINVAL),
        (0, PAGE, READ, 0, 0, errno.EINVAL),
        (0, PAGE, READ, abi.MAP_SHARED_VALIDATE | abi.MAP_SYNC, 0, errno.EOPNOTSUPP),
        (0, PAGE, READ, abi.MAP_SHARED_VALIDATE | 0x400, 0, errno.EOPNOTSUPP),
        (0, PAGE, RW, SHARED | ANON | abi.MAP_GROWSDOWN, 0, errno.EINVAL),
        (BASE + 1, PAGE, READ, P | FIXED, 0, errno.EINVAL),
        (0, PAGE, READ, P | FIXED, 0, errno.EPERM),
        (0xF000, PAGE, READ, P | FIXED, 0, errno.EPERM),
        (TASK_SIZE, PAGE, READ, P | FIXED, 0, errno.ENOMEM),
        (TASK_SIZE - PAGE, 2 * PAGE, READ, P | FIXED, 0, errno.ENOMEM),
        (0xFFFF_FFFF_FF5F_E000, PAGE, READ, P | FIXED, 0, errno.ENOMEM),
        (INFINITY & -PAGE, 2 * PAGE, READ, P | FIXED, 0, errno.ENOMEM),
        (0, 1 << 40, RW, P, 0, errno.ENOMEM),
        (0, 1 << 40, RW, SHARED | ANON, 0, errno.ENOMEM),
    ],
)
def test_mmap_errors(space: Space, address: int, length: int, prot: int, flags: int, offset: int, number: int) -> None:
    with fails(number):
        space.mmap(address, length, prot, flags, None if flags & ANON else Bytes(b""), offset)
    assert layout(space) == []


def test_what_is_not_reserved_may_be_larger_than_memory(space: Space) -> None:
    for flags in (P | abi.MAP_NORESERVE, SHARED | ANON | abi.MAP_NORESERVE):
        assert space.mmap(0, 1 << 40, RW, flags)
    address = space.mmap(0, 1 << 40, READ, P)
    with fails(errno.ENOMEM):
        space.mprotect(address, 1 << 40, RW)
    space.store(space.mmap(0, 1 << 40, RW, P | abi.MAP_NORESERVE) + (1 << 39), 1)


def test_addresses_go_downwards_and_fill_holes(space: Space) -> None:
    first = anon(space, 2)
    assert first == space.mmap_base - 2 * PAGE
    second = anon(space, 3, READ)
    assert second == first - 3 * PAGE
    space.munmap(first, PAGE)
    assert anon(space, 2, EXEC) == second - 2 * PAGE, "the hole is too small"
    assert anon(space, 1) == first
    space.munmap(first, 2 * PAGE)
    assert anon(space, 2) == first, "right up to the base again"


def test_holes_that_grow_together_are_found(space: Space) -> None:
    base = space.mmap_base
    space.mmap(base - 40 * PAGE, 40 * PAGE, NONE, P | FIXED)
    space.munmap(base - 10 * PAGE, PAGE)
    assert anon(space, 2) == base - 42 * PAGE, "no hole is large enough"
    space.munmap(base - 11 * PAGE, PAGE)
    assert anon(space, 2) == base - 11 * PAGE


def test_whole_2_mib_pages_are_aligned(space: Space) -> None:
    anon(space, 1)
    assert space.mmap(0, 2 * REGION, RW, P) % REGION == 0
    assert space.mmap(0, REGION + PAGE, RW, P) % REGION != 0


def test_bottom_up_when_the_top_is_full(space: Space) -> None:
    top = space.mmap_base
    space.mmap(abi.MMAP_MIN_ADDR, top - abi.MMAP_MIN_ADDR, NONE, P | FIXED)
    assert anon(space, 1) == top
    space.mmap(top, TASK_SIZE - top, NONE, P | FIXED)
    with fails(errno.ENOMEM):
        anon(space, 1)


def test_hints(space: Space) -> None:
    assert space.mmap(BASE, PAGE, RW, P) == BASE
    assert space.mmap(BASE + PAGE + 5, PAGE, READ, P) == BASE + PAGE
    assert space.mmap(BASE, PAGE, RW, P) != BASE
    assert space.mmap(1, PAGE, RW, P) == space.mmap_base - 2 * PAGE, "within the first page is no hint"
    assert space.mmap(PAGE, PAGE, RW, P) == abi.MMAP_MIN_ADDR
    assert space.mmap(TASK_SIZE, PAGE, RW, P) < space.mmap_base
    low = space.mmap(0, PAGE, RW, P | abi.MAP_32BIT)
    assert low == BASE + 2 * PAGE


def test_fixed_replaces_and_noreplace_does_not(space: Space) -> None:
    address = space.mmap(BASE, 4 * PAGE, RW, P | FIXED)
    space.store(address + PAGE, 7)
    space.settle()
    with fails(errno.EEXIST):
        space.mmap(BASE - PAGE, 2 * PAGE, RW, P | abi.MAP_FIXED_NOREPLACE)
    assert space.load(address + PAGE) == 7
    assert space.mmap(BASE + PAGE, PAGE, READ, P | FIXED) == BASE + PAGE
    space.settle()
    assert space.load(address + PAGE) == 0
    assert layout(space) == [
        (BASE, BASE + PAGE, RW),
        (BASE + PAGE, BASE + 2 * PAGE, READ),
        (BASE + 2 * PAGE, BASE + 4 * PAGE, RW),
    ]
    assert space.mmap(BASE - PAGE, PAGE, RW, P | abi.MAP_FIXED_NOREPLACE) == BASE - PAGE
    assert layout(space)[0] == (BASE - PAGE, BASE + PAGE, RW), "and is joined"


def test_a_stack_s_gap_is_kept_free(space: Space) -> None:
    space.mmap(BASE, PAGE, RW, P | FIXED | abi.MAP_GROWSDOWN)
    assert space.mmap(BASE - 10 * PAGE, PAGE, RW, P) != BASE - 10 * PAGE
    assert space.mmap(BASE - 300 * PAGE, PAGE, RW, P) == BASE - 300 * PAGE


@pytest.mark.parametrize(
    ("resource", "value", "prot", "flags", "number"),
    [
        (abi.RLIMIT_AS, 10 * PAGE, NONE, P, errno.ENOMEM),
        (abi.RLIMIT_DATA, 10 * PAGE, RW, P, errno.ENOMEM),
        (abi.RLIMIT_MEMLOCK, 10 * PAGE, RW, P | abi.MAP_LOCKED, errno.EAGAIN),
        (abi.RLIMIT_MEMLOCK, 0, RW, P | abi.MAP_LOCKED, errno.EPERM),
    ],
)
def test_limits(space: Space, resource: int, value: int, prot: int, flags: int, number: int) -> None:
    space.ipc_lock = False
    space.rlimits = {**dict(enumerate(space.rlimits[i] for i in range(16))), resource: (value, INFINITY)}
    if value:
        space.mmap(BASE, 10 * PAGE, prot, flags | FIXED)
        if resource != abi.RLIMIT_MEMLOCK:
            space.mmap(BASE, 10 * PAGE, prot, flags | FIXED)  # what it replaces does not count
    with fails(number):
        space.mmap(0, PAGE, prot, flags)
    if resource == abi.RLIMIT_DATA:
        space.mmap(0, PAGE, READ, P)
        space.mmap(0, PAGE, RW, SHARED | ANON)
        with fails(errno.ENOMEM):
            space.mprotect(space.mmap(0, PAGE, READ, P), PAGE, RW)
    if resource == abi.RLIMIT_MEMLOCK:
        space.ipc_lock = True
        space.mmap(0, PAGE, prot, flags)


def test_too_many_areas(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devices.memory.mapping.MAX_MAP_COUNT", 5)
    address = space.mmap(BASE, 9 * PAGE, RW, P | FIXED)
    for page in (1, 3):
        space.mprotect(address + page * PAGE, PAGE, READ)
    with fails(errno.ENOMEM):
        space.mprotect(address + 6 * PAGE, PAGE, READ)
    with fails(errno.ENOMEM):
        space.munmap(address + 6 * PAGE, PAGE)
    space.munmap(address, PAGE)
    assert space.mmap(0, PAGE, RW, P)
    assert space.mmap(0, PAGE, READ, P)
    with fails(errno.ENOMEM):
        space.mmap(0, PAGE, EXEC, P)


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (BASE + 1, PAGE),
        (BASE, 0),
        (BASE, INFINITY),
        (BASE, TASK_SIZE),
        (TASK_SIZE, PAGE),
        (TASK_SIZE + PAGE, PAGE),
        (0xFFFF_8080_0000_0000, PAGE),
        (INFINITY & -PAGE, PAGE),
    ],
)
def test_munmap_errors(space: Space, address: int, length: int) -> None:
    space.mmap(BASE, PAGE, RW, P | FIXED)
    with fails(errno.EINVAL):
        space.munmap(address, length)
    assert len(layout(space)) == 1


def test_munmap_of_everything_is_quick_and_whole(space: Space) -> None:
    for at in (BASE, 1 << 40, 1 << 46):
        space.mmap(at, 3 * PAGE, RW, P | FIXED)
        space.store(at + PAGE, 1)
    space.munmap(0, TASK_SIZE)
    assert layout(space) == []
    assert space.resident == 0


@pytest.mark.parametrize(
    ("address", "length", "prot", "number"),
    [
        (BASE + 1, PAGE, READ, errno.EINVAL),
        (BASE + 1, 0, READ, errno.EINVAL),
        (BASE, INFINITY, READ, errno.ENOMEM),
        (BASE, INFINITY - PAGE + 1, READ, errno.ENOMEM),
        (BASE, PAGE, 0x10, errno.EINVAL),
        (BASE, PAGE, READ | abi.PROT_GROWSDOWN | abi.PROT_GROWSUP, errno.EINVAL),
        (BASE, PAGE, READ | abi.PROT_GROWSDOWN, errno.EINVAL),
        (BASE, PAGE, READ | abi.PROT_GROWSUP, errno.EINVAL),
        (BASE - PAGE, 2 * PAGE, READ, errno.ENOMEM),
        (BASE - PAGE, PAGE, READ, errno.ENOMEM),
        (TASK_SIZE, PAGE, READ, errno.ENOMEM),
    ],
)
def test_mprotect_errors(space: Space, address: int, length: int, prot: int, number: int) -> None:
    space.mmap(BASE, 2 * PAGE, RW, P | FIXED)
    with fails(number):
        space.mprotect(address, length, prot)
    assert layout(space) == [(BASE, BASE + 2 * PAGE, RW)]


def test_mprotect_changes_what_is_before_a_hole(space: Space) -> None:
    space.mmap(BASE, 4 * PAGE, RW, P | FIXED)
    space.munmap(BASE + 2 * PAGE, PAGE)
    space.mprotect(BASE, 0, READ)
    with fails(errno.ENOMEM):
        space.mprotect(BASE, 4 * PAGE, READ)
    assert layout(space) == [(BASE, BASE + 2 * PAGE, READ), (BASE + 3 * PAGE, BASE + 4 * PAGE, RW)]
    space.mprotect(BASE, PAGE, RW | abi.PROT_SEM)
    assert layout(space)[0] == (BASE, BASE + PAGE, RW)


def test_mprotect_follows_through_to_the_cpu(space: Space) -> None:
    address = space.mmap(BASE, 2 * PAGE, RW, P | FIXED)
    for prot, can in ((READ, "r"), (NONE, ""), (RW, "rw"), (READ | EXEC, "rx"), (WRITE, "rw"), (RW | EXEC, "rwx")):
        space.mprotect(address, PAGE, prot)
        space.settle()
        for kind, letter in ((READ, "r"), (WRITE, "w"), (EXEC, "x")):
            got = space.access(address, kind)
            if letter in can:
                assert isinstance(got, int)
            else:
                assert fault_of(got) == (abi.SIGSEGV, abi.SEGV_ACCERR)
        space.settle()


def test_contents_outlive_a_time_without_access(space: Space) -> None:
    address = space.mmap(BASE, 2 * PAGE, RW, P | FIXED)
    space.store(address, 9)
    space.mprotect(address, 2 * PAGE, NONE)
    with fails(errno.EFAULT):
        space.read(address, 1)
    space.mprotect(address, 2 * PAGE, READ)
    assert space.load(address) == 9
    assert space.faults == 1


def test_a_file_that_is_not_writable_stays_so(space: Space) -> None:
    def check() -> tuple[Bytes, int]:
        return Bytes(b"x" * PAGE), abi.VM_MAYALL & ~abi.VM_MAYWRITE

    address = space.mmap(0, PAGE, READ, SHARED, check=check)
    with fails(errno.EACCES):
        space.mprotect(address, PAGE, RW)
    assert space.read(address, 1) == b"x"


def test_protecting_a_stack_with_all_that_grew(space: Space) -> None:
    space.mmap(BASE, PAGE, RW, P | FIXED | abi.MAP_GROWSDOWN)
    space.store(BASE - 5 * PAGE, 1)
    space.mprotect(BASE, PAGE, READ | abi.PROT_GROWSDOWN)
    space.settle()
    assert len(layout(space)) == 1
    assert fault_of(space.access(BASE - 5 * PAGE, WRITE)) == (abi.SIGSEGV, abi.SEGV_ACCERR)


def test_brk(space: Space) -> None:
    start = BASE + 123
    space.set_brk_start(start)
    assert space.brk(0) == start
    assert space.brk(start + 10) == start + 10
    assert layout(space) == [], "still within the program's last page"
    assert space.brk(start + 3 * PAGE) == start + 3 * PAGE
    assert layout(space) == [(BASE + PAGE, BASE + 4 * PAGE, RW)]
    space.write(start + 2 * PAGE, b"heap")
    assert space.brk(start + PAGE) == start + PAGE
    assert space.brk(start + 3 * PAGE) == start + 3 * PAGE
    assert space.read(start + 2 * PAGE, 4) == bytes(4)
    assert space.brk(start - 1) == start + 3 * PAGE
    assert space.brk(TASK_SIZE) == start + 3 * PAGE
    assert space.brk(INFINITY) == start + 3 * PAGE
    assert space.brk(start) == start
    assert layout(space) == []


def test_brk_stops_at_a_mapping_and_at_limits(space: Space) -> None:
    space.set_brk_start(BASE, program_data=PAGE)
    space.mmap(BASE + 9 * PAGE, PAGE, RW, P | FIXED)
    assert space.brk(BASE + 9 * PAGE) == BASE
    assert space.brk(BASE + 8 * PAGE) == BASE + 8 * PAGE
    space.brk(BASE)
    space.munmap(BASE + 9 * PAGE, PAGE)
    space.rlimits = {i: (4 * PAGE if i == abi.RLIMIT_DATA else INFINITY, INFINITY) for i in range(16)}
    assert space.brk(BASE + 4 * PAGE) == BASE
    assert space.brk(BASE + 3 * PAGE) == BASE + 3 * PAGE
    space.rlimits = {i: (5 * PAGE if i == abi.RLIMIT_AS else INFINITY, INFINITY) for i in range(16)}
    assert space.brk(BASE + 6 * PAGE) == BASE + 3 * PAGE
    space.rlimits = dict.fromkeys(range(16), (INFINITY, INFINITY))
    assert space.brk(BASE + (1 << 40)) == BASE + 3 * PAGE, "more than all memory"


def test_the_first_stack(space: Space) -> None:
    top = space.map_stack(8 * MIB)
    assert top == TASK_SIZE
    assert space.mmap_base < top - 128 * MIB
    space.write(top - 8, b"12345678")
    with fails(errno.EFAULT):
        space.write(top - 4, b"12345678")
    assert anon(space, 1) == space.mmap_base - PAGE


def test_randomness_moves_base_and_stack(machine: Machine) -> None:
    class Most:
        def below(self, limit: int) -> int:
            return limit - 1

    space = machine.space()
    top, base = space.map_stack(8 * MIB), space.mmap_base
    space.teardown()
    machine.random = Most()  # type: ignore[assignment]
    space = machine.space()
    assert space.map_stack(8 * MIB) == top - (0x40_0000 - 1) * PAGE
    assert space.mmap_base == base - ((1 << 28) - 1) * PAGE
    space.teardown()


def test_special_pages(machine: Machine) -> None:
    frames = [machine.frames.allocate() for _ in range(3)]
    for frame, text in zip(frames, (b"vvar", b"vdso", b"more"), strict=True):
        machine.ram.view[frame : frame + 4] = text
    vvar = SpecialPages(b"[vvar]", frames[:1], executable=False)
    vdso = SpecialPages(b"[vdso]", frames[1:], executable=True)
    spaces = [machine.space(), machine.space()]
    for space in spaces:
        address = space.install_special(vvar, vdso)
        assert space.read(address, 4) == b"vvar"
        assert space.read(address + PAGE, 4) == b"vdso"
        assert space.faults == 0
        assert isinstance(space.access(address + 2 * PAGE, EXEC), int)
        assert fault_of(space.access(address, EXEC)) == (abi.SIGSEGV, abi.SEGV_ACCERR)
        assert fault_of(space.access(address, WRITE)) == (abi.SIGSEGV, abi.SEGV_ACCERR)
        with fails(errno.EACCES):
            space.mprotect(address, PAGE, RW)
    space, other = spaces
    space.mprotect(address + PAGE, PAGE, RW)
    space.settle(other)
    space.write(address + PAGE, b"mine")
    assert other.read(address + PAGE, 4) == b"vdso", "a write is the writer's alone"
    machine.ram.view[frames[0]] = ord("V")
    assert other.read(address, 1) == b"V"
    space.munmap(address, 3 * PAGE)
    for space in spaces:
        space.teardown()
    assert vvar.mappings == vdso.mappings == 0
    for frame in frames:
        machine.frames.release(frame)
    machine.model.assert_all_free()


def test_populate(space: Space) -> None:
    address = space.mmap(BASE, 100 * PAGE, RW, P | FIXED | abi.MAP_POPULATE)
    assert space.resident == 100
    for page in range(100):
        space.store(address + page * PAGE, 1)
    assert space.faults == 0
    file = Bytes(b"f" * (5 * PAGE))
    address = space.mmap(0, 100 * PAGE, READ, PRIVATE | abi.MAP_POPULATE, file)
    assert space.read(address + 4 * PAGE, 1) == b"f"
    assert file.reads <= 2


def test_populate_does_what_memory_allows(machine: Machine) -> None:
    with machine.checked_space() as space:
        space.mmap(0, 1 << 30, RW, P | abi.MAP_POPULATE | abi.MAP_NORESERVE)
        assert machine.frames.free == 0


def test_no_frame_for_a_split_is_an_error_that_changes_nothing(large_machine: Machine) -> None:
    machine = large_machine
    with machine.checked_space() as space:
        address = space.mmap(0, REGION, RW, P | abi.MAP_POPULATE)
        space.store(address + 8 * PAGE, 3)
        rest = machine.frames.allocate_run(machine.frames.free)
        for change in (
            lambda: space.munmap(address + PAGE, PAGE),
            lambda: space.mprotect(address + PAGE, PAGE, READ),
            lambda: space.mmap(address + PAGE, PAGE, READ, P | FIXED),
        ):
            with pytest.raises((OutOfFrames, SysError)):
                change()
            space.settle()
            assert layout(space) == [(address, address + REGION, RW)]
            assert space.load(address + 8 * PAGE) == 3
        machine.frames.release_runs(rest)
