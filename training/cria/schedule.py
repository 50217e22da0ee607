"""Learning rate, task mixture and task weights of a run.

Answers are mostly easy words around one hard one, stories are not: answers weigh more.
"""

import math

from cria.data import TASKS

SHARES = {"passkey": 0.25, "picture": 0.40, "tiles": 0.21, "story": 0.14}
LATE_SHARES = {"passkey": 0.20, "picture": 0.42, "tiles": 0.26, "story": 0.12}
LATE = 0.8
TASK_WEIGHTS = {"passkey": 3.0, "picture": 3.0, "tiles": 3.0, "story": 1.0}
WARM_UP_STEPS = 100


def learning_rate(step: int, progress: float, highest: float) -> float:
    """Warm up over steps, then follow a cosine over the share of time that is used up."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return highest * warm * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))


def mixture(progress: float) -> list[float]:
    """Return the share of each task in the order of `TASKS`; pictures need the most, late too."""
    shares = LATE_SHARES if progress >= LATE else SHARES
    return [shares[task] for task in TASKS]
