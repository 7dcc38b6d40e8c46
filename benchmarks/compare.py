"""What changed between two results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import number, table

SMALLEST_CHANGE = 0.03
"""Changes of the median below this are called the same, however steady the machine was."""

CONDITIONS = (
    ("machine", "name"),
    ("machine", "torch"),
    ("settings", "size"),
    ("settings", "precision"),
    ("settings", "mode"),
)
"""What two results should have in common."""


def compare(before: Path, after: Path) -> str:
    """A table of every measurement that both results hold, slowest change first, as Markdown.

    A change counts when the medians differ by more than SMALLEST_CHANGE and the middle halves of the
    iterations do not overlap.

    Raises OSError, or ValueError for a file that is no result or shares no measurement with the other.
    """
    old, new = read(before), read(after)
    warnings = [
        f"Warning: {what} differ: {old[part][what]} and {new[part][what]}"
        for part, what in CONDITIONS
        if old[part][what] != new[part][what]
    ]
    old_timings, new_timings = dict(timings(old)), dict(timings(new))
    shared = [key for key in old_timings if key in new_timings]
    if not shared:
        raise ValueError(f"{before} and {after} share no measurement: no recipe and batch is in both")
    changes = {key: new_timings[key]["median_ms"] / old_timings[key]["median_ms"] for key in shared}
    lines = [
        [
            *key,
            number(old_timings[key]["median_ms"]),
            number(new_timings[key]["median_ms"]),
            f"{changes[key] - 1:+.1%}",
            verdict(old_timings[key], new_timings[key]),
        ]
        for key in sorted(shared, key=lambda key: -changes[key])
    ]
    columns = [f"{name} ms" for name in told_apart(before, after)]
    header = ["recipe", "measurement", *columns, "change", "verdict"]
    return "\n".join([*warnings, table(header, lines)])


def read(path: Path) -> Mapping[str, Any]:
    """A result that run.py wrote. Raises OSError, or ValueError for any other file."""
    try:
        result = json.loads(path.read_text())
        list(timings(result))
        [result[part][what] for part, what in CONDITIONS]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a result of benchmarks/run.py ({type(error).__name__}: {error})"
        ) from None
    return result


def told_apart(before: Path, after: Path) -> list[str]:
    """The files' names, with as many of their folders as it takes to differ."""
    one, other = (path.resolve().parts for path in (before, after))
    count = next((n for n in range(1, len(one)) if one[-n:] != other[-n:]), 1)
    return ["/".join(parts[-count:]) for parts in (one, other)]


def timings(result: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Mapping[str, Any]]]:
    """(recipe, measurement) and timing of everything measured of ours."""
    for row in result["recipes"]:
        for timing in row.get("inference", []):
            yield (row["name"], f"detect, batch {timing['batch']}"), timing["ours"]
        for part in ("from_images", "training"):
            if part in row:
                yield (
                    (row["name"], f"{part.replace('_', ' ')}, batch {row[part]['batch']}"),
                    row[part]["ours"],
                )


def verdict(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """ "slower", "faster" or "same"."""
    if abs(new["median_ms"] / old["median_ms"] - 1) <= SMALLEST_CHANGE:
        return "same"
    (old_low, old_high), (new_low, new_high) = old["quartiles_ms"], new["quartiles_ms"]
    if new_low > old_high:
        return "slower"
    return "faster" if new_high < old_low else "same"
