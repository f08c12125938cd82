"""The project itself: its make targets, the guest build, the wheel, and the rules that hold for all modules."""

from __future__ import annotations

import ast
import shutil
import stat
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

import guest
import images
from tests.harness import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

NOT_SOURCES = shutil.ignore_patterns(
    ".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "build", "_built", "*.egg-info"
)
SLOW_TO_IMPORT = {
    "asyncio", "dataclasses", "elftools", "inspect", "logging",
    "pathlib", "shutil", "subprocess", "tempfile", "unicorn",
}  # fmt: skip


def run(
    command: Sequence[str | Path], *, cwd: Path = ROOT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with nothing built in it."""
    copy = tmp_path_factory.mktemp("tree") / "pyvmm"
    shutil.copytree(ROOT, copy, ignore=NOT_SOURCES)
    return copy


def tools(folder: Path, *names: str) -> str:
    """A PATH on which only these commands are found."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    return str(folder)


# make


def test_help_is_the_default_and_lists_the_targets() -> None:
    shown = run(["make", "--no-print-directory"])
    assert shown.returncode == 0
    listed = [line.split()[1] for line in shown.stdout.splitlines()]
    assert listed == ["help", "run", "test", "lint", "guest", "images", "lab", "bench", "clean"]


def test_each_target_asks_for_the_packages_it_needs() -> None:
    def asked(target: str) -> set[str]:
        (line,) = [line for line in run(["make", "-n", target]).stdout.splitlines() if "tools/packages" in line]
        return set(line.split("tools/packages")[1].split())

    assert asked("run") == asked("guest") == {"python3-venv", "gcc", "libc6-dev"}
    assert asked("test") == asked("bench") == asked("run") | {"busybox-static"}
    assert asked("lab") == asked("test") | {"linux-image-amd64", "qemu-system-x86"}


def test_missing_packages_without_root_are_one_line(tmp_path: Path) -> None:
    path = tools(tmp_path / "bin", "sh", "apt-get", "dpkg-query", "grep")
    fake_id = tmp_path / "bin" / "id"
    fake_id.write_text("#!/bin/sh\necho 1000\n")
    fake_id.chmod(0o755)
    done = run([ROOT / "tools/packages", "gcc", "libc6-dev", "no-such-package"], env={"PATH": path})
    assert done.returncode == 1
    assert done.stdout + done.stderr == "pyvmm needs these Debian packages: gcc libc6-dev no-such-package\n"


def test_packages_that_are_there_are_not_touched() -> None:
    done = run([ROOT / "tools/packages", "gcc", "libc6-dev"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# The guest build


def test_guest_build_is_incremental_and_parallel(tree: Path) -> None:
    make: list[str | Path] = ["make", "-s", "-C", tree / "guest"]
    done = run([*make, "-j4", "shipped"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert run([*make, "-q", "shipped"]).returncode == 0, "a second build has something to do"
    (tree / "guest/vdso/vvar.h").touch()
    assert run([*make, "-q", "_built/vdso.so"]).returncode == 1, "a changed header is not noticed"
    assert run([*make, "-q", "../images/_built/hello/hello"]).returncode == 0
    done = run([*make, "clean"])
    assert done.returncode == 0
    assert not list(tree.rglob("_built"))


def test_two_guest_builds_at_once(tree: Path) -> None:
    builds = [
        subprocess.Popen(["make", "-s", "-B", "-C", tree / "guest", "shipped"], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    assert [build.communicate(timeout=60)[1] for build in builds] == [b""] * len(builds)
    assert [build.returncode for build in builds] == [0] * len(builds)
    assert not list(tree.rglob(".part*"))


def test_a_program_s_own_flags_and_warnings(tree: Path) -> None:
    source = tree / "guest/programs/flags_test.c"
    source.parent.mkdir(exist_ok=True)
    code = "#include <math.h>\nint main(int n, char **v) { return v ? cbrt(n) * ANSWER : 1; }\n"
    source.write_text(f"// build: -DANSWER=42 -lm\n{code}")
    target = "_built/programs/flags_test"
    done = run(["make", "-s", "-C", tree / "guest", target])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert run([tree / "guest" / target]).returncode == 42
    source.write_text("int main(int unused) { return 0; }\n")
    assert run(["make", "-s", "-C", tree / "guest", target]).returncode != 0


def test_hello_is_small_static_and_reports_a_failed_write(tree: Path) -> None:
    assert run(["make", "-s", "-C", tree / "guest", "shipped"]).returncode == 0
    hello = tree / "images/_built/hello/hello"
    assert hello.stat().st_size < 4096
    assert hello.stat().st_mode & stat.S_IXUSR
    done = run([hello])
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello from pyvmm!\n", "")
    with open("/dev/full", "wb") as full:
        assert subprocess.run([hello], stdout=full).returncode == 1


def test_a_file_that_is_not_built_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "stub.bin").write_bytes(b"\xc3")
    monkeypatch.setattr(guest, "BUILT", str(tmp_path))
    monkeypatch.setattr(images, "BUILT", str(tmp_path))
    assert guest.built("stub.bin") == b"\xc3"
    with pytest.raises(guest.NotBuilt, match=r"^\S*/vdso.so is missing: `make guest` in the source tree builds it$"):
        guest.built("vdso.so")
    with pytest.raises(guest.NotBuilt, match=r"^\S*/hello/hello is missing"):
        images.path("hello")


# The wheel


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the tree, built with the setuptools that the dev extra brings."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = run([*pip, "--wheel-dir", folder, tree])
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("pyvmm-*.whl")
    return built


@pytest.mark.slow
def test_a_wheel_carries_the_built_guest_and_no_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        scripts = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "pyvmm = vmm.cli:main" in archive.read(scripts).decode()
    flat = {f"guest/_built/{source.stem}.bin" for source in (ROOT / "guest").glob("*.S")}
    built = {"guest/_built/vdso.so", "images/_built/hello/hello"}
    assert {name for name in names if not name.endswith(".py")} == flat | built
    assert {name.split("/")[0] for name in names} <= {"vmm", "devices", "guest", "images"}
    sources = {str(path.relative_to(ROOT)) for top in ("vmm", "devices") for path in (ROOT / top).rglob("*.py")}
    assert sources <= set(names), "a folder without __init__.py is left out"


@pytest.mark.slow
def test_a_wheel_works_without_a_compiler(wheel: Path, tmp_path: Path) -> None:
    assert run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"]).returncode == 0
    python = tmp_path / "venv/bin/python"
    done = run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel], cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    code = (
        "import guest, images, sys;"
        "assert guest.__file__.startswith(sys.prefix), guest.__file__;"
        "assert guest.built('stub.bin') and guest.built('vdso.so')[:4] == b'\\x7fELF';"
        "assert open(images.path('hello'), 'rb').read(4) == b'\\x7fELF'"
    )
    done = run([python, "-c", code], cwd=tmp_path, env={"PATH": tools(tmp_path / "bin", "sh")})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_a_wheel_is_not_built_without_a_compiler(tree: Path, tmp_path: Path) -> None:
    path = tools(tmp_path / "bin", "sh", "make")
    build = f"from setuptools import build_meta; build_meta.build_wheel('{tmp_path}')"
    done = run([sys.executable, "-c", build], cwd=tree, env={"PATH": path})
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].endswith("building the guest code needs gcc, ld (Debian: make, gcc, binutils)")


# Rules for all modules


def imports(node: ast.AST, at_once: bool = True) -> Iterator[tuple[str, bool]]:
    """Modules that this code imports at run time, and whether as soon as it is itself imported."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, at_once) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module or "", at_once
    type_checking = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    for child in getattr(node, "orelse", ()) if type_checking else ast.iter_child_nodes(node):
        yield from imports(child, at_once and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_modules_import_late_what_is_slow_to_import() -> None:
    """The budget for pyvmm's imports is 50 ms; each of these costs 10 to 46."""
    wrong = []
    for path in modules("vmm", "devices", "guest", "images"):
        allowed = {"unicorn"} if (ROOT / "vmm/emulator") in path.parents else set()
        for name, at_once in imports(ast.parse(path.read_text())):
            if at_once and name.split(".")[0] in SLOW_TO_IMPORT - allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_vmm_knows_no_devices() -> None:
    """Only the places that put a machine together may import devices/ at run time."""
    together = (ROOT / "vmm/machine.py", ROOT / "vmm/cli")
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules("vmm")
        if not any(path == place or place in path.parents for place in together)
        for name, _ in imports(ast.parse(path.read_text()))
        if name.split(".")[0] == "devices"
    ]
    assert not wrong
