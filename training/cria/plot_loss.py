"""Draw the loss curves of a run from its log."""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

LABELS = {
    "story": "stories",
    "picture": "pictures, one tile",
    "tiles": "pictures, several tiles",
    "passkey": "passkeys",
}


def main() -> None:
    """Read the log and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, default=Path("runs/cria/log.jsonl"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "loss.png")
    options = parser.parse_args()
    records = [json.loads(line) for line in options.log.read_text().splitlines()]
    joint = [r for r in records if r["stage"] == "joint"]
    checks = [r for r in records if r["stage"] == "check"]
    figure, (losses, scores) = plt.subplots(2, 1, figsize=(8, 8), sharex=True)
    for task, label in LABELS.items():
        points = [(r["tokens"] / 1e6, r[task]) for r in joint if task in r]
        losses.plot(*zip(*points, strict=True), label=label)
    losses.set_yscale("log")
    losses.set_ylabel("loss per answer token (running mean)")
    losses.legend()
    tokens_at = {r["step"]: r["tokens"] / 1e6 for r in joint}
    for name in (k for k in checks[0] if k not in ("stage", "step", "seconds")):
        points = [
            (tokens_at[max(s for s in tokens_at if s <= r["step"])], 100 * r[name]) for r in checks
        ]
        scores.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    scores.set_ylabel("held-out answers exact, %")
    scores.set_xlabel("million tokens trained")
    scores.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
