"""A little of the instruction format (Intel SDM volume 2, chapter 2 and appendix A), in 64-bit mode.

`find_avx`. Unicorn has no AVX, but takes the VEX-coded form of an SSE instruction for the SSE instruction: a program
that did not ask CPUID would go on with wrong results instead of ending with #UD. So new translations that contain a
byte C4 or C5 are looked at instruction by instruction.

`stack_base`. Unicorn reports #GP where a CPU reports #SS, for an address that is not canonical.
"""

from __future__ import annotations

_VEX = (0xC4, 0xC5)
_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))
_FS_GS = (0x64, 0x65)
_PUSH_POP = frozenset((*range(0x50, 0x60), 0x68, 0x6A, 0x8F, 0x9C, 0x9D, 0xC2, 0xC3, 0xC8, 0xC9, 0xE8))
_SP, _BP = 4, 5
_GENERAL = {(2, 0xF2), (2, 0xF3), (2, 0xF5), (2, 0xF6), (2, 0xF7), (3, 0xF0)}
"""(map, opcode) of the VEX-coded instructions on general registers, BMI1 and BMI2, which Unicorn has."""

# What follows an opcode: _M a ModRM byte, and an immediate operand of 1, 2, 4 (2 with prefix 66) or 8 bytes.
_M, _1, _2, _Z, _MOFFS, _FULL, _GROUP = 1, 2, 4, 8, 16, 32, 64


def _one_byte() -> bytes:
    kinds = bytearray(256)
    for row in range(0, 0x40, 8):
        kinds[row : row + 6] = bytes((_M, _M, _M, _M, _1, _Z))
    for first, last, kind in (
        (0x63, 0x63, _M), (0x68, 0x68, _Z), (0x69, 0x69, _M | _Z), (0x6A, 0x6A, _1), (0x6B, 0x6B, _M | _1),
        (0x70, 0x7F, _1), (0x80, 0x80, _M | _1), (0x81, 0x81, _M | _Z), (0x82, 0x83, _M | _1), (0x84, 0x8F, _M),
        (0xA0, 0xA3, _MOFFS), (0xA8, 0xA8, _1), (0xA9, 0xA9, _Z), (0xB0, 0xB7, _1), (0xB8, 0xBF, _FULL),
        (0xC0, 0xC1, _M | _1), (0xC2, 0xC2, _2), (0xC6, 0xC6, _M | _1), (0xC7, 0xC7, _M | _Z), (0xC8, 0xC8, _1 | _2),
        (0xCA, 0xCA, _2), (0xCD, 0xCD, _1), (0xD0, 0xD3, _M), (0xD8, 0xDF, _M), (0xE0, 0xE7, _1), (0xE8, 0xE9, _Z),
        (0xEB, 0xEB, _1), (0xF6, 0xF6, _M | _1 | _GROUP), (0xF7, 0xF7, _M | _Z | _GROUP), (0xFE, 0xFF, _M),
    ):  # fmt: skip
        kinds[first : last + 1] = bytes((kind,)) * (last + 1 - first)
    return bytes(kinds)


def _two_byte() -> bytes:
    kinds = bytearray((_M,)) * 256
    for first, last, kind in (
        (0x04, 0x0C, 0), (0x0E, 0x0E, 0), (0x0F, 0x0F, _M | _1), (0x30, 0x37, 0), (0x70, 0x73, _M | _1),
        (0x77, 0x77, 0), (0x80, 0x8F, _Z), (0xA0, 0xA2, 0), (0xA4, 0xA4, _M | _1), (0xA8, 0xAA, 0),
        (0xAC, 0xAC, _M | _1), (0xBA, 0xBA, _M | _1), (0xC2, 0xC2, _M | _1), (0xC4, 0xC6, _M | _1), (0xC8, 0xCF, 0),
    ):  # fmt: skip
        kinds[first : last + 1] = bytes((kind,)) * (last + 1 - first)
    kinds[0x0D] = _M
    return bytes(kinds)


