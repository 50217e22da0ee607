"""Recall over distance: a number hidden somewhere in filler text, asked for at the end."""

from collections.abc import Callable

import numpy as np

from cria.stories import filler_sentence

DIGITS = 5


def draw_key(rng: np.random.Generator, repeats: float) -> str:
    """Draw a number; with probability `repeats` it has at most three different digits.

    Such numbers teach to copy by place in the number: the digit after the last one said is
    ambiguous in them.
    """
    if rng.random() < repeats:
        digits = rng.choice(rng.permutation(10)[:3], size=DIGITS)
    else:
        digits = rng.integers(0, 10, size=DIGITS)
    return "".join(str(digit) for digit in digits)


def hide(
    rng: np.random.Generator,
    tokens: int,
    count_tokens: Callable[[str], int],
    depth: float | None = None,
    repeats: float = 0.0,
) -> tuple[str, str]:
    """Return a user message of nearly `tokens` tokens and the answer.

    `count_tokens` measures text; `depth` in [0, 1] is where the number stands (random if None).
    `repeats` is the share of numbers with few different digits.
    """
    key = draw_key(rng, repeats)
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
