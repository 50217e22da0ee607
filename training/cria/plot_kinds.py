"""Draw how many picture questions of each kind the packed model answers exactly."""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

LABELS = {
    "colour": "which colour",
    "shape": "which shape",
    "place": "where",
    "what": "what is there",
    "count": "how many shapes",
    "count_shape": "how many of a shape",
    "count_colour": "how many of a colour",
    "one tile": "one tile",
    "several tiles": "several tiles",
    "two pictures": "two pictures",
    "two pictures, several tiles": "two pictures,\nseveral tiles",
}


def main() -> None:
    """Read the figures of `engine_check` and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    folder = Path(__file__).parent
    parser.add_argument("--figures", type=Path, default=folder / "engine_figures.json")
    parser.add_argument("--out", type=Path, default=folder / "kinds.png")
    options = parser.parse_args()
    figures = json.loads(options.figures.read_text())
    packed, full = figures["packed_shapes"], figures["f32_shapes"]
    rows = list(reversed(LABELS))
    figure, axes = plt.subplots(figsize=(8, 5))
    places = range(len(rows))
    axes.barh([y + 0.2 for y in places], [100 * packed[k] for k in rows], 0.4, label="int4")
    axes.barh([y - 0.2 for y in places], [100 * full[k] for k in rows], 0.4, label="f32")
    axes.axvline(95, color="grey", linestyle="--", linewidth=1)
    axes.set_yticks(places, [LABELS[k] for k in rows])
    axes.set_xlim(60, 100)
    axes.set_xlabel("held-out questions answered exactly, % (500 in all)")
    axes.legend(loc="lower left")
    figure.tight_layout()
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
