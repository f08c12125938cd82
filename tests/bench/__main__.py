"""python -m tests.bench [--json FILE] [--quick] [--only NAME...] [--realtime] [--with-qiling]:
measure, and print a table.

The whole takes 10 minutes at most, --quick 2. Ends with status 0 also when a figure misses its requirement: figures of
a busy host say little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import ways
from tests.bench.figures import FIGURES, measure
from tests.bench.report import Report
from tests.bench.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

SECONDS, QUICK_SECONDS = 570.0, 110.0


def main(words: Sequence[str] | None = None) -> int:
    options = arguments(words)
    if options.with_qiling:
        ways.install_qiling()
    report = Report(host())
    if options.realtime:
        try:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # the children inherit it
        except PermissionError:
            sys.exit("--realtime needs root (or CAP_SYS_NICE)")
        report.host["scheduling"] = "SCHED_RR"
    report.note("Values are the best run's, all ways by turns; p50 and p99 are medians of the runs'.")
    found, missing = ways.available()
    for name, reason in missing.items():
        report.note(f"{name}: skipped: {reason}")
    with tempfile.TemporaryDirectory(prefix="pyvmm-bench-") as cache:
        seconds = QUICK_SECONDS if options.quick else SECONDS
        session = Session(found, report, ways.environment(Path(cache)), quick=options.quick, seconds=seconds)
        measure(session, options.only, lambda name: print(f"measuring {name} ...", file=sys.stderr))
    report.host["load after"] = load()
    print(report.text(ways.ORDER))
    for miss in report.misses():
        print(f"missed: {miss}")
    Path(options.json).write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    return 0


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure pyvmm, and print a table.")
    parser.add_argument(
        "--json", metavar="FILE", default="bench.json", help="where the figures go as well (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs: 2 minutes at most")
    parser.add_argument(
        "--only", metavar="NAME", nargs="+", choices=FIGURES, default=list(FIGURES), help=", ".join(FIGURES)
    )
    parser.add_argument(
        "--realtime", action="store_true", help="run ahead of all other processes (needs root): for a busy host"
    )
    parser.add_argument("--with-qiling", action="store_true", help=f"install Qiling into {ways.qiling_environment()}")
    return parser.parse_args(words)


def host() -> dict[str, str]:
    """What the figures depend on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "CPU": f"{len(os.sched_getaffinity(0))} x {model}",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "load before": load(),
    }


def load() -> str:
    """The load average of the last minute: more than this run's own means a busy host and worse figures."""
    return f"{os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    sys.exit(main())
