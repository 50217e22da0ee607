"""No message can look like a control token, whatever it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama4rs.chat_template import ChatTemplate
from llama4rs.tokenizer import Tokenizer
from tokenizer.small import SPECIALS, saved, small_backend

from .messages import IMAGE, RELAXED, assistant, system, text, tool, user

HOSTILE = st.lists(
    st.sampled_from([*SPECIALS, "<|", "|>", "<", "|", ">", "eot", "\n\n", "user", " "])
    | st.text(max_size=2),
    max_size=6,
).map("".join)


def specials_in(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    return [i for i in ids if tokenizer.is_special(i)]


def test_builtin(builtin: ChatTemplate, tokenizer: Tokenizer) -> None:
    """Whatever is in the strings, the special tokens are those of harmless strings."""

    def conversation(t: list[str]) -> tuple[list[Any], list[Any]]:
        description = {"name": "f" + t[0], "parameters": {t[1]: {"description": t[2]}}}
        return [
            system([text(t[3]), text(t[4])]),
            user([text(t[5]), IMAGE, text(t[6]), text(t[7])]),
            assistant(t[8], **{"f" + t[9]: {t[10]: [t[11]]}}),
            tool(t[12]),
            tool({t[13]: t[14]}),
            user(t[15]),
        ], [{"type": "function", "function": description, t[16]: t[17]}]

    harmless = conversation(["x"] * 18)
    expected = specials_in(tokenizer, builtin.encode(tokenizer, *harmless))
    assert len(expected) == 24

    @RELAXED
    @given(st.lists(HOSTILE, min_size=18, max_size=18), st.booleans())
    def check(strings: list[str], quote: bool) -> None:
        messages, tools = conversation(strings)
        ids = builtin.encode(tokenizer, messages, tools, quote_tool_results=quote)
        assert specials_in(tokenizer, ids) == expected
        rendered = builtin.render(messages, tools, quote_tool_results=quote)
        readable = tokenizer.decode(ids, skip_special=False)
        assert readable == rendered.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    check()


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}<{{ m.content }}>{% endfor %}",
        "{% for m in messages %}<|{{ m.content }}|>{% endfor %}",
        "{% for m in messages %}<|e{{ m.content }}{% endfor %}",
        "{{ messages }}",
        "{{ messages | tojson }}",
        "{{ messages | tojson(ensure_ascii=true) }}",
        "{% for m in messages %}{{ m.content | trim | lower }}{% endfor %}",
        "{% for m in messages %}{{ m.content.split('x') | join }}{% endfor %}",
        "{{ messages | map(attribute='content') | join }}",
        "{{ extra }}{{ extra }}",
        "{{ messages[0].name }}",
    ],
)
def test_other_templates(tokenizer: Tokenizer, source: str) -> None:
    template = ChatTemplate(source)
    contents = ["<|eot|>", "|eot|", "<", "|eot|>", "<|e", "xot|>", "<x|xeotx|x>", "<|EOT|>"]
    messages = [{**user(content), "name": "<|eot|>"} for content in contents]
    ids = template.encode(tokenizer, messages, extra="<|eot|>")
    assert specials_in(tokenizer, ids) == [tokenizer.bos_id]
    assert tokenizer.decode(ids) == template.render(messages, extra="<|eot|>")


def test_names_of_other_shapes(tmp_path: Path) -> None:
    backend = small_backend()
    backend.add_special_tokens(["</s>", "[INST]", "☃", "EOS", " \n¶"])
    tokenizer = Tokenizer.from_file(saved(backend, tmp_path / "tokenizer.json"))
    template = ChatTemplate("</s>{{ messages[0].content }}[INST]☃EOS \n¶")
    hostile = "</s>[INST]☃EOS \n¶<|eot|></s"
    ids = template.encode(tokenizer, [user(hostile)])
    names = ["<|begin_of_text|>", "</s>", "[INST]", "☃", "EOS", " \n¶"]
    assert specials_in(tokenizer, ids) == [tokenizer.special_tokens[n] for n in names]
    assert tokenizer.decode(ids) == hostile


def test_stand_ins_that_the_text_uses(builtin: ChatTemplate, tokenizer: Tokenizer) -> None:
    everything = "".join(map(chr, range(0x1D800, 0x1DA00)))
    ids = builtin.encode(tokenizer, [user("<|eot|>" + everything)])
    assert "<|eot|>" + everything in tokenizer.decode(ids)


def test_templates_still_find_tags(tokenizer: Tokenizer) -> None:
    """`|` is the only character that a template sees changed, and no length changes."""
    template = ChatTemplate("{{ messages[0].content.split('</think>')[-1] | length }}")
    assert template.render([user("<think>a</think>b|c")]) == "3"
