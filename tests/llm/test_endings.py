"""When a request ends."""

from __future__ import annotations

from typing import Any

import pytest

from chain_model import EOT, MAX_CONTEXT, SCRIPT
from llama4rs import Llama4, RequestError


def test_max_tokens(llm: Llama4) -> None:
    output = llm.generate("\n", max_new_tokens=3, do_sample=False)
    assert (output.text, output.finish_reason, output.stop_reason) == ("abc", "length", None)


def test_a_cut_character_is_replaced(llm: Llama4) -> None:
    assert llm.generate("\n", max_tokens=4, temperature=0).text == "abc\ufffd"


def test_default_max_tokens_ends_with_the_context(llm: Llama4) -> None:
    output = llm.generate([97] * (MAX_CONTEXT - 10), temperature=0, ignore_eos=True)
    assert output.finish_reason == "length"
    assert len(output.token_ids) == 10


def test_too_long_prompts(llm: Llama4) -> None:
    for length in (MAX_CONTEXT, 2 * MAX_CONTEXT):
        with pytest.raises(RequestError, match=f"{length} tokens.*\nhint: shorten"):
            llm.generate([97] * length)


def test_max_context_can_be_chosen(llm: Llama4) -> None:
    small = Llama4(llm.path, max_context=8, threads=1)
    assert small.max_context == 8
    assert small.generate("\n", temperature=0).text == "abcñ "


@pytest.mark.parametrize("stop", ["END", " END", "ñ E", "D", ["nothing", "ND"], "z"])
def test_stop_strings(llm: Llama4, stop: Any) -> None:
    output = llm.generate("\n", temperature=0, stop=stop)
    met = stop if isinstance(stop, str) else "ND"
    assert output.text == SCRIPT[: SCRIPT.index(met)]
    assert (output.finish_reason, output.stop_reason) == ("stop", met)
    assert bytes(output.token_ids).decode() == SCRIPT[: SCRIPT.index(met)] + met


def test_stop_string_that_never_comes(llm: Llama4) -> None:
    output = llm.generate("\n", temperature=0, stop=["xyz!", "END!"])
    assert (output.text, output.stop_reason) == (SCRIPT, EOT)


def test_stop_token_ids_are_added_to_the_models_own(llm: Llama4) -> None:
    output = llm.generate("\n", temperature=0, stop_token_ids=[ord("E")])
    assert (output.text, output.stop_reason) == ("abcñ ", ord("E"))
    assert llm.generate("\n", temperature=0, eos_token_id=ord("|")).text == "abcñ END"
    assert llm.generate("x", temperature=0, stop_token_ids=[ord("E")]).stop_reason == EOT


def test_ignore_eos(llm: Llama4) -> None:
    output = llm.generate("x", temperature=0, ignore_eos=True, max_tokens=6)
    assert output.text == "yz\nab"
    assert output.token_ids[2] == EOT
    shown = llm.generate("x", temperature=0, ignore_eos=True, max_tokens=6, skip_special=False)
    assert shown.text == "yz<|eot|>\nab"
