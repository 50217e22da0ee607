"""Greedy continuation with the torch model, in batches and without a cache."""

import torch
from tokenizers import Tokenizer
from torch import Tensor

from cria.model import Cria
from cria.questions import Question
from cria.vision import to_pixels

TOKENS_AT_ONCE = 16384


def _groups_of_like_length(questions: list[Question]) -> list[list[int]]:
    """Split question indices into groups with few tokens each."""
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].prompt))
    groups: list[list[int]] = [[]]
    for index in order:
        if (len(groups[-1]) + 1) * (len(questions[index].prompt) + 32) > TOKENS_AT_ONCE:
            groups.append([])
        groups[-1].append(index)
    return [group for group in groups if group]


class TorchEngine:
    """Callable engine: questions -> greedy continuations, each with its stop token.

    The right answer of a question serves as a draft: one pass shows how far greedy decoding
    agrees with it, and only the rest is decoded token by token. The result is the same.
    """

    def __init__(self, model: Cria, tokenizer: Tokenizer):
        self.model = model
        self.patch_id = tokenizer.token_to_id("<|patch|>")
        self.stops = {tokenizer.token_to_id(t) for t in ("<|end_of_text|>", "<|eom|>", "<|eot|>")}
        self.expert_counts: Tensor | None = None

    @torch.no_grad()
    def __call__(self, questions: list[Question], most_new: int) -> list[list[int]]:
        """Continue every prompt until a stop token or `most_new` tokens.

        Tokens that agree with the draft may exceed `most_new`.
        """
        answers: list[list[int]] = [[] for _ in questions]
        for group in _groups_of_like_length(questions):
            self._continue_group(questions, answers, group, most_new)
        return answers

    def accuracy(self, questions: list[Question]) -> float:
        """Return the share of questions with exactly the right answer."""
        answers = self(questions, 1)
        return sum(a == q.answer for a, q in zip(answers, questions, strict=True)) / len(questions)

    def _features(self, question: Question) -> Tensor | None:
        """Return the image rows of a question."""
        if question.tiles is None:
            return None
        return self.model.image_features(to_pixels(question.tiles)).flatten(0, 1)

    def _hidden(self, rows: list[list[int]], shown: list[Tensor | None]) -> tuple[Tensor, list]:
        """Run the decoder over rows of different lengths."""
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
        present = [features for features in shown if features is not None]
        merged = torch.cat(present) if present else None
        hidden, _, counts = self.model.hidden(ids, lengths, merged, self.patch_id)
        return hidden, counts

    def _check_drafts(self, questions: list[Question], shown: list) -> list[list[int]]:
        """Return for each question the greedy tokens up to the first that its draft lacks."""
        hidden, counts = self._hidden([q.prompt + q.answer for q in questions], shown)
        table = torch.stack(counts)
        self.expert_counts = table if self.expert_counts is None else self.expert_counts + table
        accepted = []
        for row, question in enumerate(questions):
            start = len(question.prompt) - 1
            guesses = self.model.logits(hidden[row, start : start + len(question.answer) + 1])
            tokens: list[int] = []
            for token, draft in zip(
                guesses.argmax(-1).tolist(), [*question.answer, -1], strict=True
            ):
                tokens.append(token)
                if token != draft or token in self.stops:
                    break
            accepted.append(tokens)
        return accepted

    def _continue_group(self, questions, answers, group, most_new) -> None:
        """Continue prompts of like length together; answers are filled in place."""
        shown = {i: self._features(questions[i]) for i in group}
        drafts = self._check_drafts([questions[i] for i in group], [shown[i] for i in group])
        for index, draft in zip(group, drafts, strict=True):
            answers[index] = draft
        while True:
            active = [
                i for i in group if answers[i][-1] not in self.stops and len(answers[i]) < most_new
            ]
            if not active:
                break
            rows = [questions[i].prompt + answers[i] for i in active]
            hidden, _ = self._hidden(rows, [shown[i] for i in active])
            ends = torch.tensor([len(row) - 1 for row in rows])
            best = self.model.logits(hidden[torch.arange(len(rows)), ends]).argmax(-1)
            for index, token in zip(active, best.tolist(), strict=True):
                answers[index].append(token)
