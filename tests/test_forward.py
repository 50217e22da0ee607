"""The engine's logits and greedy tokens against transformers' stored answers."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import MakeCheckpoint
from llama4rs._llama4rs import Engine
from oracle.answers import load_answers
from oracle.checkpoint import weights
from oracle.comparison import assert_agrees
from oracle.configs import SEEDS, TEXT
from oracle.llama4_numpy import Llama4
from oracle.prompts import text_prompts

PROMPTS = [(name, prompt) for name in TEXT for prompt in text_prompts(TEXT[name])]


def generate(engine: Engine, ids: list[int], max_tokens: int, **options: float) -> list[int]:
    """Token ids of a request that is run alone."""
    request = engine.submit(ids, max_tokens=max_tokens, **options)
    tokens = []
    while (event := request.next()) is not None:
        if event.token_id is not None:
            tokens.append(event.token_id)
    return tokens


@pytest.mark.parametrize(("name", "prompt"), PROMPTS)
def test_logits_equal_transformers(checkpoint: MakeCheckpoint, name: str, prompt: str) -> None:
    answers = load_answers()
    engine = Engine(str(checkpoint(name)), weights="f32", threads=2)
    ids = text_prompts(TEXT[name])[prompt]
    expected = answers[f"{name}/{prompt}/logits"]
    assert_agrees(engine.logits(ids), expected, f"{name}/{prompt}", tolerance=1e-3)


@pytest.mark.parametrize(("name", "prompt"), PROMPTS)
def test_greedy_tokens_equal_transformers(
    checkpoint: MakeCheckpoint, name: str, prompt: str
) -> None:
    expected = load_answers()[f"{name}/{prompt}/greedy"].tolist()
    engine = Engine(str(checkpoint(name)), weights="f32", threads=2)
    ids = text_prompts(TEXT[name])[prompt]
    assert generate(engine, ids, len(expected)) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "split"},
        {"num_shards": 3},
        {"dtype": "bfloat16"},
        {"dtype": "float16", "layout": "split", "num_shards": 2},
        {"multimodal_prefix": True},
        {"rope_keys": "old"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["scout_like", "maverick_like", "dense"])
def test_every_published_layout_gives_the_same_logits(
    checkpoint: MakeCheckpoint, name: str, options: dict[str, object]
) -> None:
    ids = text_prompts(TEXT[name])["43_tokens"]
    expected = load_answers()[f"{name}/43_tokens/logits"]
    engine = Engine(str(checkpoint(name, **options)), weights="f32", threads=1)
    assert_agrees(engine.logits(ids), expected, f"{name} {options}", tolerance=1e-3)


@pytest.mark.parametrize("name", TEXT)
def test_routed_experts_are_counted(checkpoint: MakeCheckpoint, name: str) -> None:
    config = TEXT[name]
    ids = text_prompts(config)["43_tokens"]
    engine = Engine(str(checkpoint(name)), weights="f32", threads=1)
    request = engine.submit(ids, max_tokens=0)
    while request.next() is not None:
        pass
    expected = np.zeros_like(request.expert_usage())
    reference = Llama4(config, weights(config, SEEDS[name])).forward(ids)
    for layer, choices in reference.router_choices.items():
        experts, counts = np.unique(choices, return_counts=True)
        expected[layer, experts] = counts
    np.testing.assert_array_equal(request.expert_usage(), expected)
