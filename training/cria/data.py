"""Batches of every task, drawn fresh from seeds, and a thread that draws them ahead."""

import queue
import threading
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from cria import passkey, shapes, smalltalk, stories
from cria.chat import Sample, conversation, raw_text
from cria.config import TEXT
from cria.images import image_tokens, split_into_tiles

TASKS = ("passkey", "picture", "tiles", "story")
COST_PER_BATCH = 3000
TILE_COST = 12
KIND_SHARES = (0.07, 0.07, 0.10, 0.11, 0.13, 0.28, 0.24)
REPEATED_DIGITS = 0.3
BOUNDARY_SHARE = 0.55
SHORT_PASSKEY = 160
LONG_SHARE = 0.35
SYSTEM_PROMPT = "You are cria."


@dataclass
class Batch:
    """Padded arrays of one task."""

    task: str
    ids: np.ndarray
    weights: np.ndarray
    lengths: np.ndarray
    tiles: np.ndarray | None
    labels: np.ndarray | None


def add_picture(sample_tiles: list, sample_labels: list, scene: shapes.Scene) -> str:
    """Append the tiles of a scene and return its token sequence."""
    tiles, canvas = split_into_tiles(scene.image)
    labels = np.full((len(tiles), 9, 2), -1, dtype=np.int64)
    labels[-1] = scene.cell_labels()
    sample_tiles.extend(tiles)
    sample_labels.extend(labels)
    return image_tokens(canvas)


def picture_sample(
    rng: np.random.Generator,
    tokenizer: Tokenizer,
    pictures: int,
    multi_tile: float,
    kinds: tuple[str, ...],
    system: bool = True,
) -> Sample:
    """Draw a conversation about one or two pictures with one turn for each kind of question.

    With `system` a few conversations have a system prompt.
    """
    tiles: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    scenes = [shapes.draw_scene(rng, multi_tile) for _ in range(pictures)]
    prefix = "".join(add_picture(tiles, labels, scene) for scene in scenes)
    turns = []
    for kind in kinds:
        index = rng.integers(pictures)
        which = ("first", "second")[index] if pictures == 2 else ""
        question, answer = shapes.ask(rng, scenes[index], kind, which)
        turns.append((prefix + question, answer))
        prefix = ""
    sample = conversation(tokenizer, turns, _system(rng) if system else None)
    sample.tiles, sample.labels = tiles, labels
    return sample


def _system(rng: np.random.Generator) -> str | None:
    """Draw a system prompt now and then."""
    return SYSTEM_PROMPT if rng.random() < 0.05 else None


def _question_kinds(rng: np.random.Generator, turns: int) -> tuple[str, ...]:
    """Draw different kinds of question, a description among them now and then."""
    kinds = [str(k) for k in rng.choice(shapes.QUESTION_KINDS, turns, False, KIND_SHARES)]
    if rng.random() < 0.35:
        kinds[rng.integers(turns)] = "describe"
    return tuple(kinds)


def passkey_sample(
    rng: np.random.Generator,
    tokenizer: Tokenizer,
    tokens: int,
    depth: float | None = None,
    repeats: float = 0.0,
) -> Sample:
    """Draw a recall prompt; the whole prompt, chat marks included, has at most `tokens` tokens."""

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    question, answer = passkey.hide(rng, tokens - 11, count, depth, repeats)
    return conversation(tokenizer, [(question, answer)])


def story_sample(rng: np.random.Generator, tokenizer: Tokenizer) -> Sample:
    """Draw a raw story, a requested story or small talk."""
    kind = rng.random()
    if kind < 0.45:
        return raw_text(tokenizer, stories.tell(rng))
    if kind < 0.9:
        return conversation(tokenizer, [smalltalk.story_request(rng)], _system(rng))
    turns = [smalltalk.exchange(rng) for _ in range(rng.integers(1, 4))]
    return conversation(tokenizer, turns, _system(rng))


def collate(task: str, samples: list[Sample], pad: int) -> Batch:
    """Pad samples on the right."""
    lengths = np.array([len(s.ids) for s in samples])
    ids = np.full((len(samples), lengths.max()), pad, dtype=np.int64)
    weights = np.zeros(ids.shape, dtype=np.float32)
    for row, sample in enumerate(samples):
        ids[row, : lengths[row]] = sample.ids
        weights[row, : lengths[row]] = sample.weights
    tiles = [t for s in samples for t in s.tiles]
    labels = [t for s in samples for t in s.labels]
    return Batch(
        task,
        ids,
        weights,
        lengths,
        np.stack(tiles) if tiles else None,
        np.stack(labels) if labels else None,
    )


def draw_batch(
    rng: np.random.Generator, tokenizer: Tokenizer, task: str, longest_passkey: int
) -> Batch:
    """Draw a batch of a task; all batches cost about the same time (padding included).

    A share of the passkey prompts ends just before a chunk boundary, so that answers cross it.
    """
    longest = longest_passkey if rng.random() < LONG_SHARE else min(longest_passkey, SHORT_PASSKEY)
    tokens = int(np.exp(rng.uniform(np.log(52), np.log(longest))))
    if rng.random() < BOUNDARY_SHARE:
        tokens = -(-tokens // TEXT.chunk) * TEXT.chunk
    pictures = 2 if rng.random() < (0.6 if task == "picture" else 0.4) else 1
    multi_tile = 0.0 if task == "picture" else 0.9
    samples: list[Sample] = []
    width, tiles = 0, 0
    while True:
        if task == "passkey":
            sample = passkey_sample(rng, tokenizer, tokens, repeats=REPEATED_DIGITS)
        elif task == "story":
            sample = story_sample(rng, tokenizer)
        else:
            kinds = _question_kinds(rng, 4)
            sample = picture_sample(rng, tokenizer, pictures, multi_tile, kinds)
        width, tiles = max(width, len(sample.ids)), tiles + len(sample.tiles)
        if samples and (len(samples) + 1) * width + tiles * TILE_COST > COST_PER_BATCH:
            break
        samples.append(sample)
    return collate(task, samples, tokenizer.token_to_id("<|finetune_right_pad|>"))


class BatchStream:
    """Batches drawn ahead in a thread.

    Batch i depends on the seeds, i, `mixture` (the shares of the tasks) and `longest` (the
    longest passkey prompt) only.
    """

    def __init__(self, tokenizer: Tokenizer, seeds: tuple[int, ...], mixture, longest: int):
        self.mixture, self.longest = mixture, longest
        self._queue: queue.Queue[Batch] = queue.Queue(maxsize=4)
        self._arguments = (tokenizer, seeds)
        threading.Thread(target=self._produce, daemon=True).start()

    def _produce(self) -> None:
        """Fill the queue for ever."""
        tokenizer, seeds = self._arguments
        index = 0
        while True:
            rng = np.random.default_rng((*seeds, index))
            task = str(rng.choice(TASKS, p=self.mixture))
            self._queue.put(draw_batch(rng, tokenizer, task, self.longest))
            index += 1

    def next(self) -> Batch:
        """Take the next batch."""
        return self._queue.get()