_MAPS = _one_byte(), _two_byte(), bytes((_M,)) * 256, bytes((_M | _1,)) * 256
"""By map: one byte, 0F, 0F 38, 0F 3A."""


def find_avx(code: bytes) -> int:
    """Offset of the first instruction that is VEX-coded and not one on general registers, in code that begins with an
    instruction; -1 for none. Its prefixes belong to it."""
    at = 0
    while at < len(code):
        try:
            end, foreign = _instruction(code, at)
        except IndexError:
            return -1  # the last instruction is cut off
        if foreign:
            return at
        at = end
    return -1


def _instruction(code: bytes, at: int) -> tuple[int, bool]:
    """Where the instruction at `at` ends, and whether it is what `find` looks for."""
    operand16 = address32 = False
    while code[at] in _PREFIXES:
        operand16 |= code[at] == 0x66
        address32 |= code[at] == 0x67
        at += 1
    wide = False
    while 0x40 <= code[at] <= 0x4F:
        wide = bool(code[at] & 8)
        at += 1
    if code[at] in _VEX:
        return _vex(code, at)
    opcode, number = code[at], 0
    at += 1
    if opcode == 0x0F:
        opcode, number, at = code[at], 1, at + 1
        if opcode in (0x38, 0x3A):
            opcode, number, at = code[at], 2 if opcode == 0x38 else 3, at + 1
    kind = _MAPS[number][opcode]
    if kind & _GROUP and code[at] & 0x30:
        kind = _M  # only the first two of the group, TEST, have an immediate operand
    if kind & _M:
        at = _modrm(code, at)
    at += (kind & _1) // _1 + (kind & _2) // _2 * 2
    if kind & _Z:
        at += 2 if operand16 and not wide else 4
    elif kind & _FULL:
        at += 8 if wide else 2 if operand16 else 4
    elif kind & _MOFFS:
        at += 4 if address32 else 8
    return at, False


def _vex(code: bytes, at: int) -> tuple[int, bool]:
    short = code[at] == 0xC5
    number = 1 if short else code[at + 1] & 31
    at += 2 if short else 3
    if (number, code[at]) not in _GENERAL:
        return at, True
    return _modrm(code, at + 1) + (number == 3), False


def _modrm(code: bytes, at: int) -> int:
    """Where a ModRM byte with its SIB byte and displacement ends."""
    mode, base = code[at] >> 6, code[at] & 7
    at += 1
    if mode == 3:
        return at
    if base == 4:
        base = code[at] & 7
        at += 1
    if mode == 0:
        return at + 4 if base == 5 else at
    return at + (1 if mode == 1 else 4)


def stack_base(code: bytes) -> int:
    """The register, 4 (RSP) or 5 (RBP), by which an instruction uses the stack segment; -1 if it uses another one, or
    none. `code` begins with the instruction; of one that uses two segments the stack's counts."""
    at = rex = 0
    other = False
    try:
        while code[at] in _PREFIXES:
            other |= code[at] in _FS_GS
            at += 1
        while 0x40 <= code[at] <= 0x4F:
            rex = code[at]
            at += 1
        opcode = code[at]
        if opcode in _PUSH_POP or (opcode == 0xFF and code[at + 1] >> 3 & 7 in (2, 6)):
            return _SP
        number = 0
        if opcode == 0x0F:
            number = {0x38: 2, 0x3A: 3}.get(code[at + 1], 1)
            at += 1 if number == 1 else 2
        if other or not _MAPS[number][code[at]] & _M or code[at + 1] >= 0xC0:
            return -1
        mode, base = code[at + 1] >> 6, code[at + 1] & 7
        if base == 4:
            base = code[at + 2] & 7
        elif mode == 0 and base == 5:
            return -1  # relative to RIP
        if base not in (_SP, _BP) or rex & 1 or (mode == 0 and base == 5):
            return -1
        return base
    except IndexError:
        return -1
