"""Figures, what they should be, and how they are shown: plain data, so that it is tested without measuring."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PASS, MISS, UNCLEAR = "pass", "MISS", "unclear"


class Limit(NamedTuple):
    """What a figure should be in one way of running: at most `bound`, or at least."""

    way: str
    bound: float
    at_least: bool = False
    reference: str = ""
    """A way whose own value must keep the limit too, or this host, now, cannot tell (it is busy)."""

    def text(self) -> str:
        return f"{self.way} {'>=' if self.at_least else '<='} {number(self.bound)}"

    def verdict(self, values: Mapping[str, float]) -> str:
        """PASS, MISS, UNCLEAR, or "" when it was not measured."""
        if self.way not in values:
            return ""
        if self._kept(values[self.way]):
            return PASS
        reference = values.get(self.reference)
        return MISS if reference is None or self._kept(reference) else UNCLEAR

    def _kept(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


class Row:
    """A line of the table: one figure in several ways of running, with its limits."""

    def __init__(
        self,
        name: str,
        unit: str,
        values: Mapping[str, float],
        limits: Sequence[Limit] = (),
        samples: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.name = name
        self.unit = unit
        self.values = dict(values)
        self.limits = list(limits)
        self.samples = {way: list(taken) for way, taken in (samples or {}).items()}

    def requirement(self) -> str:
        """The limits with their verdicts, as the table shows them."""
        told = []
        for limit in self.limits:
            verdict = limit.verdict(self.values)
            told.append(f"{limit.text()} {verdict or '-'}")
        return ", ".join(told)

    def as_json(self) -> dict[str, Any]:
        limits = [
            {
                "way": limit.way,
                "at_least" if limit.at_least else "at_most": limit.bound,
                "verdict": limit.verdict(self.values) or None,
            }
            for limit in self.limits
        ]
        return {"name": self.name, "unit": self.unit, "values": self.values, "limits": limits, "samples": self.samples}


class Report:
    """All that a run found out."""

    def __init__(self, host: Mapping[str, str]) -> None:
        self.host = dict(host)
        self.rows: list[Row] = []
        self.more: list[tuple[str, str]] = []
        """Figures that come as text."""
        self.notes: list[str] = []
        """What was skipped or failed, and why."""

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def misses(self) -> list[str]:
        """Name and limit of every requirement that was missed."""
        return [
            f"{row.name}: {limit.text()} {row.unit}".rstrip()
            for row in self.rows
            for limit in row.limits
            if limit.verdict(row.values) == MISS
        ]

    def as_json(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "rows": [row.as_json() for row in self.rows],
            "more": [{"name": name, "text": text} for name, text in self.more],
            "notes": self.notes,
        }

    def text(self, ways: Sequence[str]) -> str:
        """Everything, for a person; `ways` gives the order of the columns."""
        parts = [" | ".join(f"{name}: {value}" for name, value in self.host.items()), ""]
        if self.rows:
            parts += [table(self.rows, ways), ""]
        if self.more:
            width = max(len(name) for name, _ in self.more)
            parts += [*(f"{name:<{width}}  {text}" for name, text in self.more), ""]
        return "\n".join([*parts, *self.notes]).rstrip()


def percentile(samples: Iterable[float], percent: float) -> float:
    """The smallest sample that at least `percent` of all samples do not exceed (nearest rank). ValueError for none."""
    ordered = sorted(samples)
    if not ordered:
        raise ValueError("no samples")
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent} is not a percentage")
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def number(value: float) -> str:
    """Three significant digits, without an exponent from 0.001 up."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def table(rows: Sequence[Row], ways: Sequence[str]) -> str:
    """The rows under each other; a way that no row knows has no column."""
    shown = [way for way in ways if any(way in row.values for row in rows)]
    lines = [["figure", "unit", *shown, "requirement"]]
    for row in rows:
        cells = [number(row.values[way]) if way in row.values else "-" for way in shown]
        lines.append([row.name, row.unit, *cells, row.requirement()])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    formats = ["<", "<", *">" * len(shown), "<"]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join(f"{cell:{align}{width}}" for cell, align, width in zip(line, formats, widths, strict=True)).rstrip()
        for line in [lines[0], rule, *lines[1:]]
    )
