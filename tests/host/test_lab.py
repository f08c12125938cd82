"""The lab's pure parts: modules and their order, the archive, what comes back and what it means, what is run."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import shutil
import stat
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import ROOT
from tests.lab import channel, initramfs, kernel, selection, verdict
from tests.lab.channel import Channel, End, Failure, Ready
from tests.lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable

BUSYBOX = Path("/bin/busybox")

# kernel.py

# As Debian's linux-image-6.1.0-amd64 has it; virtio needs virtio_ring although it sorts before it.
MODULES_DEP = """\
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/drivers/crypto/ccp/ccp.ko.zst kernel/arch/x86/kvm/kvm.ko
kernel/arch/x86/kvm/kvm.ko: kernel/virt/lib/irqbypass.ko
kernel/virt/lib/irqbypass.ko:
kernel/drivers/crypto/ccp/ccp.ko.zst:
kernel/net/9p/9pnet.ko:
kernel/net/9p/9pnet_virtio.ko: kernel/net/9p/9pnet.ko kernel/drivers/virtio/virtio.ko
kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko
"""


def names(paths: list[str]) -> list[str]:
    return [kernel.module_name(path) for path in paths]


def test_modules_come_after_what_they_need() -> None:
    order = kernel.load_order(kernel.WANTED, kernel.parse_dependencies(MODULES_DEP))
    assert names(order) == [
        *("ccp", "irqbypass", "kvm", "kvm_amd"),
        *("virtio_ring", "virtio", "virtio_pci", "9pnet", "9pnet_virtio", "9p"),
    ]
    assert order[3] == "kernel/arch/x86/kvm/kvm-amd.ko.xz"


def test_built_in_modules_are_not_loaded() -> None:
    dependencies = kernel.parse_dependencies(MODULES_DEP)
    assert names(kernel.load_order(["9p"], dependencies, ["9pnet"])) == ["9p"]
    assert kernel.load_order(["virtio_pci", "built_in"], dependencies, ["virtio_pci", "built_in"]) == []


def test_a_missing_module_is_named() -> None:
    with pytest.raises(kernel.MissingModuleError, match=r"^virtio_fs$"):
        kernel.load_order(["virtio_fs"], kernel.parse_dependencies(MODULES_DEP))


def test_a_cycle_is_an_error() -> None:
    with pytest.raises(LabError, match="cycle through a"):
        kernel.load_order(["a"], kernel.parse_dependencies("x/a.ko: x/b.ko\nx/b.ko: x/a.ko\n"))


@given(st.lists(st.sets(st.integers(0, 100), max_size=5), min_size=1, max_size=20), st.randoms())
def test_any_acyclic_dependencies_are_ordered(needs: list[set[int]], random: Callable[[], float]) -> None:
    # module i needs only modules below i, which makes it acyclic; what is wanted is the last one
    graph = {f"m{i}": (f"m{i}.ko", tuple(f"m{need % i}" for need in some) if i else ()) for i, some in enumerate(needs)}
    order = names(kernel.load_order([f"m{len(needs) - 1}"], graph))
    assert len(order) == len(set(order))
    for at, name in enumerate(order):
        assert set(graph[name][1]) <= set(order[:at])


def test_newer_kernels_sort_later() -> None:
    releases = ["6.1.0-9-amd64", "6.1.0-56-amd64", "6.10.2-amd64", "5.10.0-30-amd64", "6.1.0-56-cloud-amd64", "6.1.0"]
    assert sorted(releases, key=kernel.version_key) == [
        *("5.10.0-30-amd64", "6.1.0", "6.1.0-9-amd64", "6.1.0-56-amd64", "6.1.0-56-cloud-amd64", "6.10.2-amd64"),
    ]


def install_kernel(root: Path, release: str, dependencies: str = MODULES_DEP, image: bool = True) -> None:
    (root / "boot").mkdir(exist_ok=True)
    (root / "modules" / release).mkdir(parents=True)
    (root / "modules" / release / "modules.dep").write_text(dependencies)
    if image:
        (root / "boot" / f"vmlinuz-{release}").write_bytes(b"image")


def find_kernel(root: Path) -> kernel.Kernel:
    return kernel.find_kernel(root / "boot", root / "modules")


def test_the_newest_whole_kernel_is_taken(tmp_path: Path) -> None:
    install_kernel(tmp_path, "6.1.0-9-amd64")
    install_kernel(tmp_path, "6.1.0-10-amd64")
    install_kernel(tmp_path, "6.1.0-11-cloud-amd64", MODULES_DEP.replace("kvm-amd", "kvm-other"))
    install_kernel(tmp_path, "6.1.0-12-amd64", image=False)
    found = find_kernel(tmp_path)
    assert found.release == "6.1.0-10-amd64"
    assert found.image == tmp_path / "boot/vmlinuz-6.1.0-10-amd64"
    assert found.modules[-1] == tmp_path / "modules/6.1.0-10-amd64/kernel/fs/9p/9p.ko"


def test_an_image_beside_its_modules_is_found(tmp_path: Path) -> None:
    install_kernel(tmp_path, "6.12.1-fc41", image=False)
    (tmp_path / "modules/6.12.1-fc41/vmlinuz").write_bytes(b"image")
    assert find_kernel(tmp_path).image == tmp_path / "modules/6.12.1-fc41/vmlinuz"


def test_no_kernel_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"no kernel .*: apt-get install linux-image-amd64$"):
        find_kernel(tmp_path)
    install_kernel(tmp_path, "6.1.0-11-cloud-amd64", "")
    with pytest.raises(LabError, match=r"6.1.0-11-cloud-amd64 has no module kvm_amd: apt-get"):
        find_kernel(tmp_path)


def test_an_image_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_kernel(tmp_path, "6.1.0-9-amd64")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(LabError, match=r"vmlinuz-6.1.0-9-amd64 may not be read: sudo chmod a\+r"):
        find_kernel(tmp_path)


@pytest.mark.parametrize("compress", [lzma.compress, gzip.compress, bytes])
def test_decompress(compress: Callable[[bytes], bytes]) -> None:
    data = b"a module" * 100
    assert kernel.decompress(compress(data)) == data


@pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")
def test_decompress_zstd() -> None:
    packed = subprocess.run(["zstd", "-cq"], input=b"a module" * 100, capture_output=True, check=True).stdout
    assert kernel.decompress(packed) == b"a module" * 100
    with pytest.raises(LabError, match="damaged"):
        kernel.decompress(packed[:-5])


@pytest.mark.parametrize("data", [kernel.XZ_MAGIC + b"garbage" * 10, kernel.GZIP_MAGIC + b"garbage" * 10])
def test_a_damaged_stream_is_the_lab_s_error(data: bytes) -> None:
    with pytest.raises(LabError, match="damaged"):
        kernel.decompress(data)


@pytest.mark.parametrize("cut", [40, 300])
@pytest.mark.parametrize("compress", [lzma.compress, gzip.compress])
def test_a_truncated_stream_is_the_lab_s_error(compress: Callable[[bytes], bytes], cut: int) -> None:
    with pytest.raises(LabError, match="damaged"):
        kernel.decompress(compress(os.urandom(400))[:cut])


def elf(*headers: tuple[int, bytes]) -> bytes:
    """A 64-bit ELF file of these program headers (p_type, contents)."""
    at = 64 + 56 * len(headers)
    table, contents = b"", b""
    for kind, data in headers:
        table += struct.pack("<IIQQQQQQ", kind, 0, at + len(contents), 0, 0, len(data), len(data), 1)
        contents += data
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    return (
        ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, len(headers), 0, 0, 0) + table + contents
    )


def note(name: bytes, kind: int, data: bytes) -> bytes:
    pad = [bytes(-len(part) % 4) for part in (name, data)]
    return struct.pack("<III", len(name), len(data), kind) + name + pad[0] + data + pad[1]


PVH = elf((1, b"code"), (4, note(b"GNU\0", 3, b"build") + note(b"Xen\0", 18, bytes(8))))


def bzimage(payload: bytes, version: int = 0x20F) -> bytes:
    head = bytearray(3 * 512)
    head[0x1F1] = 2
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, version)
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head) + bytes(16) + payload + b"the rest"


def test_a_kernel_with_a_pvh_entry_is_unpacked() -> None:
    size = struct.pack("<I", len(PVH))
    assert kernel.bootable(bzimage(lzma.compress(PVH) + size)) == PVH
    assert kernel.bootable(bzimage(gzip.compress(PVH))) == PVH


@pytest.mark.parametrize(
    "image",
    [
        b"no bzImage",
        bytes(5000),
        bzimage(lzma.compress(PVH), version=0x207),
        bzimage(lzma.compress(elf((4, note(b"GNU\0", 18, bytes(8)))))),
        bzimage(b"packed in an unknown way"),
    ],
)
def test_any_other_kernel_is_booted_as_it_is(image: bytes) -> None:
    assert kernel.bootable(image) == image


def test_static_programs_are_known() -> None:
    assert kernel.is_static(elf((1, b"code")))
    assert not kernel.is_static(elf((1, b"code"), (3, b"/lib64/ld-linux-x86-64.so.2\0")))
    assert not kernel.is_static(b"#!/bin/sh\n")
    assert not kernel.is_static(elf((1, b"code"))[:70])
    assert not kernel.is_static(Path("/bin/ls").read_bytes())


# initramfs.py


def test_busybox_must_be_there_and_static(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="No such file or directory: apt-get install busybox-static"):
        initramfs.read_busybox(tmp_path / "busybox")
    with pytest.raises(LabError, match="/bin/ls needs shared libraries: apt-get install busybox-static"):
        initramfs.read_busybox(Path("/bin/ls"))


def make_job(command: list[str], folder: Path, **environment: str) -> initramfs.Job:
    return initramfs.Job(command, folder, environment, [Path("/tmp")], [Path("/tmp/a b")])


@pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox is not installed")
def test_another_program_reads_the_archive(tmp_path: Path) -> None:
    modules = [tmp_path / "virtio.ko", tmp_path / "kvm-amd.ko.xz"]
    modules[0].write_bytes(b"odd")
    modules[1].write_bytes(lzma.compress(b"packed"))
    archive = initramfs.build(b"static busybox", modules, "token", make_job(["true"], Path("/work")))
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run([BUSYBOX, "cpio", "-idm"], input=archive, cwd=out, check=True, capture_output=True)
    assert (out / "modules/virtio.ko").read_bytes() == b"odd"
    assert (out / "modules/kvm_amd.ko").read_bytes() == b"packed"
    assert (out / "lab/modules").read_text() == "virtio.ko\nkvm_amd.ko\n"
    assert (out / "lab/visible").read_text() == "/tmp/a b\n"
    assert (out / "init").read_bytes() == initramfs.INIT.read_bytes()
    for name in ("init", "bin/busybox"):
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o755
    assert all((out / folder).is_dir() for folder in initramfs.FOLDERS)
    assert len(archive) % 4 == 0


def test_init_is_a_shell_script() -> None:
    assert subprocess.run(["/bin/sh", "-n", initramfs.INIT], capture_output=True).stderr == b""


def test_the_command_gets_its_words_and_its_environment_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a 'b' $c"
    folder.mkdir()
    code = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))"
    words = ["two words", "$HOME", "it's", "line\nbreak", "", "*"]
    text = initramfs.script(make_job([sys.executable, "-c", code, *words], folder, A="1 2", B="$x"))
    done = subprocess.run(["/bin/sh", "-c", text], capture_output=True, env={"NOT": "this"}, check=True)
    got, environment, cwd = json.loads(done.stdout)
    assert (got, cwd) == (words, str(folder))
    assert environment.items() >= {"A": "1 2", "B": "$x"}.items()
    assert "NOT" not in environment


def test_a_folder_that_is_gone_is_the_lab_s_status(tmp_path: Path) -> None:
    text = initramfs.script(make_job(["true"], tmp_path / "gone"))
    assert subprocess.run(["/bin/sh", "-c", text], capture_output=True).returncode == 125


def test_what_a_tmpfs_would_hide_is_found(tmp_path: Path) -> None:
    scratch = [Path("/run"), tmp_path]
    (tmp_path / "real/bin").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to("real")
    paths = [Path("/usr"), Path("/running"), tmp_path / "real/bin", tmp_path / "real", link, tmp_path]
    assert initramfs.hidden(paths, scratch) == [link, tmp_path / "real"]


def test_scratch_folders_are_resolved_and_exist(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    candidates = [str(tmp_path / name) for name in ("link", "real", "missing")]
    assert initramfs.scratch_folders(candidates) == [tmp_path / "real"]


def test_a_path_with_a_line_break_is_refused() -> None:
    with pytest.raises(LabError, match="line break"):
        initramfs.lines(["fine", "not\nfine"])


# channel.py


def record(text: str, token: str = "token") -> bytes:
    return channel.MARK + f"{token} {text}\n".encode()


@given(
    pieces=st.lists(st.sampled_from([b"out", b"\n", channel.MARK, b"token", channel.MARK + b"token", b"\x00\xff"])),
    cuts=st.lists(st.integers(0, 400)),
)
def test_output_and_records_are_parted_however_they_arrive(pieces: list[bytes], cuts: list[int]) -> None:
    output = b"".join(pieces)
    half = len(output) // 2
    line = record("ready 6.1 Y 2.5") + output[:half] + record("end 3 9.25") + output[half:]
    places = sorted({0, len(line), *(cut for cut in cuts if cut < len(line))})
    parted = Channel("token")
    fresh = b"".join(parted.feed(line[a:b]) for a, b in pairwise(places)) + parted.close()
    assert fresh == bytes(parted.output) == output
    assert parted.records == [Ready("6.1", "Y", 2.5), End(3, 9.25)]


def test_output_is_not_kept_back() -> None:
    parted = Channel("token")
    assert parted.feed(b"no line end yet") == b"no line end yet"
    assert parted.feed(b"x" + channel.MARK + b"tok") == b"x"
    assert parted.feed(b"yo") == channel.MARK + b"tokyo"


def test_the_last_of_a_kind() -> None:
    parted = Channel("token")
    parted.feed(record("error the module kvm does not load") + record("end 0 1"))
    assert parted.last(Failure) == Failure("the module kvm does not load")
    assert parted.last(End) == End(0, 1.0)
    assert parted.last(Ready) is None


@pytest.mark.parametrize("text", ["ready 6.1 Y", "ready 6.1 Y soon", "end x 1", "end", "hello 1", ""])
def test_a_garbled_record_is_a_failure(text: str) -> None:
    assert isinstance(channel.parse_record(text), Failure)


def test_output_without_end_is_cut_at_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "OUTPUT_LIMIT", 100)
    parted = Channel("token")
    for i in range(1000):
        parted.feed(b"%09d\n" % i)
    assert 100 <= len(parted.output) <= 200
    assert parted.cut + len(parted.output) == 10000
    assert parted.output.endswith(b"000000998\n000000999\n")


@pytest.mark.parametrize("npt", ["Y", "1"])
def test_nested_paging_is_known(npt: str) -> None:
    assert Ready("6.1", npt, 1).nested_paging
    assert not Ready("6.1", "N", 1).nested_paging


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("..\n3 passed in 0.10s\n", {"passed": 3}),
        ("=== 1 failed, 2 passed, 3 skipped in 61.00s (0:01:01) ===", {"failed": 1, "passed": 2, "skipped": 3}),
        ("3 passed in 1s\n1 error, 2 warnings in 0.10s\nlast words", {"error": 1, "warning": 2}),
        ("no tests ran in 0.01s", {}),
        ("5 deselected in 0.01s", {"deselected": 5}),
        ("we passed in time", None),
        ("", None),
    ],
)
def test_pytest_s_last_line(text: str, counts: dict[str, int] | None) -> None:
    assert channel.pytest_counts(text) == counts


def test_the_kernel_s_last_words() -> None:
    console = "[    1.0] fine\n[    2.1] Kernel panic - not syncing: Fatal exception\n[    2.2] Kernel Offset"
    assert channel.panic_line(console) == "Kernel panic - not syncing: Fatal exception"
    assert channel.panic_line("[    1.0] fine\n") is None


# verdict.py

READY, END_0, END_7 = record("ready 6.1.0 Y 2"), record("end 0 12.5"), record("end 7 12.5")
TASK, DEFAULT = verdict.Task(["make", "coffee"], False), verdict.Task(["pytest"], True)
TIMES = verdict.Times(4.0, 15.0)


def fed(*parts: bytes) -> Channel:
    parted = Channel("token")
    parted.feed(b"".join(parts))
    return parted


@pytest.mark.parametrize(
    ("line", "console", "messages", "status", "expected"),
    [
        (READY + b"x" + END_7, "", "", 0, None),
        (READY + b"x" + END_0, "Kernel panic - not syncing: too late", "", 0, None),
        (record("error mount failed"), "", "", 0, "mount failed"),
        (record("ready 6.1.0 N 2") + END_0, "", "", 0, "without nested paging"),
        (READY, "[1] Kernel panic - not syncing: ouch", "", 0, "kernel gave up: Kernel panic - not syncing: ouch"),
        (b"", "", "first\nqemu: no such device\n", 1, "QEMU ended with status 1: qemu: no such device"),
        (b"", "", "", -9, "QEMU ended with status -9: no message"),
        (READY, "", "", 0, "stopped before the command ended"),
    ],
)
def test_why_a_run_failed(line: bytes, console: str, messages: str, status: int, expected: str | None) -> None:
    outcome = verdict.failure(fed(line), console, messages, status)
    if expected is None:
        assert outcome is None
    else:
        assert outcome is not None
        assert outcome.status == 125
        assert expected in outcome.line


def test_the_summary_says_where_it_ran() -> None:
    outcome = verdict.summary(TASK, fed(READY, END_7), TIMES, "7.2")
    assert outcome == verdict.Outcome(
        7,
        "make coffee: status 7 in 10.5 s (boot 4.0 s, 15.0 s in all); Linux 6.1.0, kvm_amd with nested paging, 2 CPUs,"
        " under QEMU 7.2",
    )


@pytest.mark.parametrize(
    ("output", "status"),
    [(b"3 passed in 1s\n", 0), (b"3 skipped in 1s\n", 125), (b"no tests ran in 1s\n", 125), (b"", 125)],
)
def test_no_test_passed_is_no_success(output: bytes, status: int) -> None:
    assert verdict.summary(DEFAULT, fed(READY, output, END_0), TIMES, "7.2").status == status
    assert verdict.summary(TASK, fed(READY, output, END_0), TIMES, "7.2").status == 0
    assert verdict.summary(DEFAULT, fed(READY, output, END_7), TIMES, "7.2").status == 7


def test_the_time_is_up() -> None:
    assert verdict.timed_out(TASK, TIMES) == verdict.Outcome(124, "make coffee: not ended after 15 s: killed")
    assert verdict.timed_out(TASK, verdict.Times(None, 15.0)).status == 125


def test_a_long_command_is_shortened() -> None:
    assert len(str(verdict.Task(["x" * 50, "y\n" * 50], False))) == 60
    assert "\n" not in str(verdict.Task(["a\nb"], False))


# selection.py


def test_files_are_taken_from_pytest_s_listing() -> None:
    listing = (
        "tests/a.py::test_1[x::y]\ntests/a.py::test_2\ntests/b/c.py::Test::test_3\n\n3/9 tests collected\nERROR x.py"
    )
    assert selection.collected_files(listing) == ["tests/a.py", "tests/b/c.py"]


@pytest.fixture
def whole_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The selection of paths is the project's own; a made-up project has just a folder."""
    monkeypatch.setattr(selection, "PATHS", ("tests",))


