"""Held-out questions: prompts with their right answers, the same for every engine."""

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from cria import shapes
from cria.chat import Sample
from cria.config import TEXT
from cria.data import passkey_sample, picture_sample

PICTURE_SETS = {
    "one tile": (1, 0.0),
    "several tiles": (1, 1.0),
    "two pictures": (2, 0.0),
    "two pictures, several tiles": (2, 0.6),
}

SHORTEST_PASSKEY = 52


@dataclass(frozen=True)
class Question:
    """A prompt (token ids and byte tiles) and the token ids of the right answer."""

    group: str
    kind: str
    prompt: list[int]
    tiles: np.ndarray | None
    answer: list[int]


def as_question(sample: Sample, group: str, kind: str) -> Question:
    """Split a one-turn sample into prompt and answer."""
    start = next(i for i, weight in enumerate(sample.weights) if weight > 0)
    tiles = np.stack(sample.tiles) if sample.tiles else None
    return Question(group, kind, sample.ids[:start], tiles, sample.ids[start:])


def picture_questions(
    tokenizer: Tokenizer, group: str, count: int, seed: int, kinds: tuple[str, ...]
) -> list[Question]:
    """Draw questions of one picture set; the kinds take turns."""
    pictures, multi_tile = PICTURE_SETS[group]
    found = []
    for index in range(count):
        rng = np.random.default_rng((seed, sorted(PICTURE_SETS).index(group), index))
        kind = kinds[index % len(kinds)]
        sample = picture_sample(rng, tokenizer, pictures, multi_tile, (kind,), system=False)
        found.append(as_question(sample, group, kind))
    return found


def shape_questions(tokenizer: Tokenizer, count: int, seed: int) -> list[Question]:
    """Draw the mixed test: half of the pictures have one tile, the rest spread evenly."""
    shares = {"one tile": 0.5, "several tiles": 0.2, "two pictures": 0.2}
    counts = {group: round(share * count) for group, share in shares.items()}
    counts["two pictures, several tiles"] = count - sum(counts.values())
    return [
        question
        for group, number in counts.items()
        for question in picture_questions(tokenizer, group, number, seed, shapes.QUESTION_KINDS)
    ]


def passkey_questions(tokenizer: Tokenizer, chunks: int, count: int, seed: int) -> list[Question]:
    """Draw recall prompts that end in chunk number `chunks`, the number at spread depths."""
    group = f"{chunks} chunk" + ("" if chunks == 1 else "s")
    found = []
    for index in range(count):
        rng = np.random.default_rng((seed, chunks, index))
        depth = (index + 0.5) / count
        least = max(SHORTEST_PASSKEY, (chunks - 1) * TEXT.chunk + 12)
        tokens = int(rng.integers(least, chunks * TEXT.chunk + 1))
        sample = passkey_sample(rng, tokenizer, tokens, depth)
        found.append(as_question(sample, group, "passkey"))
    return found
