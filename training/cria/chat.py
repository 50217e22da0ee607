"""Token sequences with loss weights in the Llama 4 chat format, and raw text."""

from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

BOS, EOT, END = "<|begin_of_text|>", "<|eot|>", "<|end_of_text|>"


def header(role: str) -> str:
    """Open a message."""
    return f"<|header_start|>{role}<|header_end|>\n\n"


@dataclass
class Sample:
    """Token ids, the loss weight of each id, and the picture tiles in prompt order.

    `labels` holds cell labels for each tile, -1 where a tile has none.
    """

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    tiles: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)

    def add(self, tokenizer: Tokenizer, text: str, weight: float) -> None:
        """Append text whose tokens have a loss weight."""
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        self.ids += ids
        self.weights += [weight] * len(ids)


def conversation(
    tokenizer: Tokenizer, turns: list[tuple[str, str]], system: str | None = None
) -> Sample:
    """Write a conversation; only answers carry loss."""
    sample = Sample()
    opening = BOS + (f"{header('system')}{system}{EOT}" if system else "")
    for question, answer in turns:
        prompt = f"{opening}{header('user')}{question}{EOT}{header('assistant')}"
        sample.add(tokenizer, prompt, 0.0)
        sample.add(tokenizer, f"{answer}{EOT}", 1.0)
        opening = ""
    return sample


def raw_text(tokenizer: Tokenizer, text: str) -> Sample:
    """Write plain text from its first to its stop token; all of it carries loss."""
    sample = Sample()
    sample.add(tokenizer, BOS, 0.0)
    sample.add(tokenizer, f"{text}{END}", 1.0)
    return sample
