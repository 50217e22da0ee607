"""Ask cria the held-out questions through llama4rs, and compare packed with full weights.

The questions are those of `cria.evaluate`: the same seeds, the same pictures. Here they go the way
a user's go: pictures as PIL images and questions as text into `Llama4.generate`, so preprocessing,
chat template, tokenizer and engine all take part. Prompts and tiles are compared with those of
the training code, byte by byte. llama4rs must be installed beside `requirements.txt`.

    python -m cria.engine_check                            # the model inside the package
    python -m cria.engine_check PACKED --checkpoint DIR --out figures.json
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

import llama4rs
from cria.chat import EOT
from cria.evaluate import CHUNK_COUNTS, FOLDER, TEST_SEED, agreement, exact
from cria.questions import (
    PICTURE_SETS,
    Question,
    passkey_questions,
    picture_questions,
    shape_questions,
)
from cria.shapes import draw_scene
from cria.tokenizer import load_tokenizer
from llama4rs.images import ImageConfig, load_image, preprocess

AT_ONCE = 50
ROOM = 4
"""Tokens that an answer may have beyond the longest right one, as in `cria.evaluate`."""
MOST_MISTAKES = 40

Answers = list[list[int]]


@dataclass(frozen=True)
class Asked:
    """A held-out question as a user asks it."""

    question: Question
    text: str
    images: list[Image.Image]

    @property
    def messages(self) -> list[dict]:
        """The conversation, pictures before the text."""
        pictures = [{"type": "image", "image": image} for image in self.images]
        return [{"role": "user", "content": [*pictures, {"type": "text", "text": self.text}]}]


def as_asked(questions: list[Question], tokenizer: Tokenizer, seed: int) -> list[Asked]:
    """Find the texts and draw the pictures of one set of questions."""
    drawn = dict.fromkeys(PICTURE_SETS, 0)
    asked = []
    for question in questions:
        images: list[Image.Image] = []
        if question.tiles is not None:
            images = draw_pictures(question.group, drawn[question.group], seed)
            drawn[question.group] += 1
        asked.append(Asked(question, user_text(question, tokenizer), images))
    return asked


def draw_pictures(group: str, index: int, seed: int) -> list[Image.Image]:
    """Draw the pictures of `picture_questions` again; scenes come first from its generator."""
    pictures, multi_tile = PICTURE_SETS[group]
    rng = np.random.default_rng((seed, sorted(PICTURE_SETS).index(group), index))
    return [draw_scene(rng, multi_tile).image for _ in range(pictures)]


def user_text(question: Question, tokenizer: Tokenizer) -> str:
    """Read the user's words from the prompt: all between header or pictures and the turn's end."""
    before = {tokenizer.token_to_id(name) for name in ("<|header_end|>", "<|image_end|>")}
    end = question.prompt.index(tokenizer.token_to_id(EOT))
    start = 1 + max(i for i, token in enumerate(question.prompt[:end]) if token in before)
    return tokenizer.decode(question.prompt[start:end]).removeprefix("\n\n")


def check_tiles(asked: list[Asked], config: ImageConfig) -> None:
    """Fail unless preprocessing gives the very tiles that the model was trained on."""
    for one in asked:
        if one.images:
            tiles = [preprocess(load_image(image), config) for image in one.images]
            if not np.array_equal(np.concatenate(tiles), one.question.tiles):
                raise SystemExit(f"other tiles than in training: {one.question.group}")


def ask(llm: llama4rs.Llama4, asked: list[Asked]) -> tuple[Answers, np.ndarray]:
    """Return greedy answers, each with its stop token, and tokens by layer and expert."""
    most_new = ROOM + max(len(one.question.answer) for one in asked)
    answers: Answers = []
    usage = 0
    for start in range(0, len(asked), AT_ONCE):
        some = asked[start : start + AT_ONCE]
        outputs = llm.generate([one.messages for one in some], max_tokens=most_new, temperature=0)
        for one, output in zip(some, outputs, strict=True):
            if list(output.prompt_token_ids) != one.question.prompt:
                raise SystemExit(f"another prompt than in training: {one.text!r}")
            stop = [output.stop_reason] if output.finish_reason == "stop" else []
            answers.append([*output.token_ids, *stop])
            usage = usage + output.expert_usage
    return answers, np.asarray(usage)


def agreement_by_group(questions: list[Question], first: Answers, second: Answers) -> dict:
    """Return the share of equal answers in all, by group and by kind."""
    figures = {"all": agreement(first, second)}
    for name in dict.fromkeys(n for q in questions for n in (q.group, q.kind)):
        chosen = [i for i, q in enumerate(questions) if name in (q.group, q.kind)]
        figures[name] = agreement([first[i] for i in chosen], [second[i] for i in chosen])
    return figures


def mistakes(asked: list[Asked], answers: Answers, tokenizer: Tokenizer) -> list[dict]:
    """Return wrong answers beside the right ones."""
    return [
        {
            "group": one.question.group,
            "question": one.text[-80:],
            "right": tokenizer.decode(one.question.answer),
            "given": tokenizer.decode(answer),
        }
        for one, answer in zip(asked, answers, strict=True)
        if answer != one.question.answer
    ]


def question_sets(tokenizer: Tokenizer, shapes: int, passkeys: int) -> dict[str, list[Asked]]:
    """Draw all held-out questions."""
    recall = [
        question
        for chunks in CHUNK_COUNTS
        for question in passkey_questions(tokenizer, chunks, passkeys, TEST_SEED)
    ]
    described = picture_questions(tokenizer, "one tile", 100, TEST_SEED + 1, ("describe",))
    return {
        "shapes": as_asked(shape_questions(tokenizer, shapes, TEST_SEED), tokenizer, TEST_SEED),
        "descriptions": as_asked(described, tokenizer, TEST_SEED + 1),
        "passkeys": as_asked(recall, tokenizer, TEST_SEED),
    }


def measure(
    packed: llama4rs.Llama4, full: llama4rs.Llama4 | None, shapes: int, passkeys: int
) -> dict:
    """Ask everything, with full weights as well if there are any."""
    tokenizer = load_tokenizer(str(packed.path / "tokenizer.json"))
    config = ImageConfig.from_directory(packed.path)
    form = llama4rs.inspect(packed.path).get("weights") or "int4"
    figures: dict = {"test_seed": TEST_SEED, "weights": form, "device": packed.device}
    wrong: list[dict] = []
    usage = 0
    for name, asked in question_sets(tokenizer, shapes, passkeys).items():
        check_tiles(asked, config)
        questions = [one.question for one in asked]
        began = time.perf_counter()
        answers, used = ask(packed, asked)
        figures[f"seconds_{name}"] = round(time.perf_counter() - began, 2)
        figures[f"packed_{name}"] = exact(questions, answers)
        wrong += mistakes(asked, answers, tokenizer)
        usage = usage + used
        rows = {form: figures[f"packed_{name}"]}
        if full is not None:
            reference, _ = ask(full, asked)
            rows["f32"] = figures[f"f32_{name}"] = exact(questions, reference)
            rows["agree"] = figures[f"agrees_{name}"] = agreement_by_group(
                questions, reference, answers
            )
        print_table(name, questions, rows)
    shares = usage / usage.sum(axis=1, keepdims=True)
    figures["expert_shares"] = shares.round(4).tolist()
    figures["least_expert_share"] = round(float(shares.min()), 4)
    figures["mistakes"] = wrong[:MOST_MISTAKES]
    print_experts(shares)
    return figures


def print_table(name: str, questions: list[Question], columns: dict[str, dict]) -> None:
    """Print shares in percent: a line for all, for each group and for each kind."""
    kinds = sorted({q.kind for q in questions} - {"passkey"})
    groups = list(dict.fromkeys(q.group for q in questions))
    print(f"\n{name:<28}{'number':>8}" + "".join(f"{column:>9}" for column in columns))
    for row in ("all", *groups, *kinds):
        number = sum(row in ("all", q.group, q.kind) for q in questions)
        cells = "".join(f"{100 * values[row]:>8.1f}%" for values in columns.values())
        print(f"{row:<28}{number:>8}{cells}", flush=True)


def print_experts(shares: np.ndarray) -> None:
    """Print what share of the tokens each expert computed."""
    print("\nexperts, % of tokens")
    for layer, row in enumerate(shares):
        print(f"layer {layer:<3}" + "".join(f"{100 * share:>7.1f}" for share in row))


def main() -> None:
    """Measure and print; write the figures when asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "packed", nargs="?", help="directory that `llama4rs pack` made; the embedded model if none"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=FOLDER / "checkpoint",
        help="the same model before packing, to run in f32; left out if there is none",
    )
    parser.add_argument("--shapes", type=int, default=500, help="questions about pictures")
    parser.add_argument("--passkeys", type=int, default=100, help="prompts for each length")
    parser.add_argument("--threads", type=int, help="all cores if not given")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    options = parser.parse_args()
    packed = llama4rs.Llama4(options.packed, threads=options.threads)
    full = None
    if (options.checkpoint / "config.json").is_file():
        full = llama4rs.Llama4(options.checkpoint, weights="f32", threads=options.threads)
    else:
        print(f"no checkpoint in {options.checkpoint}: not compared with f32")
    figures = measure(packed, full, options.shapes, options.passkeys)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
