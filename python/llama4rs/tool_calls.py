"""Find tool calls in what the model wrote.

Llama 4 writes a call in one of several ways, depending on how the tools were described to it. All
of these are read::

    [get_weather(city="Paris"), get_time(zone="CET")]
    {"name": "get_weather", "parameters": {"city": "Paris"}}      (one or more, back to back)
    <function=get_weather>{"city": "Paris"}</function>
    brave_search.call(query="weather in Paris")

with or without ``<|python_start|>`` and ``<|python_end|>`` around them, and with text before. The
text is only parsed, never executed: argument values are literals, anything else is no call.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .encoding import Tools
    from .outputs import Output

__all__ = ["ToolCall", "parse_tool_calls", "with_tool_calls"]


@dataclass(frozen=True)
class ToolCall:
    """One call that the model asks for.

    Attributes:
        name: Name of the function.
        arguments: Argument values by name; JSON types only.
    """

    name: str
    arguments: dict[str, Any]

    def to_openai(self, call_id: str) -> dict[str, Any]:
        """The call as an entry of an OpenAI style ``tool_calls`` list.

        >>> ToolCall("f", {"x": "é"}).to_openai("call_0")["function"]
        {'name': 'f', 'arguments': '{"x": "é"}'}
        """
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        function = {"name": self.name, "arguments": arguments}
        return {"id": call_id, "type": "function", "function": function}


def parse_tool_calls(
    text: str, *, tool_names: Collection[str] | None = None
) -> tuple[str, list[ToolCall]]:
    """Split an answer into its text and its tool calls.

    Calls must be the last thing in the text, except in ``<function=…>`` tags, which may stand
    anywhere. So an example call in the middle of an explanation stays text.

    Args:
        text: The decoded answer, special tokens included or not.
        tool_names: Names of the functions on offer. Calls of any other function stay text. None
            accepts every name.

    Returns:
        The text without the calls and without the marks around them, and the calls in order. When
        there is no call, the text is returned exactly as it came.

    >>> parse_tool_calls('Let me look. [get_weather(city="Paris", days=2)]')
    ('Let me look.', [ToolCall(name='get_weather', arguments={'city': 'Paris', 'days': 2})])
    >>> parse_tool_calls("Lists look like [1, 2].")
    ('Lists look like [1, 2].', [])
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type(text).__name__}")
    if isinstance(tool_names, str) or not isinstance(tool_names, Collection | None):
        raise TypeError(f"tool_names is a list of names, got a {type(tool_names).__name__}")
    allowed = None if tool_names is None else frozenset(tool_names)
    # The calls at the end start at the first place from which everything up to the end is calls.
    position = 0
    while match := _START.search(text, position):
        start = match.start()
        calls, end = _Parser(text, start, allowed).calls()
        if end == len(text):
            kept, tagged = _take_tags(text[:start], allowed)
            return _clean(kept), tagged + calls
        # What stopped these calls short of the end would stop a later one of them too.
        position = max(end, start + 1)
    kept, tagged = _take_tags(text, allowed)
    return (_clean(kept), tagged) if tagged else (text, [])