def write_tests(root: Path, text: str) -> None:
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['kvm', 'slow']\n")
    (root / "tests").mkdir(exist_ok=True)
    (root / "tests/test_it.py").write_text(f"import pytest\n{text}")
    (root / "tests/test_other.py").write_text("def test_other(): pass\n")


@pytest.mark.usefixtures("whole_folder")
def test_the_default_is_what_is_marked_kvm(tmp_path: Path) -> None:
    write_tests(tmp_path, "@pytest.mark.kvm\ndef test_it(): pass\n")
    command = selection.default_command(tmp_path)
    assert command[:3] == [sys.executable, "-m", "pytest"]
    assert command[command.index("-m", 3) + 1] == selection.MARKERS
    assert [word for word in command if word.endswith(".py")] == ["tests/test_it.py"]


@pytest.mark.usefixtures("whole_folder")
def test_nothing_to_run_is_an_error(tmp_path: Path) -> None:
    write_tests(tmp_path, "@pytest.mark.kvm\n@pytest.mark.slow\ndef test_it(): pass\n")
    with pytest.raises(LabError, match="no test to run"):
        selection.default_command(tmp_path)


@pytest.mark.usefixtures("whole_folder")
def test_tests_that_cannot_be_collected_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tests(tmp_path, "import no_such_module\n")
    with pytest.raises(LabError, match=r"cannot collect the tests \(status 2\)"):
        selection.default_command(tmp_path)
    assert "no_such_module" in capsys.readouterr().out


def test_what_is_left_out_exists() -> None:
    """pytest says nothing of a deselected test that is not there, so a renamed one would run again unnoticed."""
    files = {node.partition("::")[0] for node in selection.DESELECTED}
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    listing = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert set(selection.DESELECTED) <= set(listing)
    assert {f"--deselect={node}" for node in selection.DESELECTED} < set(selection.pytest_command(["a.py"]))


def test_what_is_selected_exists() -> None:
    assert [path for path in selection.PATHS if not (ROOT / path).exists()] == []


def test_bytecode_is_prepared(tmp_path: Path) -> None:
    (tmp_path / "vmm/cli").mkdir(parents=True)
    (tmp_path / "vmm/cli/boot.py").write_text("x = 1\n")
    (tmp_path / "vmm/broken.py").write_text("x = \n")
    selection.prepare_bytecode(tmp_path)
    assert list((tmp_path / "vmm/cli/__pycache__").glob("boot.*.pyc"))
