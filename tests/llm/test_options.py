"""Options of a request: seeds, defaults, log probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chain_model import make_chain_model
from llama4rs import CheckpointError, Llama4, SamplingParams, TokenizerError


def test_same_seed_same_tokens_whatever_the_batch(llm: Llama4) -> None:
    options: dict[str, Any] = {"temperature": 3.0, "top_p": 1.0, "max_tokens": 40, "seed": 7}
    alone = [llm.generate(text, **options).token_ids for text in ("\n", "x", "b")]
    together = llm.generate(["\n", "x", "b", "\n"], **options)
    assert [output.token_ids for output in together] == [*alone, alone[0]]
    other = llm.generate("\n", **{**options, "seed": 8})
    assert other.token_ids != alone[0]


def test_the_models_seed_is_the_default(llm: Llama4) -> None:
    hot = SamplingParams(temperature=3.0, top_p=1.0, max_tokens=30, seed=3, ignore_eos=True)
    seeded = Llama4(llm.path, seed=3, threads=1)
    options: dict[str, Any] = {"temperature": 3.0, "top_p": 1.0, "max_tokens": 30}
    expected = llm.generate("\n", hot).token_ids
    assert seeded.generate("\n", ignore_eos=True, **options).token_ids == expected
    fresh = Llama4(llm.path, seed=None, threads=1)
    drawn = {fresh.generate("\n", ignore_eos=True, **options).token_ids for _ in range(4)}
    assert len(drawn) > 1


def test_defaults_come_from_the_checkpoint(tmp_path: Path) -> None:
    settings = {"temperature": 0.25, "top_p": 0.5, "max_new_tokens": 3, "eos_token_id": [99]}
    llm = Llama4(make_chain_model(tmp_path, generation_config=settings), threads=1)
    assert llm.defaults == SamplingParams(temperature=0.25, top_p=0.5, max_tokens=3)
    assert llm.generate("\n", temperature=0).text == "ab"


@pytest.mark.parametrize("content", ["{", "[]", '{"top_p": 3}', '{"temperature": "hot"}'])
def test_damaged_generation_config(tmp_path: Path, content: str) -> None:
    folder = make_chain_model(tmp_path)
    (folder / "generation_config.json").write_text(content)
    with pytest.raises((CheckpointError, TokenizerError), match="generation_config"):
        Llama4(folder)


def test_logprobs(llm: Llama4) -> None:
    output = llm.generate("\n", temperature=0, logprobs=3, max_tokens=5)
    assert output.logprobs is not None
    assert [entry.token_id for entry in output.logprobs] == list(output.token_ids)
    assert [entry.bytes for entry in output.logprobs] == [b"a", b"b", b"c", b"\xc3", b"\xb1"]
    assert [entry.text for entry in output.logprobs] == ["a", "b", "c", "\ufffd", "\ufffd"]
    logits = llm.logits([*output.prompt_token_ids, *output.token_ids]).astype(np.float64)
    for entry, row in zip(output.logprobs, logits[1:], strict=False):
        expected = row - np.log(np.exp(row).sum())
        assert entry.logprob == pytest.approx(expected[entry.token_id], abs=1e-3)
        assert entry.top[0].token_id == entry.token_id
        assert [top.logprob for top in entry.top] == pytest.approx(
            sorted(expected)[:-4:-1], abs=1e-3
        )
    chosen_only = llm.generate("\n", temperature=0, logprobs=True, max_tokens=1).logprobs
    assert chosen_only is not None
    assert chosen_only[0].top == ()


def test_unknown_options(llm: Llama4) -> None:
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        llm.generate("a", tempurature=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="such as max_tokens=50"):
        llm.generate("a", 50)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="use stream"):
        llm.chat("a", stream=True)  # type: ignore[call-arg]
