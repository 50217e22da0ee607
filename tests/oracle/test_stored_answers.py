"""The stored answers are current, small, and far from any choice that rounding could flip."""

from typing import Any

import numpy as np
import pytest

from oracle.answers import ANSWERS_PATH, load_answers, load_metadata
from oracle.comparison import TOLERANCE
from oracle.configs import ALL, MULTIMODAL, SEEDS
from oracle.llama4_numpy import Llama4
from oracle.prompts import IMAGE_PROMPTS, TEXT_PROMPT_LENGTHS
from oracle.random_weights import weights

ANSWERS = load_answers()


def prompts_of(name: str) -> list[str]:
    if name in MULTIMODAL:
        return list(IMAGE_PROMPTS)
    return [f"{length}_tokens" for length in TEXT_PROMPT_LENGTHS]


def test_seeds_are_those_of_the_answers() -> None:
    assert load_metadata()["seeds"] == SEEDS, "run `make oracle`"


def test_file_stays_small() -> None:
    assert ANSWERS_PATH.stat().st_size < 3_000_000


@pytest.mark.parametrize("name", ALL)
def test_logits_spread(name: str) -> None:
    for prompt in prompts_of(name):
        assert 1.5 < ANSWERS[f"{name}/{prompt}/logits"].std() < 3


@pytest.mark.parametrize("name", ALL)
def test_no_near_ties(name: str) -> None:
    """Greedy tokens lead by more than two logits' tolerance, chosen experts by a clear step."""
    model = Llama4(ALL[name], weights(ALL[name], SEEDS[name]))
    num_chosen = model.config["num_experts_per_tok"]
    for prompt in prompts_of(name):
        key = f"{name}/{prompt}"
        ids, greedy = ANSWERS[f"{key}/ids"], ANSWERS[f"{key}/greedy"]
        seen = model.forward([*ids, *greedy], **images(name, key))
        assert smallest_lead(seen.logits[len(ids) - 1 : -1], 1) > 10 * TOLERANCE
        for layer, router_logits in seen.router_logits.items():
            assert smallest_lead(router_logits, num_chosen) > TOLERANCE, f"{key}, layer {layer}"


def images(name: str, key: str) -> dict[str, Any]:
    if name not in MULTIMODAL:
        return {}
    return {
        "image_features": ANSWERS[f"{key}/image_features"],
        "image_token": MULTIMODAL[name]["image_token_index"],
    }


def smallest_lead(scores: np.ndarray, num_chosen: int) -> float:
    """How far the last chosen score of any row lies above the best one left out."""
    best_first = -np.sort(-scores, axis=-1)
    return float((best_first[:, num_chosen - 1] - best_first[:, num_chosen]).min())
