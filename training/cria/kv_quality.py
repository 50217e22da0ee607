"""What quantised keys and values cost: perplexity and recall for every format of `kv_cache`.

The model inside the package reads held-out stories, one after the other until a text has 1024
tokens, and the passkey prompts of `cria.evaluate`. Perplexity is over the words of the stories,
from `Llama4.logits`; recall counts greedy answers that are right to the letter, and the perplexity
of the right answers tells what recall hides. llama4rs must be installed beside `requirements.txt`
(torch is not needed).

    python -m cria.kv_quality --out figures.json
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

import llama4rs
from cria.data import story_sample
from cria.questions import Question, passkey_questions
from cria.tokenizer import load_tokenizer

FORMATS = ("bf16", "f32", "int8", "int4")
"""The first is what the others are compared with."""
TEST_SEED = 900_001
CHUNK_COUNTS = (4, 8, 16)
TEXT_TOKENS = 1024


@dataclass(frozen=True)
class Text:
    """Token ids, and which of them count."""

    ids: list[int]
    weights: list[float]


def story_texts(tokenizer: Tokenizer, count: int) -> list[Text]:
    """Draw held-out texts of stories, the seeds following those of `cria.evaluate`."""
    texts, index = [], 0
    for _ in range(count):
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < TEXT_TOKENS:
            sample = story_sample(np.random.default_rng((TEST_SEED, 77, index)), tokenizer)
            ids += sample.ids
            weights += sample.weights
            index += 1
        texts.append(Text(ids[:TEXT_TOKENS], weights[:TEXT_TOKENS]))
    return texts


def answer_texts(questions: list[Question]) -> list[Text]:
    """The prompts with their right answers, of which the answers count."""
    return [
        Text(q.prompt + q.answer, [0.0] * len(q.prompt) + [1.0] * len(q.answer)) for q in questions
    ]


def losses(llm: llama4rs.Llama4, texts: list[Text]) -> np.ndarray:
    """Return sum of losses and weight of each text, ``[texts, 2]``."""
    found = []
    for text in texts:
        logits = llm.logits(text.ids)[:-1].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        following = np.array(text.ids[1:])
        loss = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(following)), following]
        weights = np.array(text.weights[1:])
        found.append((float(loss @ weights), float(weights.sum())))
    return np.array(found)


def compared(name: str, found: np.ndarray, base: np.ndarray) -> dict[str, float]:
    """Return the perplexity, and how much larger than the base's it is, with a standard error.

    The error is that of a ratio of sums over texts that both have read.
    """
    weight = found[:, 1].sum()
    change = (found[:, 0] - base[:, 0]).sum() / weight
    spread = (found[:, 0] - base[:, 0]) - change * found[:, 1]
    error = np.sqrt((spread**2).sum() * len(spread) / max(len(spread) - 1, 1)) / weight
    return {
        f"{name}_perplexity": round(float(np.exp(found[:, 0].sum() / weight)), 5),
        f"{name}_change_percent": round(100 * float(np.expm1(change)), 3),
        f"{name}_standard_error_percent": round(100 * float(error), 3),
    }


def recall(llm: llama4rs.Llama4, questions: list[Question]) -> float:
    """Return the share of passkeys that are told right."""
    right = 0
    for question in questions:
        output = llm.generate(question.prompt, max_tokens=len(question.answer), temperature=0)
        stop = [output.stop_reason] if output.finish_reason == "stop" else []
        right += [*output.token_ids, *stop] == question.answer
    return right / len(questions)


def measure(packed: str | None, texts: int, passkeys: int, threads: int | None) -> dict:
    """Measure every format."""
    figures: dict = {}
    base: dict[str, np.ndarray] = {}
    for name in FORMATS:
        llm = llama4rs.Llama4(packed, kv_cache=name, threads=threads)
        tokenizer = load_tokenizer(str(Path(llm.path) / "tokenizer.json"))
        questions = [
            q for n in CHUNK_COUNTS for q in passkey_questions(tokenizer, n, passkeys, TEST_SEED)
        ]
        sets = {"story": story_texts(tokenizer, texts), "answer": answer_texts(questions)}
        figures[name] = {"recall": round(recall(llm, questions), 4)}
        for kind, chosen in sets.items():
            found = losses(llm, chosen)
            figures[name] |= compared(kind, found, base.setdefault(kind, found))
        print(name, figures[name], flush=True)
    return figures


def main() -> None:
    """Measure and print; write the figures when asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "packed", nargs="?", help="directory that `llama4rs pack` made; the embedded model if none"
    )
    parser.add_argument("--texts", type=int, default=60, help="texts of 1024 tokens")
    parser.add_argument("--passkeys", type=int, default=50, help="prompts for each length")
    parser.add_argument("--threads", type=int, help="all cores if not given")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    options = parser.parse_args()
    figures = measure(options.packed, options.texts, options.passkeys, options.threads)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
