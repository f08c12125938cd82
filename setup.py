"""A wheel carries the built guest code: the build runs the guest's make before it collects the packages.

All else is in pyproject.toml.
"""

import shutil
import subprocess

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.errors import ExecError


class BuildGuest(build_py):
    """build_py with the guest code; an editable install finds what `make guest` builds in the tree instead."""

    def run(self) -> None:
        if not self.editable_mode:
            missing = [tool for tool in ("make", "gcc", "ld") if shutil.which(tool) is None]
            if missing:
                raise ExecError(f"building the guest code needs {', '.join(missing)} (Debian: make, gcc, binutils)")
            try:
                subprocess.run(["make", "-s", "-C", "guest", "shipped"], check=True)
            except subprocess.CalledProcessError as error:
                raise ExecError(f"building the guest code failed: {error}") from None
        super().run()


setup(cmdclass={"build_py": BuildGuest})
