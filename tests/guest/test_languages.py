"""Programs of other tool chains and of wider registers than the plain C programs use."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness import boot, native, program, shell_status

RUST = """
use std::collections::HashMap;
use std::sync::{mpsc, Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

fn main() {
    let counts = Arc::new(Mutex::new(HashMap::new()));
    let (sender, receiver) = mpsc::channel();
    let workers: Vec<_> = (0..8u64)
        .map(|n| {
            let (counts, sender) = (counts.clone(), sender.clone());
            thread::spawn(move || {
                for i in 0..2000u64 {
                    *counts.lock().unwrap().entry(i % 7).or_insert(0u64) += n;
                }
                sender.send(n * n).unwrap();
            })
        })
        .collect();
    drop(sender);
    let squares: u64 = receiver.iter().sum();
    for worker in workers {
        worker.join().unwrap();
    }
    let mut totals: Vec<_> = counts.lock().unwrap().clone().into_iter().collect();
    totals.sort();
    println!("{squares} {totals:?}");
    let start = Instant::now();
    thread::sleep(Duration::from_millis(20));
    println!("{}", start.elapsed() >= Duration::from_millis(20));
    println!("{:?}", std::panic::catch_unwind(|| panic!("caught")).is_err());
    println!("{:?}", std::env::args().skip(1).collect::<Vec<_>>());
    std::process::exit(3);
}
"""

GO = """
package main

import ("fmt"; "os"; "runtime"; "sync"; "time")

func main() {
	var group sync.WaitGroup
	var lock sync.Mutex
	total := 0
	for n := 0; n < 50; n++ {
		group.Add(1)
		go func(n int) {
			defer group.Done()
			for i := 0; i < 1000; i++ { lock.Lock(); total += n; lock.Unlock() }
			runtime.Gosched()
		}(n)
	}
	group.Wait()
	start := time.Now()
	time.Sleep(20 * time.Millisecond)
	fmt.Println(total, time.Since(start) >= 20*time.Millisecond, os.Args[1:])
	func() { defer func() { fmt.Println(recover() != nil) }(); var p *int; *p = 1 }()
	runtime.GC()
	os.Exit(3)
}
"""


@pytest.mark.kvm
def test_avx2_on_kvm() -> None:
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("the host's CPU has no AVX2")
    argv: list[str | Path] = [program("avx2")]
    assert boot("kvm", argv).stdout == native(argv).stdout != b""


@pytest.mark.slow
def test_a_static_rust_program(accelerator: str, tmp_path: Path) -> None:
    if not shutil.which("rustc"):
        pytest.skip("there is no rustc")
    (tmp_path / "main.rs").write_text(RUST)
    command = ["rustc", "-O", "-C", "target-feature=+crt-static", "-o", "program", "main.rs"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    same(accelerator, tmp_path / "program")


@pytest.mark.slow
def test_a_static_go_program(accelerator: str, tmp_path: Path) -> None:
    if not shutil.which("go"):
        pytest.skip("there is no Go tool chain")
    (tmp_path / "main.go").write_text(GO)
    environment = {"CGO_ENABLED": "0", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "GO111MODULE": "off"}
    subprocess.run(["go", "build", "-o", "program", "main.go"], cwd=tmp_path, check=True, env=environment)
    same(accelerator, tmp_path / "program")


def same(accelerator: str, file: Path) -> None:
    """The program prints the same and ends the same way on both kernels."""
    argv: list[str | Path] = [file, "a", "b c"]
    expected, result = native(argv), boot(accelerator, argv)
    assert (result.returncode, result.stdout) == (shell_status(expected.returncode), expected.stdout)
    assert expected.returncode == 3
