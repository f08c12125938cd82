"""The command `pyvmm`: one file a subcommand, imported when it is asked for (start-up time counts)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Sequence
    from typing import Any, NoReturn

EXIT_ERROR = 125
"""pyvmm's own failure; 0-124 and 126-255 are the program's."""

COMMANDS = {
    "boot": "run a program in a virtual machine",
    "image": "import, list, remove and inspect images",
    "doctor": "say what this host offers, and what to do about what it lacks",
    "syscalls": "list the system calls and how far each is served",
}

USAGE = "usage: pyvmm COMMAND [OPTION...]\n\ncommands:\n" + "".join(
    f"  {name:<10} {text}\n" for name, text in COMMANDS.items()
)


class UsageError(Exception):
    """Bad input from a person: one clear line."""


def parser_of(command: str, description: str, **more: Any) -> ArgumentParser:
    """A parser whose complaints are UsageErrors."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UsageError(f"{command}: {message} (see pyvmm {command} --help)")

    def formatter(prog: str) -> argparse.HelpFormatter:
        # without a width argparse imports shutil, and that lzma and bz2, for every option that is added: 6 ms
        return argparse.HelpFormatter(prog, width=100)

    return Parser(
        prog=f"pyvmm {command}", description=description, allow_abbrev=False, formatter_class=formatter, **more
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE + "\n`pyvmm COMMAND --help` tells more.")
        return 0 if words else EXIT_ERROR
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"pyvmm {version('pyvmm')}")
        return 0
    if words[0] not in COMMANDS:
        return complain(f"there is no command {words[0]!r}; commands: {', '.join(COMMANDS)}")
    command = __import__(f"vmm.cli.{words[0]}", fromlist=["run"])
    try:
        status: int = command.run(words[1:])
    except UsageError as error:
        return complain(str(error))
    except BrokenPipeError:
        # whoever read our output has enough; keep the interpreter's flush at exit from complaining
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    return status


def complain(text: str) -> int:
    """Print pyvmm's one line; the status that goes with it."""
    tell(f"pyvmm: {text}\n")
    return EXIT_ERROR


def tell(text: str) -> None:
    """Write to the standard error stream; that nobody reads it changes nothing."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except BrokenPipeError:
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
