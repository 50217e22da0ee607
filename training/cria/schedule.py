"""Learning rate and task mixture over a run."""

import math

from cria.data import TASKS

SHARES = {"passkey": 0.25, "picture": 0.37, "tiles": 0.23, "story": 0.15}
WARM_UP_STEPS = 100


def learning_rate(step: int, progress: float, highest: float) -> float:
    """Warm up over steps, then follow a cosine over the share of time that is used up."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return highest * warm * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))


def mixture() -> list[float]:
    """Return the share of each task in the order of `TASKS`."""
    return [SHARES[task] for task in TASKS]
