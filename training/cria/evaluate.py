"""Measure an exported checkpoint on held-out seeds.

An engine is a callable `(questions, most_new_tokens) -> continuations`: each `Question` carries
prompt token ids and byte tiles, each continuation is a list of token ids with its stop token.
`one_by_one` makes such an engine from a function of one prompt, so another program can be
measured with the same questions. Without one, the torch model answers.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from cria.chat import conversation, raw_text
from cria.data import story_sample
from cria.export import load_model
from cria.images import normalise
from cria.model import Cria
from cria.quant import WeightQuantiser, packed_bytes
from cria.questions import Question, passkey_questions, picture_questions, shape_questions
from cria.tokenizer import load_tokenizer
from cria.torch_engine import TorchEngine

TEST_SEED = 900_001
CHUNK_COUNTS = (1, 2, 4, 8, 16)
FOLDER = Path(__file__).parent

Engine = Callable[[list[Question], int], list[list[int]]]
ContinueOne = Callable[[list[int], np.ndarray | None, int], list[int]]


def one_by_one(continue_one: ContinueOne) -> Engine:
    """Make an engine from `(token ids, normalised tiles or None, most new tokens) -> new ids`."""

    def engine(questions: list[Question], most_new: int) -> list[list[int]]:
        return [
            continue_one(q.prompt, None if q.tiles is None else normalise(q.tiles), most_new)
            for q in questions
        ]

    return engine


def ask_all(engine: Engine, questions: list[Question]) -> list[list[int]]:
    """Answer all questions with room for the longest right answer and a few tokens more."""
    return engine(questions, 4 + max(len(q.answer) for q in questions))


def exact(questions: list[Question], answers: list[list[int]]) -> dict[str, float]:
    """Return the share of exact answers in all, by group and by kind."""
    right, seen = Counter(), Counter()
    for question, answer in zip(questions, answers, strict=True):
        for name in ("all", question.group, question.kind):
            seen[name] += 1
            right[name] += answer == question.answer
    return {name: round(right[name] / seen[name], 4) for name in seen}


def agreement(first: list[list[int]], second: list[list[int]]) -> float:
    """Return the share of equal answers."""
    same = sum(a == b for a, b in zip(first, second, strict=True))
    return round(same / len(first), 4)


def story_prompts(tokenizer: Tokenizer) -> list[Question]:
    """Return ten story openings: raw text and requests in the chat format."""
    prompts = []
    for start in ("Once upon a time", "Once upon a time there was a shy", "Once upon a time, an"):
        sample = raw_text(tokenizer, start)
        prompts.append(Question("story", start, sample.ids[:-1], None, []))
    requests = ["Tell me a story.", "Please tell me a story."]
    requests += [f"Tell me a story about {a}." for a in ("a fox", "an owl", "a llama", "a bear")]
    requests.append("Tell me a story!")
    for request in requests:
        sample = conversation(tokenizer, [(request, "")])
        prompts.append(Question("story", request, sample.ids[:-1], None, []))
    return prompts


def tell_stories(engine: Engine, tokenizer: Tokenizer) -> list[str]:
    """Let the engine tell ten stories (greedy)."""
    prompts = story_prompts(tokenizer)
    stories = []
    for prompt, ids in zip(prompts, engine(prompts, 200), strict=True):
        shown = prompt.kind if prompt.kind.startswith("Once") else f"[{prompt.kind}] "
        stories.append(shown + tokenizer.decode(ids, skip_special_tokens=False))
    return stories


def story_loss(model: Cria, tokenizer: Tokenizer, count: int) -> float:
    """Return the mean loss per token on held-out stories."""
    total, tokens = 0.0, 0
    with torch.no_grad():
        for index in range(count):
            sample = story_sample(np.random.default_rng((TEST_SEED, 77, index)), tokenizer)
            ids = torch.tensor([sample.ids])
            hidden, _, _ = model.hidden(ids, torch.tensor([len(sample.ids)]), None, -1)
            losses = functional.cross_entropy(
                model.logits(hidden)[0, :-1], ids[0, 1:], reduction="none"
            )
            weights = torch.tensor(sample.weights[1:])
            total += float((losses * weights).sum())
            tokens += int(weights.sum())
    return round(total / tokens, 4)


def measure(folder: Path, shapes: int, passkeys: int) -> dict:
    """Measure the checkpoint with full and with simulated int4 weights."""
    tokenizer = load_tokenizer(str(folder / "tokenizer.json"))
    model = load_model(folder)
    engine = TorchEngine(model, tokenizer)
    pictures = shape_questions(tokenizer, shapes, TEST_SEED)
    descriptions = picture_questions(tokenizer, "one tile", 100, TEST_SEED + 1, ("describe",))
    recall = [
        question
        for chunks in CHUNK_COUNTS
        for question in passkey_questions(tokenizer, chunks, passkeys, TEST_SEED)
    ]
    figures: dict = {"test_seed": TEST_SEED}
    full: dict[str, list[list[int]]] = {}
    sets = {"shapes": pictures, "descriptions": descriptions, "passkeys": recall}
    for name, questions in sets.items():
        full[name] = ask_all(engine, questions)
        figures[f"f32_{name}"] = exact(questions, full[name])
        print(f"f32_{name}", figures[f"f32_{name}"], flush=True)
    figures["stories"] = tell_stories(engine, tokenizer)
    shares = engine.expert_counts / engine.expert_counts.sum(-1, keepdim=True)
    figures["expert_shares"] = [[round(s, 4) for s in row] for row in shares.tolist()]
    figures["least_expert_share"] = round(float(shares.min()), 4)
    figures["f32_story_loss"] = story_loss(model, tokenizer, 60)
    with WeightQuantiser(model, candidates=32).quantised():
        for name, questions in sets.items():
            answers = ask_all(engine, questions)
            figures[f"int4_{name}"] = exact(questions, answers)
            figures[f"int4_agrees_{name}"] = agreement(full[name], answers)
            print(f"int4_{name}", figures[f"int4_{name}"], flush=True)
        figures["int4_story_loss"] = story_loss(model, tokenizer, 60)
    questions = len(pictures) + len(recall)
    same = figures["int4_agrees_shapes"] * len(pictures)
    same += figures["int4_agrees_passkeys"] * len(recall)
    figures["int4_agrees"] = round(same / questions, 4)
    tokenizer_bytes = (folder / "tokenizer.json").stat().st_size
    figures["packed_bytes_with_tokenizer"] = packed_bytes(model) + tokenizer_bytes
    return figures


def main() -> None:
    """Measure and print; write the figures when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=FOLDER / "checkpoint")
    parser.add_argument("--shapes", type=int, default=500, help="questions about pictures")
    parser.add_argument("--passkeys", type=int, default=100, help="prompts for each length")
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures = measure(options.checkpoint, options.shapes, options.passkeys)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