_MARK = r"<\|(?:python_start|python_end|eom|eot|end_of_text)\|>"
_NAME = r"[A-Za-z_][\w.\-]*"
_START = re.compile(
    rf"""
      <function=                                                   # tag
    | \[ \s* (?: {_NAME} \s* \( | \{{ \s* ["'] )                   # list of calls or of objects
    | \{{ \s* ["'] (?:name|type|id|function|parameters|arguments) ["'] \s* :
    | (?<! [\w.\-] ) {_NAME} \.call \s* \(                         # built-in tool
    """,
    re.VERBOSE,
)
_TAG_START = re.compile("<function=")
_BETWEEN = re.compile(rf"(?: \s | [;,] | {_MARK} )*", re.VERBOSE)
_SPACE = re.compile(r"\s*")
_CALL_NAME = re.compile(_NAME)
_TAG_NAME = re.compile(r"<function=([^<>\s(){}\"']+)>\s*")
_TAG_END = re.compile(r"\s*</function>")
_KEYWORD = re.compile(r"([^\W\d]\w*)\s*=(?!=)\s*")
_NUMBER = re.compile(r"[+-]?(?:0[xX][\da-fA-F]+|(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?!\w)")
_WORD = re.compile(r"\w+")
_WORDS: dict[str, bool | None] = {
    "True": True,
    "true": True,
    "False": False,
    "false": False,
    "None": None,
    "null": None,
}
_STRING = re.compile(
    r"""(?P<prefix>[uUrR]?)
        (?: \"{3} ( [^"\\]* (?: (?:\\. | "(?!"")) [^"\\]* )* ) \"{3}
          | \'{3} ( [^'\\]* (?: (?:\\. | '(?!'')) [^'\\]* )* ) \'{3}
          | " ( [^"\\]* (?: \\. [^"\\]* )* ) "
          | ' ( [^'\\]* (?: \\. [^'\\]* )* ) ' )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:x([\da-fA-F]{2})|u([\da-fA-F]{4})|U([\da-fA-F]{8})|(.))", re.DOTALL)
_SHORT_ESCAPES = {
    "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0",
    "\\": "\\", '"': '"', "'": "'", "\n": "",
}  # fmt: skip
_MAX_DEPTH = 64


class _NoCallError(Exception):
    """What stands here is not a call."""


def with_tool_calls(output: Output, tools: Tools | None) -> Output:
    """`output` with the calls in its text moved into its message, in OpenAI's form."""
    if not tools:
        return output
    content, calls = parse_tool_calls(output.text, tool_names=_tool_names(tools))
    if not calls:
        return output
    openai = [call.to_openai(f"call_{index}") for index, call in enumerate(calls)]
    return replace(output, message={**output.message, "content": content, "tool_calls": openai})


def _tool_names(tools: Tools) -> list[str]:
    """Names of the functions on offer; the chat template has seen that they have some."""
    return [tool.get("function", tool)["name"] for tool in tools]


def _clean(text: str) -> str:
    return re.sub(_MARK, "", text).strip()


def _take_tags(text: str, allowed: frozenset[str] | None) -> tuple[str, list[ToolCall]]:
    """Remove complete ``<function=…>…</function>`` calls from anywhere in ``text``."""
    kept: list[str] = []
    calls: list[ToolCall] = []
    done = 0
    for match in _TAG_START.finditer(text):
        if match.start() < done:
            continue
        parser = _Parser(text, match.start(), allowed)
        try:
            call = parser.tag(closed=True)
        except _NoCallError:
            continue
        kept.append(text[done : match.start()])
        calls.append(call)
        done = parser.at
    return "".join([*kept, text[done:]]), calls


class _Parser:
    """Reads calls from a position of a text; raises `_NoCallError` where there is none.

    It reads Python literals and JSON alike. Nesting is bounded, so hostile text costs neither the
    stack nor quadratic time.
    """

    def __init__(self, text: str, at: int, allowed: frozenset[str] | None) -> None:
        self.text = text
        self.at = at
        self.allowed = allowed
        self.depth = 0
        self.json_escapes = False

    # Groups of calls.

    def calls(self) -> tuple[list[ToolCall], int]:
        """As many calls as follow each other, and where they end."""
        found: list[ToolCall] = []
        end = self.at
        while end < len(self.text):
            try:
                if self.peek("<function="):
                    found.append(self.tag(closed=False))
                elif self.peek("["):
                    found += self.call_list()
                elif self.peek("{"):
                    found.append(self.json_call())
                else:
                    found.append(self.named_call(suffix=".call"))
            except _NoCallError:
                if self.depth > _MAX_DEPTH:
                    end = self.at  # nor is there a call inside
                break
            self.skip(_BETWEEN)
            end = self.at
        return found, end

    def call_list(self) -> list[ToolCall]:
        """``[f(a=1), g()]`` or ``[{"name": …}, …]``, not empty."""
        found: list[ToolCall] = []
        self.expect("[")
        while True:
            self.skip(_SPACE)
            if found and self.take("]"):
                return found
            found.append(self.json_call() if self.peek("{") else self.named_call())
            self.skip(_SPACE)
            if not self.take(",") and not self.peek("]"):
                raise _NoCallError

    def named_call(self, suffix: str = "") -> ToolCall:
        """``name(key=value, …)``; with ``suffix`` the name must end in it."""
        match = _CALL_NAME.match(self.text, self.at)
        if not match or not match.group().endswith(suffix):
            raise _NoCallError
        name = match.group()
        self.at = match.end()
        self.skip(_SPACE)
        self.expect("(")
        self.json_escapes = False
        arguments: dict[str, Any] = {}
        while True:
            self.skip(_SPACE)
            if self.take(")"):
                break
            keyword = _KEYWORD.match(self.text, self.at)
            if not keyword or keyword.group(1) in arguments:
                raise _NoCallError
            self.at = keyword.end()
            arguments[keyword.group(1)] = self.value()
            self.skip(_SPACE)
            if not self.take(",") and not self.peek(")"):
                raise _NoCallError
        # `brave_search.call(…)` calls the tool `brave_search`.
        short = name[: -len(".call")] if name.endswith(".call") else name
        known_long = self.allowed is not None and name in self.allowed
        return self.made(name if known_long else short, arguments)

    def json_call(self) -> ToolCall:
        """``{"name": …, "parameters": {…}}`` and its variants."""
        self.json_escapes = True
        value = self.value()
        if not isinstance(value, dict):
            raise _NoCallError
        typed = value.get("type") == "function"
        function = value.get("function")
        if isinstance(function, dict):
            value = function
        elif typed and isinstance(function, str) and "name" not in value:
            value = {**value, "name": function}
        key = next((k for k in ("parameters", "arguments") if k in value), None)
        if key is None and not typed:
            raise _NoCallError
        arguments = value.get(key) if key else None
        if isinstance(arguments, str):
            inner = _Parser(arguments, 0, None)
            inner.json_escapes = True
            arguments = inner.whole_value()
        return self.made(value.get("name"), {} if arguments is None else arguments)

    def tag(self, *, closed: bool) -> ToolCall:
        """``<function=name>{…}</function>``; unless ``closed``, the text may end before the end
        tag."""
        match = _TAG_NAME.match(self.text, self.at)
        if not match:
            raise _NoCallError
        self.at = match.end()
        self.json_escapes = True
        has_arguments = self.peek("{")
        arguments = self.value() if has_arguments else {}
        end = _TAG_END.match(self.text, self.at)
        if end:
            self.at = end.end()
        else:
            self.skip(_BETWEEN)
            if closed or not has_arguments or self.at < len(self.text):
                raise _NoCallError
        return self.made(match.group(1), arguments)

    def made(self, name: Any, arguments: Any) -> ToolCall:
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            raise _NoCallError
        if self.allowed is not None and name not in self.allowed:
            raise _NoCallError
        return ToolCall(name, arguments)

    # Literals.

    def whole_value(self) -> Any:
        self.skip(_SPACE)
        value = self.value()
        self.skip(_SPACE)
        if self.at != len(self.text):
            raise _NoCallError
        return value

    def value(self) -> Any:
        if match := _STRING.match(self.text, self.at):
            return self.string(match)
        if self.at >= len(self.text):
            raise _NoCallError
        opening = self.text[self.at]
        if opening in "[({":
            self.depth += 1
            if self.depth > _MAX_DEPTH:
                raise _NoCallError
            self.at += 1
            value = self.mapping() if opening == "{" else self.sequence(opening)
            self.depth -= 1
            return value
        if match := _NUMBER.match(self.text, self.at):
            self.at = match.end()
            return _number(match.group())
        if (match := _WORD.match(self.text, self.at)) and match.group() in _WORDS:
            self.at = match.end()
            return _WORDS[match.group()]
        raise _NoCallError

    def sequence(self, opening: str) -> Any:
        """The rest of a list or tuple; a tuple becomes a list, `(x)` is `x`."""
        closing = "]" if opening == "[" else ")"
        items: list[Any] = []
        comma = False
        while True:
            self.skip(_SPACE)
            if self.take(closing):
                grouped = opening == "(" and len(items) == 1 and not comma
                return items[0] if grouped else items
            items.append(self.value())
            self.skip(_SPACE)
            comma = self.take(",")
            if not comma and not self.peek(closing):
                raise _NoCallError

    def mapping(self) -> dict[str, Any]:
        """The rest of a dict; keys must be strings."""
        items: dict[str, Any] = {}
        while True:
            self.skip(_SPACE)
            if self.take("}"):
                return items
            key = self.value()
            if not isinstance(key, str):
                raise _NoCallError
            self.skip(_SPACE)
            self.expect(":")
            self.skip(_SPACE)
            items[key] = self.value()
            self.skip(_SPACE)
            if not self.take(",") and not self.peek("}"):
                raise _NoCallError

    def string(self, match: re.Match[str]) -> str:
        """A string; in Python, neighbours are joined: ``"a" "b"``."""
        parts: list[str] = []
        while True:
            prefix, *bodies = match.groups()
            body = next(body for body in bodies if body is not None)
            if "\\" in body and prefix not in ("r", "R"):
                body = _unescape(body, json_escapes=self.json_escapes)
            parts.append(body)
            self.at = match.end()
            following = _SPACE.match(self.text, self.at)
            after = following.end() if following else self.at
            another = None if self.json_escapes else _STRING.match(self.text, after)
            if another is None:
                break
            match = another
        joined = "".join(parts)
        # "\ud83d\ude00" is one character written as two escapes.
        return joined.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    # Characters.

    def peek(self, literal: str) -> bool:
        return self.text.startswith(literal, self.at)

    def take(self, literal: str) -> bool:
        if not self.peek(literal):
            return False
        self.at += len(literal)
        return True

    def expect(self, literal: str) -> None:
        if not self.take(literal):
            raise _NoCallError

    def skip(self, pattern: re.Pattern[str]) -> None:
        if match := pattern.match(self.text, self.at):
            self.at = match.end()


def _number(text: str) -> int | float:
    try:
        if "x" in text or "X" in text:
            return int(text, 16)
        value = float(text) if any(c in text for c in ".eE") else int(text)
    except ValueError:
        raise _NoCallError from None
    if isinstance(value, float) and not math.isfinite(value):
        raise _NoCallError
    return value


def _unescape(body: str, *, json_escapes: bool) -> str:
    def replace(match: re.Match[str]) -> str:
        code = match.group(1) or match.group(2) or match.group(3)
        if code:
            number = int(code, 16)
            return chr(number) if number <= 0x10FFFF else "\ufffd"
        char = match.group(4)
        if json_escapes and char == "/":
            return "/"
        return _SHORT_ESCAPES.get(char, match.group())  # an unknown escape stays as written

    return _ESCAPE.sub(replace, body)
