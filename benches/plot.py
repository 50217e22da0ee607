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

COLOURS = ("#31688e", "#6fb3c8", "#c9a227", "#b5651d")
WIDTH = 0.8


def draw(axes: Axes, results: list[dict[str, Any]], title: str) -> None:
    """One panel: a group of bars for each test, one bar for each engine."""
    tests = list(dict.fromkeys(result["test"] for result in results))
    engines = list(dict.fromkeys(result["engine"] for result in results))
    width = WIDTH / len(engines)
    for result in results:
        number = engines.index(result["engine"])
        at = tests.index(result["test"]) + (number - (len(engines) - 1) / 2) * width
        rate, share = result["tokens_per_second"], result["share_of_limit"]
        middle = rate["median"]
        error = [[middle - rate["min"]], [rate["max"] - middle]]
        axes.bar(at, middle, width * 0.92, color=COLOURS[number], label=result["engine"])
        axes.errorbar(at, middle, error, color="#444444", linewidth=0.8, capsize=2)
        axes.annotate(
            f"{middle:.0f}",
            (at, 0),
            (0, 3),
            ha="center",
            color="white",
            fontsize=7,
            textcoords="offset points",
        )
        if share:
            limit = middle / share["median"]
            axes.hlines(limit, at - width / 2, at + width / 2, color="black", linewidth=1.5)
    axes.set_xticks(range(len(tests)), tests)
    axes.set_title(title, fontsize=9)
    axes.set_ylabel("tokens/s")
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draws one row of panels for each report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("reports", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    reports = json.loads(arguments.reports.read_text())
    plt.rcParams["svg.hashsalt"] = "llama4rs"  # the same picture from the same figures
    size = (9, 2.9 * len(reports))
    figure, panels = plt.subplots(len(reports), 2, figsize=size, squeeze=False, width_ratios=(2, 3))
    for report, row in zip(reports, panels, strict=True):
        for axes, kind in zip(row, ("prefill", "decode"), strict=True):
            results = [r for r in report["results"] if r["test"].startswith(kind)]
            draw(axes, results, f"{report['model']}, {report['threads']} threads: {kind}")
    handles, labels = panels[0][0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(),
        unique.keys(),
        loc="lower center",
        ncols=len(unique),
        frameon=False,
        title="black line: limit of the machine, measured in the same run",
    )
    figure.tight_layout(rect=(0, 0.3 / len(reports) / 1.6, 1, 1))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(
        arguments.out, metadata={"Date": None} if arguments.out.suffix == ".svg" else None
    )


if __name__ == "__main__":
    main()
