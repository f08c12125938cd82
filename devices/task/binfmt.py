"""What a file is that is to be run: an ELF program with the loader that it asks for, or a script whose interpreter is
run in its place (fs/binfmt_elf.c, fs/binfmt_script.c)."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from devices.errors import SysError
from devices.fs.hostfile import HostFileBacking
from devices.task.elf import Elf, NotLoadable, parse
from devices.task.executable import Executable, open_program
from devices.vfs.abi import AT_FDCWD
from devices.vfs.open import open_for_exec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.memory.backing import Backing
    from devices.task.task import Task
    from devices.vfs.files import OpenFile
    from devices.vfs.path import Path

SCRIPT_HEAD = 256
"""BINPRM_BUF_SIZE: bytes of a file that tell what it is."""
SCRIPT_DEPTH = 5
"""How many interpreters of interpreters there may be."""
ADVICE = "`pyvmm boot host -- FILE` or `pyvmm boot DIRECTORY -- FILE`"


class Loader(NamedTuple):
    """The program of PT_INTERP."""

    elf: Elf
    contents: Backing
    file: OpenFile


class Program(NamedTuple):
    """A program found and checked. Whoever has it takes over `executable` or calls release_locked()."""

    executable: Executable | None
    """None for a host file that the machine booted by itself."""
    elf: Elf
    contents: Backing
    loader: Loader | None
    argv: list[bytes]
    filename: bytes
    """As it was asked for (AT_EXECFN): the script's name for a script."""
    place: Path | None

    @property
    def file(self) -> OpenFile | None:
        return self.executable.file if self.executable is not None else None

    def loaded_locked(self) -> None:
        """The loader is mapped, or not wanted any more."""
        if self.loader is not None:
            self.loader.file.put_locked()

    def release_locked(self) -> None:
        """It is not run after all."""
        self.loaded_locked()
        if self.executable is not None:
            self.executable.release_locked()


def open_image(path: bytes) -> HostFileBacking:
    """Open the host file `path` to run it. OSError, NotLoadable."""
    real = os.path.realpath(path)
    fd = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise NotLoadable("is a directory" if stat.S_ISDIR(mode) else "is not a regular file")
    return HostFileBacking(fd, real)


def parse_backing(contents: Backing, size: int) -> Elf:
    """The ELF header of what a mapping would show. NotLoadable."""

    def read(offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        return bytes(buffer[: contents.read_into(memoryview(buffer), offset)])

    return parse(read, size)


def load_image(image: HostFileBacking, argv: Sequence[bytes]) -> Program:
    """The program in a host file that is booted by itself; NotLoadable for one that needs more files than that."""
    elf = parse_backing(image, image.size)
    if elf.interpreter is not None:
        name = elf.interpreter.decode(errors="replace")
        raise NotLoadable(f"is dynamically linked (it needs {name}); boot it in a root file system: {ADVICE}")
    return Program(None, elf, image, None, list(argv), image.path, None)


def find_program(
    task: Task, place: Path, filename: bytes, argv: Sequence[bytes], script_name: bytes | None = None
) -> Program:
    """What is run for the file at `place`, which may be executed: itself or, for a script, its interpreter.

    `script_name` is how an interpreter can open a script, by default `filename`; empty: it cannot. SysError (ENOENT,
    EACCES, ELOOP, ETXTBSY, ELIBBAD...), NotLoadable for what is no program."""
    words = list(argv)
    name = filename if script_name is None else script_name
    for _ in range(SCRIPT_DEPTH + 1):
        executable = Executable(task, place)
        try:
            interpreter = interpreter_of(executable.contents)
            if interpreter is None:
                return program_of(task, executable, filename, words)
        except BaseException:
            executable.release_locked()
            raise
        executable.release_locked()
        if not name:
            raise SysError(errno.ENOENT, "a script by a descriptor that will be closed")
        words = [*interpreter, name, *words[1:]]
        name = interpreter[0]
        place = open_for_exec(task, AT_FDCWD, name)
    raise SysError(errno.ELOOP, "too many interpreters of interpreters")


def program_of(task: Task, executable: Executable, filename: bytes, argv: list[bytes]) -> Program:
    inode = executable.path.inode
    inode.refresh()
    elf = parse_backing(executable.contents, inode.size)
    loader = loader_of(task, elf.interpreter) if elf.interpreter is not None else None
    return Program(executable, elf, executable.contents, loader, argv, filename, executable.path)


def loader_of(task: Task, name: bytes) -> Loader:
    """SysError: what opening it gives; ELIBBAD for what is no loader."""
    place = open_for_exec(task, AT_FDCWD, name)
    file, contents = open_program(task, place)
    try:
        place.inode.refresh()
        return Loader(parse_backing(contents, place.inode.size), contents, file)
    except NotLoadable as error:
        file.put_locked()
        raise SysError(errno.ELIBBAD, f"the loader {error}") from None
    except BaseException:
        file.put_locked()
        raise


def interpreter_of(contents: Backing) -> list[bytes] | None:
    """Interpreter and argument of a script, None for another file. NotLoadable for a script without interpreter."""
    buffer = bytearray(SCRIPT_HEAD)
    length = contents.read_into(memoryview(buffer), 0)
    return script_words(bytes(buffer[: length or 0])) if buffer[:2] == b"#!" else None


def script_words(head: bytes) -> list[bytes]:
    """Interpreter and argument of the `#!` line in the first bytes of a file (load_script()). NotLoadable."""
    head = head.ljust(SCRIPT_HEAD, b"\0")[: SCRIPT_HEAD - 1]
    line, newline, _ = head[2:].partition(b"\n")
    text = line.lstrip(b" \t")
    name = text.split(b"\0")[0].replace(b"\t", b" ").split(b" ")[0]
    if not name or (not newline and len(name) == len(text)):
        raise NotLoadable("is a script without an interpreter")  # or with a truncated one
    rest = text[len(name) :]
    argument = b"" if rest[:1] in (b"", b"\0") else rest.strip(b" \t").split(b"\0")[0]
    return [name, argument] if argument else [name]
