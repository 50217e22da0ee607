"""Tool calls in what a model writes: every format that Llama 4 uses, and what is none."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama4rs.tool_calls import ToolCall, parse_tool_calls

RELAXED = settings(deadline=None, max_examples=200)
PARIS = ToolCall("get_weather", {"city": "Paris"})


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name, arguments)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # The list of Python calls.
        ('[get_weather(city="Paris")]', [PARIS]),
        ("[get_weather(city='Paris'),]", [PARIS]),
        ("[ get_weather ( city = 'Paris' ) ]", [PARIS]),
        (
            '[get_weather(city="San Francisco"), get_weather(city="Seattle", metric="celsius")]',
            [
                call("get_weather", city="San Francisco"),
                call("get_weather", city="Seattle", metric="celsius"),
            ],
        ),
        ("[now()]", [call("now")]),
        ("[a()]\n[b()]", [call("a"), call("b")]),
        ("[f(a=1, b=-2.5, c=1e3, d=+3, e=0x1F, g=1_000)]",
         [call("f", a=1, b=-2.5, c=1000.0, d=3, e=31, g=1000)]),
        ("[f(a=True, b=False, c=None)]", [call("f", a=True, b=False, c=None)]),
        ("[f(a=true, b=false, c=null)]", [call("f", a=True, b=False, c=None)]),
        ("[f(a=[1, [2, []]], b={'k': {'l': (1, 2)}})]",
         [call("f", a=[1, [2, []]], b={"k": {"l": [1, 2]}})]),
        ("[f(a=(1,), b=(), c=(1))]", [call("f", a=[1], b=[], c=1)]),
        ("[f(a='it\\'s', b=\"x])\", c='\\n\\x41\\u00e9\\U0001F600', d='\\d')]",
         [call("f", a="it's", b="x])", c="\nAé😀", d="\\d")]),
        ("[f(a='one\ntwo', b='''it's\n\"x\"''', c=r'\\d+', d=\"a\" 'b')]",
         [call("f", a="one\ntwo", b="it's\n\"x\"", c="\\d+", d="ab")]),
        ('[f(a="""x""", b="", c="")]', [call("f", a="x", b="", c="")]),
        ('[f(a="\\ud83d\\ude00", b="\\ud83d")]', [call("f", a="😀", b="\ufffd")]),
        ("[get-weather.now(größe=1)]", [ToolCall("get-weather.now", {"größe": 1})]),
        # JSON objects.
        ('{"name": "get_weather", "parameters": {"city": "Paris"}}', [PARIS]),
        ('{"name": "get_weather", "arguments": {"city": "Paris"}}', [PARIS]),
        ('{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}', [PARIS]),
        ('{"type": "function", "function": "get_weather", "parameters": {"city": "Paris"}}',
         [PARIS]),
        ('{"id": "1", "type": "function", "function": {"name": "get_weather", '
         '"arguments": "{\\"city\\": \\"Paris\\"}"}}', [PARIS]),
        ('{"parameters": {"city": "Paris"}, "name": "get_weather"}', [PARIS]),
        ("{'name': 'get_weather', 'parameters': {'city': 'Paris'}}", [PARIS]),
        ('{"type": "function", "name": "now"}', [call("now")]),
        ('{"name": "now", "parameters": null}', [call("now")]),
        ('{"name": "a", "parameters": {}}{"name": "b", "parameters": {}}', [call("a"), call("b")]),
        ('{"name": "a", "parameters": {}}; {"name": "b", "parameters": {}}\n',
         [call("a"), call("b")]),
        ('[{"name": "a", "parameters": {}}, {"name": "b", "parameters": {"x": [{}]}}]',
         [call("a"), call("b", x=[{}])]),
        ('{"name": "f", "parameters": {"u": "a\\/b\\u00e9\\ud83d\\ude00", "v": [1.5, true]}}',
         [call("f", u="a/bé😀", v=[1.5, True])]),
        # Tags.
        ('<function=get_weather>{"city": "Paris"}</function>', [PARIS]),
        ('<function=get_weather> {"city": "Paris"} </function>', [PARIS]),
        ('<function=get_weather>{"city": "Paris"}', [PARIS]),
        ("<function=now></function>", [call("now")]),
        ("<function=a>{}</function><function=b>{}</function>", [call("a"), call("b")]),
        # Built-in tools.
        ('brave_search.call(query="x y")', [call("brave_search", query="x y")]),
        ('[wolfram_alpha.call(query="1+1")]', [call("wolfram_alpha", query="1+1")]),
    ],
)  # fmt: skip
def test_formats(text: str, expected: list[ToolCall]) -> None:
    for wrapped in (
        text,
        f"<|python_start|>{text}<|python_end|>",
        f"<|python_start|><|python_end|>{text}<|eot|>",
        f"\n{text} <|eom|>\n",
    ):
        assert parse_tool_calls(wrapped) == ("", expected)
    assert parse_tool_calls(f"I will look.\n\n{text}") == ("I will look.", expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "Hello!",
        "[1, 2, 3]",
        "[]",
        "[link](https://example.com)",
        "a[i](x)",
        "print(1)",
        "f(a=1)",
        '{"city": "Paris"}',
        '{"name": "Bob", "age": 3}',
        '{"name": 3, "parameters": {}}',
        '{"name": "f", "parameters": [1]}',
        '{"name": "f", "parameters": "text"}',
        '{"name": "", "parameters": {}}',
        '{"name": "f", "parameters": {"a": NaN}}',
        '{"name": "f", "parameters": {"a": 1e999}}',
        '{"name": "f", "parameters": {1: 2}}',
        '{"name": "f", "parameters": {}',
        '[{"name": "f", "parameters": {}}, 3]',
        '[f(a=1)',
        '[f(a=1]',
        '[f("positional")]',
        "[f(a=1, a=2)]",
        "[f(a==1)]",
        "[f(a=g())]",
        "[f(a=x)]",
        "[f(a=1+1)]",
        "[f(a='x' % y)]",
        "[f(a=[i for i in x])]",
        "[f(a=lambda: 0)]",
        "[f(a=b'bytes')]",
        "[f(a=f'{x}')]",
        "[f(a={1, 2})]",
        "[f(**x)]",
        "[f(a=1), 2]",
        "[[f(a=1)]]",
        "[f(a='unclosed)]",
        "[f(a=1)] is how you call it.",
        'Call {"name": "f", "parameters": {}} like so.',
        "<function=f>not json</function>",
        "<function=>{}</function>",
        "<function=f>{} and more",
        "<function=f>",
        'my_brave_search_call(query="x")',
        '__import__("os").system("true")',
        "[__import__('os').system('true')]",
    ],
)  # fmt: skip
def test_plain_text_comes_back_as_it_was(text: str) -> None:
    assert parse_tool_calls(text) == (text, [])


def test_text_in_python_marks_is_content() -> None:
    """What a prompt made with the published template teaches the model to write."""
    text = '<|python_start|>Let me see.<|python_end|>{"name": "get_weather", "parameters": {}}'
    assert parse_tool_calls(text) == ("Let me see.", [call("get_weather")])


def test_tags_may_stand_anywhere() -> None:
    text = 'First <function=a>{"x": "<function=b>"}</function> and <function=c></function> then.'
    assert parse_tool_calls(text) == (
        "First  and  then.",
        [call("a", x="<function=b>"), call("c")],
    )
    text = "A <function=a>{}</function> and at last [b()]"
    assert parse_tool_calls(text) == ("A  and at last", [call("a"), call("b")])


def test_earlier_look_alikes_do_not_hide_the_call() -> None:
    text = 'Use [f(x)] or {"name": 1} or [g(a=1)], so:\n[get_weather(city="Paris")]'
    content, calls = parse_tool_calls(text)
    assert calls == [PARIS]
    assert content == 'Use [f(x)] or {"name": 1} or [g(a=1)], so:'


def test_marks_inside_strings_stay() -> None:
    text = '[f(a="<|python_end|>[g()]")]'
    assert parse_tool_calls(text) == ("", [call("f", a="<|python_end|>[g()]")])


def test_tool_names() -> None:
    text = 'See [f(a=1)]\n[get_weather(city="Paris")]'
    assert parse_tool_calls(text, tool_names={"get_weather"}) == ("See [f(a=1)]", [PARIS])
    assert parse_tool_calls(text, tool_names=["f"]) == (text, [])
    assert parse_tool_calls(text, tool_names=[]) == (text, [])
    both = "[f(), g()]"
    assert parse_tool_calls(both, tool_names=["f"]) == (both, [])
    assert parse_tool_calls("[x.call()]", tool_names=["x.call"])[1] == [call("x.call")]
    assert parse_tool_calls("[x.call()]", tool_names=["x"])[1] == [call("x")]
    assert parse_tool_calls("<function=f>{}</function> y", tool_names=["g"])[1] == []


def test_to_openai() -> None:
    entry = call("f", city="Zürich").to_openai("call_1")
    assert entry == {
        "id": "call_1",
        "type": "function",
        "function": {"name": "f", "arguments": '{"city": "Zürich"}'},
    }


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
ARGUMENTS = st.dictionaries(st.from_regex(r"[a-z]\w{0,5}", fullmatch=True), JSON_VALUES, max_size=4)


@RELAXED
@given(ARGUMENTS, st.booleans(), st.sampled_from(["", "Well:\n", "[1] {2} "]))
def test_round_trip(arguments: dict[str, Any], ascii_only: bool, before: str) -> None:
    """Whatever the arguments are, each format gives them back."""
    expected = (before.strip(), [ToolCall("f", arguments)])
    body = json.dumps(arguments, ensure_ascii=ascii_only)
    assert parse_tool_calls(f'{before}{{"name": "f", "parameters": {body}}}') == expected
    assert parse_tool_calls(f"{before}<function=f>{body}</function>") == expected
    python = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    assert parse_tool_calls(f"{before}[f({python})]") == expected


@RELAXED
@given(st.lists(st.sampled_from([*"[](){}=,:;.\"'\\ \nafx1-", "f(", '{"name":', "<function=f>",
                                 "</function>", '"parameters":', ".call(", "<|python_start|>",
                                 "'''", "true", "-"]), max_size=40).map("".join))  # fmt: skip
def test_any_text_is_handled(text: str) -> None:
    content, calls = parse_tool_calls(text)
    if not calls:
        assert content == text
    for found in calls:
        json.dumps(found.arguments, allow_nan=False).encode()


@pytest.mark.parametrize(
    "text",
    [
        "[f()] " * 20_000 + "x",
        "[f(), " * 20_000,
        "[" * 200_000,
        "[f(a=" + "[" * 200_000,
        "[f(a=" + "-" * 200_000,
        "[f(a=[" * 20_000,
        '{"name":' * 20_000,
        '{"name":"' * 20_000,
        '{"name": "f", "parameters": {}} ' * 10_000 + "x",
        "{'name': '''" + '{"name": ' * 20_000,
        "[f(a='''" + "\\" * 200_000,
        "<function=f>" * 20_000,
        '<function=f>{"a":' * 20_000,
        "f.call(" * 20_000,
        "f.call(), " * 20_000 + "x",
        "x.call" * 20_000,
        "[f" + " " * 200_000,
        "[f(a=" + "9" * 200_000 + ")]",
    ],
    ids=lambda text: text[:16] + "…" + text[-4:],
)
def test_hostile_text_is_fast(text: str) -> None:
    start = time.monotonic()
    content, calls = parse_tool_calls(text)
    assert (content, calls) == (text, [])
    assert time.monotonic() - start < 5
