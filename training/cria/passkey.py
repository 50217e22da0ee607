"""Recall over distance: a number hidden somewhere in filler text, asked for at the end."""

from collections.abc import Callable

import numpy as np

from cria.stories import filler_sentence

DIGITS = 5


def hide(
    rng: np.random.Generator,
    tokens: int,
    count_tokens: Callable[[str], int],
    depth: float | None = None,
) -> tuple[str, str]:
    """Return a user message of nearly `tokens` tokens and the answer.

    `count_tokens` measures text; `depth` in [0, 1] is where the number stands (random if None).
    """
    key = "".join(str(d) for d in rng.integers(0, 10, size=DIGITS))
    statement = f"The passkey is {key}. Remember it. {key} is the passkey."
    question = "What is the passkey?"
    room = tokens - count_tokens(f"{statement} {question}")
    filler: list[str] = []
    while True:
        sentence = filler_sentence(rng)
        room -= count_tokens(f" {sentence}")
        if room < 0:
            break
        filler.append(sentence)
    where = rng.random() if depth is None else depth
    filler.insert(round(where * len(filler)), statement)
    return " ".join([*filler, question]), f"The passkey is {key}."
