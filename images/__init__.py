"""Images that pyvmm brings along: a folder each with its recipe, built by `make guest` into `images/_built/`."""

import os

from guest import NotBuilt

BUILT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_built")
"""Folder of the built images."""


def path(name: str) -> str:
    """Path of the program that image `name` starts, such as "hello".

    Raises NotBuilt when it is not there.
    """
    program = os.path.join(BUILT, name, name)
    if not os.path.isfile(program):
        raise NotBuilt(program)
    return program
