"""Draws reports of `end_to_end.py`: bars for speeds, a line across each for its limit.

    python benches/plot.py REPORTS.json OUT.svg

Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

COLOURS = ("#6fb3c8", "#31688e", "#35b779", "#7a5195", "#c9a227", "#b5651d")
WIDTH = 0.8


def draw(axes: Axes, results: list[dict[str, Any]], colours: dict[str, str], title: str) -> None:
    """One panel: a group of bars for each test, one bar for each engine."""
    tests = list(dict.fromkeys(result["test"] for result in results))
    for at, test in enumerate(tests):
        group = [result for result in results if result["test"] == test]
        width = WIDTH / len(group)
        for number, result in enumerate(group):
            x = at + (number - (len(group) - 1) / 2) * width
            draw_bar(axes, x, width, result, colours[result["engine"]])
    axes.set_xticks(range(len(tests)), tests, fontsize=7)
    axes.set_title(title, fontsize=9)
    axes.set_ylabel("tokens/s")
    axes.spines[["top", "right"]].set_visible(False)


def draw_bar(axes: Axes, x: float, width: float, result: dict[str, Any], colour: str) -> None:
    """The median with its spread, and the limit across."""
    rate = result["tokens_per_second"]
    middle = rate["median"]
    error = [[middle - rate["min"]], [rate["max"] - middle]]
    axes.bar(x, middle, width * 0.92, color=colour, label=result["engine"])
    axes.errorbar(x, middle, error, color="#444444", linewidth=0.8, capsize=2)
    axes.annotate(
        f"{middle:.0f}",
        (x, 0),
        (0, 3),
        ha="center",
        color="white",
        fontsize=7,
        textcoords="offset points",
    )
    limit = middle / result["share_of_limit"]["median"]
    axes.hlines(limit, x - width / 2, x + width / 2, color="black", linewidth=1.5)


def main() -> None:
    """Draws one row of panels for each model and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("reports", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    plt.rcParams["svg.hashsalt"] = "llama4rs"  # the same picture from the same figures
    rows: dict[str, list[dict[str, Any]]] = {}
    for report in json.loads(arguments.reports.read_text()):
        threads = report["threads"]
        title = f"{report['model']}, {threads} thread{'s' * (threads > 1)}"
        rows.setdefault(title, []).extend(report["results"])
    engines = sorted({result["engine"] for results in rows.values() for result in results})
    engines.sort(key=lambda name: not name.startswith("llama4rs"))
    colours = {engine: COLOURS[i % len(COLOURS)] for i, engine in enumerate(engines)}
    figure, panels = plt.subplots(
        len(rows), 2, figsize=(11, 2.9 * len(rows)), squeeze=False, width_ratios=(2, 4)
    )
    for (title, results), row in zip(rows.items(), panels, strict=True):
        for axes, kind in zip(row, ("prefill", "decode"), strict=True):
            some = [result for result in results if result["test"].startswith(kind)]
            draw(axes, some, colours, f"{title}: {kind}")
    figure.legend(
        [Patch(color=colours[engine]) for engine in engines],
        engines,
        loc="lower center",
        ncols=len(engines),
        frameon=False,
        title="black line: limit of the machine, measured in the same run",
    )
    figure.tight_layout(rect=(0, 0.2 / len(rows), 1, 1))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    is_svg = arguments.out.suffix == ".svg"
    figure.savefig(arguments.out, metadata={"Date": None} if is_svg else None)


if __name__ == "__main__":
    main()
