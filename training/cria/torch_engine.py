"""Greedy continuation with the torch model, in batches and without a cache."""

import numpy as np
import torch
from tokenizers import Tokenizer

from cria.model import Cria
from cria.questions import Question
from cria.vision import to_pixels

TOKENS_AT_ONCE = 16384


def _group_by_size(questions: list[Question]) -> list[list[int]]:
    """Split question indices into groups of like length with few tokens."""
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].prompt))
    groups: list[list[int]] = [[]]
    for index in order:
        if (len(groups[-1]) + 1) * (len(questions[index].prompt) + 32) > TOKENS_AT_ONCE:
            groups.append([])
        groups[-1].append(index)
    return [group for group in groups if group]


class TorchEngine:
    """Callable engine: questions -> greedy continuations, each with its stop token."""

    def __init__(self, model: Cria, tokenizer: Tokenizer):
        self.model = model
        self.patch_id = tokenizer.token_to_id("<|patch|>")
        self.stops = {tokenizer.token_to_id(t) for t in ("<|end_of_text|>", "<|eom|>", "<|eot|>")}
        self.expert_counts: torch.Tensor | None = None

    @torch.no_grad()
    def __call__(self, questions: list[Question], most_new: int) -> list[list[int]]:
        """Continue every prompt until a stop token or `most_new` tokens."""
        answers: list[list[int]] = [[] for _ in questions]
        for group in _group_by_size(questions):
            self._continue_group(questions, answers, group, most_new)
        return answers

    def _continue_group(self, questions, answers, group, most_new) -> None:
        """Continue prompts of like length together; answers are filled in place."""
        features = {}
        for index in group:
            if questions[index].tiles is not None:
                features[index] = self.model.image_features(to_pixels(questions[index].tiles))
        active = list(group)
        for step in range(most_new):
            rows = [questions[i].prompt + answers[i] for i in active]
            lengths = torch.tensor([len(row) for row in rows])
            ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
            for row, tokens in enumerate(rows):
                ids[row, : len(tokens)] = torch.tensor(tokens)
            shown = [features[i].flatten(0, 1) for i in active if i in features]
            merged = torch.cat(shown) if shown else None
            hidden, _, counts = self.model.hidden(ids, lengths, merged, self.patch_id)
            if step == 0:
                self._count(counts)
            last = hidden[torch.arange(len(rows)), lengths - 1]
            for index, token in zip(
                active, self.model.logits(last).argmax(-1).tolist(), strict=True
            ):
                answers[index].append(token)
            active = [i for i in active if answers[i][-1] not in self.stops]
            if not active:
                break

    def _count(self, counts: list[torch.Tensor]) -> None:
        """Add the expert counts of a prefill, [layers, experts]."""
        table = torch.stack(counts)
        self.expert_counts = table if self.expert_counts is None else self.expert_counts + table


@torch.no_grad()
def forced_accuracy(model: Cria, questions: list[Question], patch_id: int) -> float:
    """Share of questions whose greedy continuation is the right answer, in one pass each.

    Greedy decoding gives the right answer exactly when every token of it is the likeliest after
    the right tokens before it, so no decoding is needed.
    """
    right = 0
    for group in _group_by_size(questions):
        chosen = [questions[i] for i in group]
        rows = [q.prompt + q.answer for q in chosen]
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        tiles = [q.tiles for q in chosen if q.tiles is not None]
        features = model.image_features(to_pixels(np.concatenate(tiles))) if tiles else None
        hidden, _, _ = model.hidden(ids, lengths, features, patch_id)
        for row, question in enumerate(chosen):
            start, stop = len(question.prompt) - 1, len(rows[row]) - 1
            guesses = model.logits(hidden[row, start:stop]).argmax(-1).tolist()
            right += guesses == question.answer
    return right / len(questions)
