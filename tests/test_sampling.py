"""`SamplingParams`: ranges, aliases, advice."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from llama4rs import RequestError, SamplingParams


def test_defaults_are_in_view() -> None:
    params = SamplingParams()
    assert (params.temperature, params.top_p, params.top_k) == (0.6, 0.9, 0)
    assert params.max_tokens is None
    assert params.seed == 0


def test_is_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().temperature = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        SamplingParams(5)  # type: ignore[call-arg, misc]


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("max_tokens", 0, "1 or more"),
        ("max_tokens", 1.5, "integer"),
        ("max_tokens", True, "integer"),
        ("temperature", -0.1, "0 or more"),
        ("temperature", float("nan"), "0 or more"),
        ("temperature", float("inf"), "0 or more"),
        ("temperature", "hot", "0 or more"),
        ("temperature", 10**400, "0 or more"),
        ("top_p", 0, "temperature=0 gives greedy"),
        ("top_p", 1.01, "above 0 and at most 1"),
        ("top_k", -2, "0 (off) or more"),
        ("top_k", 1.0, "integer"),
        ("min_p", 1.5, "0 to 1"),
        ("repetition_penalty", 0, "above 0"),
        ("stop", "", "none of them empty"),
        ("stop", ["a", ""], "none of them empty"),
        ("stop", [1], "a string or several"),
        ("stop", 5, "a string or several"),
        ("stop_token_ids", [-1], "token ids"),
        ("stop_token_ids", ["a"], "token ids"),
        ("seed", -1, "0 to 2**64 - 1"),
        ("seed", 1 << 64, "0 to 2**64 - 1"),
        ("logprobs", -1, "0 or more"),
        ("ignore_eos", 1, "True or False"),
    ],
)
def test_out_of_range_names_option_range_and_value(name: str, value: Any, accepted: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})
    message = str(caught.value)
    assert name in message
    assert accepted in message
    assert repr(value)[:90] in message
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("temperature", 0, 0),
        ("top_p", 1, 1),
        ("top_k", -1, 0),
        ("stop", "END", ("END",)),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop_token_ids", range(3), (0, 1, 2)),
        ("seed", (1 << 64) - 1, (1 << 64) - 1),
        ("logprobs", True, 0),
        ("logprobs", False, None),
        ("logprobs", 3, 3),
    ],
)
def test_accepted_values(name: str, value: Any, stored: Any) -> None:
    assert getattr(SamplingParams(**{name: value}), name) == stored


@pytest.mark.parametrize(
    ("alias", "value", "name", "stored"),
    [
        ("max_new_tokens", 7, "max_tokens", 7),
        ("max_completion_tokens", 7, "max_tokens", 7),
        ("n_predict", 7, "max_tokens", 7),
        ("num_predict", 7, "max_tokens", 7),
        ("do_sample", False, "temperature", 0),
        ("do_sample", True, "temperature", 0.6),
        ("temp", 0.3, "temperature", 0.3),
        ("repeat_penalty", 1.1, "repetition_penalty", 1.1),
        ("stop_strings", ["x"], "stop", ("x",)),
        ("stop_sequences", "x", "stop", ("x",)),
        ("eos_token_id", 5, "stop_token_ids", (5,)),
        ("eos_token_id", [5, 6], "stop_token_ids", (5, 6)),
        ("random_seed", 9, "seed", 9),
        ("top_logprobs", 2, "logprobs", 2),
    ],
)
def test_names_of_other_libraries(alias: str, value: Any, name: str, stored: Any) -> None:
    assert getattr(SamplingParams().with_options(**{alias: value}), name) == stored


def test_none_leaves_an_option_as_it_was() -> None:
    params = SamplingParams(temperature=1.0, seed=3, stop="x")
    assert params.with_options(temperature=None, seed=None, stop=None, max_tokens=None) == params


def test_openai_pair_of_logprobs_options() -> None:
    assert SamplingParams().with_options(logprobs=True, top_logprobs=5).logprobs == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_tokens": 1, "max_new_tokens": 2}, ("max_tokens", "max_new_tokens")),
        ({"do_sample": False, "temperature": 0.5}, ("do_sample", "temperature")),
        ({"tempreature": 1}, ("did you mean 'temperature'",)),
        ({"max_token": 1}, ("did you mean 'max_tokens'",)),
        ({"n_predicts": 1}, ("did you mean 'max_tokens'",)),
        ({"max_length": 1}, ("max_tokens counts new tokens only",)),
        ({"stream": True}, ("stream()", "astream()")),
        ({"num_beams": 2}, ("temperature=0",)),
        ({"presence_penalty": 2}, ("repetition_penalty",)),
        ({"qqq": 2}, ("'qqq'", "max_tokens", "top_p")),
    ],
)
def test_wrong_names_are_type_errors_with_advice(
    options: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(TypeError) as caught:
        SamplingParams().with_options(**options)
    for word in words:
        assert word in str(caught.value)


def test_do_sample_false_goes_with_temperature_zero() -> None:
    assert SamplingParams().with_options(do_sample=False, temperature=0).temperature == 0
    with pytest.raises(RequestError, match="do_sample"):
        SamplingParams().with_options(do_sample="no")  # type: ignore[typeddict-item]


def test_generation_config() -> None:
    config = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": None,
        "top_k": 40,
        "max_new_tokens": 12,
        "eos_token_id": [1],
        "transformers_version": "5",
    }
    params = SamplingParams.from_generation_config(config)
    assert params == SamplingParams(temperature=0.7, top_k=40, max_tokens=12)
    assert SamplingParams.from_generation_config({"do_sample": False}).temperature == 0
    assert SamplingParams.from_generation_config({}) == SamplingParams()


def test_seed_none_is_new_every_time() -> None:
    params = SamplingParams(seed=None)
    assert params.chosen_seed() != params.chosen_seed()
    assert SamplingParams(seed=5).chosen_seed() == 5
