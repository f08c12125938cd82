"""The benchmarks' plain parts: percentiles, limits, the table, the JSON, what programs print. Nothing is timed."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.__main__ import arguments
from tests.bench.figures import FIGURES, against, measure
from tests.bench.report import MISS, PASS, UNCLEAR, Limit, Report, Row, number, percentile, table
from tests.bench.session import Failed, Samples, Session, parse
from tests.bench.startup import import_times, least_of_each, top
from tests.bench.ways import ORDER, Way, environment
from tests.harness import GUEST

samples = st.lists(st.floats(-1e9, 1e9), min_size=1)


@given(samples, st.floats(0, 100))
def test_percentile_is_a_sample_that_so_many_do_not_exceed(values: list[float], percent: float) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100
    smaller = [value for value in values if value < found]
    assert not smaller or len(smaller) < len(values) * percent / 100


@given(samples)
def test_percentile_ends(values: list[float]) -> None:
    assert percentile(values, 0) == min(values)
    assert percentile(values, 100) == max(values)


def test_percentile_of_known_samples() -> None:
    hundred = [float(value) for value in range(100, 0, -1)]
    assert [percentile(hundred, percent) for percent in (1, 50, 99, 99.5)] == [1, 50, 99, 100]
    assert percentile([3, 1, 2], 50) == 2


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentile_refuses(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match=r"samples|percentage"):
        percentile(values, percent)


def test_limits() -> None:
    at_most, at_least = Limit("kvm", 5), Limit("kvm", 0.98, at_least=True)
    assert (at_most.text(), at_least.text()) == ("kvm <= 5", "kvm >= 0.98")
    assert [at_most.verdict({"kvm": value}) for value in (4.9, 5, 5.1)] == [PASS, PASS, MISS]
    assert [at_least.verdict({"kvm": value}) for value in (0.97, 0.98, 1.0)] == [MISS, PASS, PASS]
    assert at_most.verdict({"native": 1}) == ""


def test_a_host_that_misses_the_limit_itself_cannot_tell() -> None:
    limit = Limit("kvm", 1.1, reference="native")
    assert limit.verdict({"kvm": 1.5, "native": 1.3}) == UNCLEAR
    assert limit.verdict({"kvm": 1.5, "native": 1.0}) == MISS
    assert limit.verdict({"kvm": 1.5}) == MISS
    assert limit.verdict({"kvm": 1.0, "native": 1.3}) == PASS


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.02222, "0.0222"), (0.9987, "0.999"), (12.345, "12.3"), (99.99, "100"), (123.4, "123"), (1234567.8, "1234568")],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


ROWS = [
    Row("getppid()", "us", {"native": 0.08, "kvm": 85, "emulator": 6.5}, [Limit("emulator", 7)]),
    Row("first touch", "us", {"kvm": 9}, [Limit("kvm", 6), Limit("emulator", 1)]),
]


def test_table_has_the_columns_that_are_known() -> None:
    assert table(ROWS, ORDER).splitlines() == [
        "figure       unit  native  kvm  emulator  requirement",
        "-----------  ----  ------  ---  --------  ------------------------------",
        "getppid()    us      0.08   85       6.5  emulator <= 7 pass",
        "first touch  us         -    9         -  kvm <= 6 MISS, emulator <= 1 -",
    ]


def test_report() -> None:
    report = Report({"CPU": "one"})
    report.rows += ROWS
    report.more.append(("threads: switch", "2 us"))
    for _ in range(2):
        report.note("runsc: skipped: not installed")
    assert report.misses() == ["first touch: kvm <= 6 us"]
    lines = report.text(ORDER).splitlines()
    assert lines[0] == "CPU: one"
    assert lines[-3:] == ["threads: switch  2 us", "", "runsc: skipped: not installed"]
    again = json.loads(json.dumps(report.as_json()))
    assert again["host"] == {"CPU": "one"}
    assert again["more"] == [{"name": "threads: switch", "text": "2 us"}]
    assert again["notes"] == ["runsc: skipped: not installed"]
    assert again["rows"][1] == {
        "name": "first touch",
        "unit": "us",
        "values": {"kvm": 9},
        "limits": [
            {"way": "kvm", "at_most": 6, "verdict": "MISS"},
            {"way": "emulator", "at_most": 1, "verdict": None},
        ],
        "samples": {},
    }


def test_parse_takes_figures_only() -> None:
    text = "W1124 06:09 runsc: chatter\nloop.best 0.28 ns\ntouch 1e+06 us\nbad x us\nnegative -1 us\nlast 5 us extra\n"
    assert parse(text) == {"loop.best": 0.28, "touch": 1e6}


def test_samples() -> None:
    taken = Samples()
    for value in (3.0, 1.0, 2.0):
        taken.add("kvm", {"call": value})
    taken.add("native", {"call": 0.5, "other": 7})
    assert taken.best("call") == {"kvm": 1, "native": 0.5}
    assert taken.best("call", 1000) == {"kvm": 1000, "native": 500}
    assert taken.median("call") == {"kvm": 2, "native": 0.5}
    assert taken.all("call") == {"kvm": [3, 1, 2], "native": [0.5]}
    assert taken.best("nothing") == {}


def test_against() -> None:
    assert against({"kvm": 2, "native": 4}, {"kvm": 3, "emulator": 1}) == {"kvm": 1.5}


def test_import_times() -> None:
    text = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:       120 |        500 |   encodings.utf_8\n"
        "import time:      2500 |       2500 | vmm.machine\n"
        "Hello from the guest\n"
    )
    found = import_times(text)
    assert found == {"encodings.utf_8": 120, "vmm.machine": 2500}
    assert top(found, 1) == "vmm.machine 2.5"
    assert least_of_each([found, {"vmm.machine": 2000, "late": 7}]) == {
        "encodings.utf_8": 120,
        "vmm.machine": 2000,
        "late": 7,
    }


def test_commands(tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.mktemp("cache")
    way = Way("kvm", ["pyvmm", "boot"], ["--"])
    assert way.command(cache) == ["pyvmm", "boot", str(cache)]
    assert way.command(cache, ["300"]) == ["pyvmm", "boot", str(cache), "--", "300"]
    env = environment(cache)
    assert env["PYTHONPYCACHEPREFIX"] == str(cache)
    assert "PYTHONDONTWRITEBYTECODE" not in env


def session(seconds: float = 60) -> Session:
    return Session([Way("native")], Report({}), environment(GUEST / "_built"), quick=True, seconds=seconds)


def test_session_reads_a_programs_figures() -> None:
    assert session().run(["sh", "-c", "echo no 1 us; echo a 1.5 us >&2"]) == {"a": 1.5}


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("echo chatter >&2; echo because >&2; exit 3", "status 3: because"),
        ("printf 'Traceback\\nKeyError: 5\\nplease report it\\n' >&2; exit 125", "status 125: KeyError: 5"),
        ("exit 3", "status 3: it said nothing"),
        ("echo nothing", "it printed no figures"),
    ],
)
def test_session_says_why_there_are_no_figures(command: str, why: str) -> None:
    with pytest.raises(Failed, match=f"^{re.escape(why)}$"):
        session().run(["sh", "-c", command])


def test_session_ends_a_command_with_all_its_children() -> None:
    with pytest.raises(Failed, match="no end"):
        session().run(["sh", "-c", "sleep 1000 & wait"], timeout=0.1)


def test_session_keeps_its_time() -> None:
    with pytest.raises(Failed, match="out of time"):
        session(seconds=0).run(["true"])


def test_what_cannot_be_measured_is_noted_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(session: Session) -> list[Row]:
        raise Failed("no such thing")

    monkeypatch.setitem(FIGURES, "first", fails)
    monkeypatch.setitem(FIGURES, "second", lambda session: [*ROWS, Row("nothing", "us", {})])
    taken = session()
    told: list[str] = []
    measure(taken, ["first", "second"], told.append)
    assert told == ["first", "second"]
    assert taken.report.rows == ROWS
    assert taken.report.notes == ["first: no such thing"]


def test_options() -> None:
    options = arguments([])
    assert (options.json, options.quick, options.only) == ("bench.json", False, list(FIGURES))
    assert arguments(["--only", "loop", "pair"]).only == ["loop", "pair"]
    with pytest.raises(SystemExit):
        arguments(["--only", "nothing"])


def test_programs_time_themselves_and_are_not_compared() -> None:
    sources = list((GUEST / "programs").glob("bench_*.c"))
    assert len(sources) >= 10
    for source in sources:
        assert source.read_text().startswith("// not compared: benchmark\n"), source.name
