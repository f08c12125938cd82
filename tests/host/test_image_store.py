"""The store of images, `pyvmm image`, and the archives that other tools make."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.harness import ROOT
from tests.host.image_support import (
    BASE,
    CONFIG,
    UPPER,
    Layout,
    assert_store_is_clean,
    entry,
    opened,
    said,
    tar,
    tree,
    write,
)
from vmm.image.load import Loader
from vmm.image.model import ImageError
from vmm.image.resolve import resolve
from vmm.image.store import Store, split_name


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PYVMM_STORE", str(tmp_path / "store"))
    return Store()


def pyvmm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmm", "image", *map(str, words)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, stdin=subprocess.DEVNULL)


# The store


def test_import_list_inspect_remove(tmp_path: Path, store: Store) -> None:
    archive = Layout().add([tar(*BASE), tar(*UPPER)], CONFIG, name="example/app:2").archive(tmp_path / "app.tar")
    done = pyvmm("import", archive)
    assert (done.returncode, done.stderr, done.stdout.split()[0]) == (0, "", "example/app:2")
    assert pyvmm("import", write(tmp_path, *BASE), "base").stdout.split()[0] == "base:latest"
    lines = [line.split() for line in pyvmm("list").stdout.splitlines()]
    assert [line[:3] for line in lines] == [
        ["NAME", "TAG", "KIND"],
        ["base", "latest", "rootfs"],
        ["example/app", "2", "oci"],
    ]
    listed = json.loads(pyvmm("list", "--json").stdout)
    assert [item["name"] for item in listed] == ["base", "example/app"]
    inspected = json.loads(pyvmm("inspect", "example/app:2").stdout)
    assert inspected["config"] == CONFIG
    assert all(map(os.path.isdir, inspected["directories"]))
    image = opened("example/app:2")
    assert (image.name, image.config.cmd, len(image.layers)) == ("example/app:2", ["-c", "true"], 2)
    assert list(map(os.fsdecode, reversed(image.layers))) == inspected["directories"]
    assert pyvmm("remove", "example/app:2", "base").returncode == 0
    assert pyvmm("list", "--json").stdout == "[]\n"
    assert_store_is_clean(store)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "import, list, remove, inspect"),
        (["frob"], "import, list, remove, inspect"),
        (["import"], "SRC"),
        (["import", "/nonexistent"], "No such file"),
        (["import", "/bin/sh"], "is an ELF file"),
        (["import", "/etc"], "is a plain directory"),
        (["import", "/etc/passwd"], "not an ELF file, nor a tar"),
        (["import", "/bin/sh", "../x"], "not a name"),
        (["import", "/bin/sh", "--max-size=lots"], "--max-size"),
        (["remove"], "name an image"),
        (["remove", "nothing"], "not in the store: nothing:latest"),
        (["inspect", "nothing"], "no image nothing:latest"),
        (["inspect", "../../etc/passwd"], "not a name"),
        (["list", "--frob"], "--frob"),
    ],
)
def test_misuse_gets_one_line(words: list[str], reason: str) -> None:
    done = pyvmm(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert done.stderr.startswith("pyvmm: image")
    assert reason in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["import", "--help"], ["list", "--help"], ["remove", "--help"]])
def test_help(words: list[str]) -> None:
    done = pyvmm(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: pyvmm image" in done.stdout


def test_what_was_left_out_is_said(tmp_path: Path) -> None:
    done = pyvmm("import", write(tmp_path, *BASE, entry("label", type=b"V")))
    assert done.returncode == 0
    assert done.stderr == "pyvmm: left out 'label': an entry of the unknown type b'V'\n"


def test_progress_is_for_terminals(tmp_path: Path) -> None:
    archive = write(tmp_path, *BASE, entry("big", bytes(8 << 20)))
    command = [sys.executable, "-m", "vmm", "image", "import", str(archive)]
    master, slave = os.openpty()
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=slave, env=env, timeout=60)
    os.close(slave)
    assert done.returncode == 0
    assert b"unpacking: " in os.read(master, 4096)
    os.close(master)
    assert pyvmm("import", archive).stderr == ""


def test_names() -> None:
    assert split_name("a") == ("a", "latest")
    assert split_name("a/b.c-d:1.0") == ("a/b.c-d", "1.0")
    for text in ("", ":x", "a:", "a/", "/a", "a//b", "..", "a/../b", ".a", "a:b/c", "a b", "a%b", "host", "a\n", "é"):
        with pytest.raises(ImageError):
            split_name(text)


def test_layers_are_shared_and_go_with_the_last_image(tmp_path: Path, store: Store) -> None:
    one = Layout().add([tar(*BASE), tar(*UPPER)]).write(tmp_path / "one")
    two = Layout().add([tar(*BASE)]).write(tmp_path / "two")
    assert pyvmm("import", one).returncode == pyvmm("import", two).returncode == 0
    assert_store_is_clean(store, layers=2)
    assert pyvmm("remove", "one").returncode == 0
    assert_store_is_clean(store, layers=1)
    assert (tree(opened("two")) / "bin/sh").exists()
    assert pyvmm("remove", "two").returncode == 0
    assert_store_is_clean(store)


def test_layers_in_use_stay(tmp_path: Path, store: Store) -> None:
    assert pyvmm("import", write(tmp_path, *BASE), "used").returncode == 0
    image = resolve("used")
    assert pyvmm("remove", "used").returncode == 0
    assert (tree(image) / "bin/sh").read_bytes() == b"shell"
    assert_store_is_clean(store, layers=1)
    image.close()
    assert store.collect() == 1
    assert_store_is_clean(store)


def test_the_cache_goes_with_its_archives(tmp_path: Path, store: Store) -> None:
    file = write(tmp_path, *BASE)
    opened(file)
    assert store.collect() == 0
    file.unlink()
    assert store.collect() == 1
    opened(write(tmp_path, *BASE))
    assert pyvmm("remove", "--cache").returncode == 0
    assert_store_is_clean(store)
    assert (tree(opened(tmp_path / "image.tar")) / "bin/sh").exists()


def test_a_name_that_is_imported_again(tmp_path: Path, store: Store) -> None:
    assert pyvmm("import", write(tmp_path, *BASE), "x").returncode == 0
    assert pyvmm("import", write(tmp_path, *BASE, entry("new", b"n")), "x").returncode == 0
    assert (tree(opened("x")) / "new").exists()
    store.collect()
    assert_store_is_clean(store, layers=1)


def test_many_at_once(tmp_path: Path, store: Store) -> None:
    """Threads that import the same image, remove it, collect and boot it: never half an image, nothing left."""
    layout = Layout().add([tar(*BASE), tar(*UPPER)]).write(tmp_path / "layout")
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(8):
                loader = Loader(store, str(layout))
                record = loader.load().record
                store.put("shared", "latest", record)
                loader.close()
                if (turn + number) % 3 == 0:
                    store.remove("shared", "latest")
                    store.collect()
                try:
                    image = store.image("shared")
                except ImageError as error:
                    if "no image" not in str(error):
                        raise
                    continue
                assert (tree(image, 1) / "bin/sh").read_bytes() == b"shell"
                image.close()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    store.remove("shared", "latest")
    store.collect()
    assert_store_is_clean(store)


def test_processes_that_import_the_same(tmp_path: Path, store: Store) -> None:
    layout = Layout().add([tar(*BASE, entry("big", os.urandom(1 << 20)))]).write(tmp_path / "layout")
    command = [sys.executable, "-m", "vmm", "image", "import", str(layout), "same"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    imports = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) for _ in range(4)]
    assert {i.communicate(timeout=60)[1] for i in imports} == {b""}
    assert [i.returncode for i in imports] == [0] * 4
    assert_store_is_clean(store, layers=1)


def test_a_killed_import_leaves_nothing_that_counts(tmp_path: Path, store: Store) -> None:
    """Its half is removed by the next one; and what another process is making is not."""
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    code = (
        "import os, sys; from vmm.image.store import Store\n"
        "store = Store(); store.prepare()\n"
        "with store.workplace() as work:\n"
        "    open(work + '/half', 'w').close(); print('made', flush=True); open(sys.argv[1]).read()\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code, str(fifo)], stdout=subprocess.PIPE, env=env)
    assert process.stdout is not None
    assert process.stdout.readline() == b"made\n"
    store.prepare()
    assert len(os.listdir(store.folder("tmp"))) == 1, "it is at work"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert pyvmm("import", write(tmp_path, *BASE), "next").returncode == 0
    assert_store_is_clean(store, layers=1)


def test_a_damaged_store_is_said_to_be(tmp_path: Path, store: Store) -> None:
    assert pyvmm("import", write(tmp_path, *BASE), "x").returncode == 0
    (layer,) = (name for name in os.listdir(store.folder("layers")) if name.endswith(".json"))
    os.unlink(store.folder("layers", layer))
    with pytest.raises(ImageError, match="the store is damaged: a layer of x:latest is gone"):
        resolve("x")
    assert pyvmm("import", tmp_path / "image.tar", "x").returncode == 0
    assert opened("x").layers
    Path(store.folder("images", "x", "latest.json")).write_text("{")
    for words in (["list"], ["inspect", "x"]):
        done = pyvmm(*words)
        assert (done.returncode, done.stderr.count("\n")) == (125, 1)
        assert "the store is damaged" in done.stderr
    assert pyvmm("remove", "x").returncode == 0


def test_a_store_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYVMM_STORE", str(tmp_path / "file/store"))
    done = pyvmm("import", write(tmp_path, *BASE))
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert "Not a directory" in done.stderr


# Other tools


def run(*words: str | Path, cwd: Path) -> None:
    done = subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which("umoci"), reason="umoci is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="umoci unpacks as root only")
def test_what_umoci_and_skopeo_write(tmp_path: Path) -> None:
    run("umoci", "init", "--layout", "u", cwd=tmp_path)
    run("umoci", "new", "--image", "u:tag", cwd=tmp_path)
    run("umoci", "unpack", "--image", "u:tag", "bundle", cwd=tmp_path)
    root = tmp_path / "bundle/rootfs"
    (root / "dir").mkdir()
    (root / "dir/file").write_text("first")
    (root / "gone").write_text("x")
    run("umoci", "repack", "--refresh-bundle", "--image", "u:tag", "bundle", cwd=tmp_path)
    (root / "gone").unlink()
    run("umoci", "repack", "--image", "u:tag", "bundle", cwd=tmp_path)
    run("umoci", "config", "--image", "u:tag", "--config.cmd", "/dir/file", "--config.env", "A=b", cwd=tmp_path)
    sources = [tmp_path / "u"]
    if shutil.which("skopeo"):
        for form, file in (("oci-archive", "a.tar:x:1"), ("docker-archive", "d.tar:x:1")):
            run("skopeo", "copy", "--insecure-policy", "oci:u:tag", f"{form}:{file}", cwd=tmp_path)
        sources += [tmp_path / "a.tar", tmp_path / "d.tar"]
    for source in sources:
        image = opened(source)
        assert (image.config.cmd, len(image.layers)) == (["/dir/file"], 2)
        assert "A=b" in image.config.env
        assert (tree(image, 1) / "dir/file").read_text() == "first"
        assert said(image, "gone", 0) == {"mode": stat.S_IFCHR, "rdev": 0}


@pytest.mark.skipif(not shutil.which("busybox"), reason="busybox-static is not installed")
def test_the_recipe_of_busybox(tmp_path: Path) -> None:
    built = [tmp_path / "busybox.tar", tmp_path / "again.tar"]
    for file in built:
        run("make", "-s", "-C", ROOT / "images", f"BUILT={tmp_path}", f"PYTHON={sys.executable}", "busybox", cwd=ROOT)
        if file != built[0]:
            assert (tmp_path / "busybox.tar").read_bytes() == file.read_bytes(), "the build is not deterministic"
        else:
            shutil.move(file, built[1])
    image = opened(tmp_path / "busybox.tar")
    assert image.config.cmd == ["/bin/sh"]
    assert os.readlink(tree(image) / "bin/ls") == "/bin/busybox"
    assert (tree(image) / "etc/passwd").read_text().startswith("root:x:0:0:")
