"""Conversations to prompts.

:class:`ChatTemplate` turns a list of messages, in the shape that the OpenAI chat API made common,
into the prompt format of Llama 4. It uses the Jinja template of the checkpoint, or the built-in
one.

What users write cannot act as a control token. In every string of the messages, tools and extra
variables, the characters that special token names need are swapped for unused stand-ins before
the template runs, so a special token name found in the result can only be the template's. The
stand-ins are swapped back afterwards, in the plain text between special tokens, and each such
text is encoded in one piece. Ordinary text thus gets the ids it would have without this.

Where the built-in template differs from the published one, it is in cases that the latter handles
badly:

===================================  ============================  ==============================
case                                 published                     built-in
===================================  ============================  ==============================
tools, first message a content list  Python ``repr``, images lost  parts as usual
tools, first message not a user's    rewritten as a user message   tools go to first user message
tools in system message, none given  tools dropped                 a system message is made
empty ``tools`` list                 guidance without functions    as no tools
system message of several parts      first part only               all parts
``tool_calls: []``                   message dropped               as without
content beside tool calls            between the Python marks      before them
content ``None`` beside tool calls   error                         as ``""``
arguments as a JSON string           quoted twice                  as the object they encode
function name with quotes            broken JSON                   escaped
tool result that is a string         quoted as a JSON string       as it is
tool result of text parts            JSON of the parts             their text
===================================  ============================  ==============================

Meta's own reference code also writes string results unquoted. ``quote_tool_results=True`` gives
the published form. An empty ``tools``, lists of text parts, ``tool_calls: []``, content ``None``
and arguments as JSON text come right with a checkpoint's own template too: messages are brought to
one plain form before any template sees them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from .errors import ChatTemplateError
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    import jinja2

__all__ = ["IMAGE_TOKEN", "ChatTemplate", "image_parts", "normalize_messages"]

IMAGE_TOKEN = "<|image|>"
"""What a template writes in the place of one image."""

_ROLES = ("system", "user", "assistant", "tool", "ipython")
_IMAGE_TYPES = ("image", "image_url")
_BUILTIN = Path(__file__).parent / "templates" / "llama4.jinja"
# The name under which a render's stand-ins reach the tojson filter.
_STAND_INS = "llama4rs_stand_ins"
_RESERVED = ("bos_token", "eos_token", _STAND_INS)

JSONValue = Any
Message = Mapping[str, Any]


class ChatTemplate:
    """A prompt format: messages in, text or token ids out.

    Args:
        source: A Jinja template; None for the built-in one.
        tool_source: Another template for prompts with tools; None to use ``source`` for all.
        bos_token: Text of the token that starts a prompt.
        eos_token: Text of the token that ends a turn; the built-in template does not use it.

    Raises:
        ChatTemplateError: The template has a syntax error.

    >>> template = ChatTemplate()
    >>> template.render([{"role": "user", "content": "Hi"}], add_generation_prompt=False)
    '<|begin_of_text|><|header_start|>user<|header_end|>\\n\\nHi<|eot|>'
    """

    def __init__(
        self,
        source: str | None = None,
        *,
        tool_source: str | None = None,
        bos_token: str = "<|begin_of_text|>",
        eos_token: str = "<|eot|>",
    ) -> None:
        self.is_builtin = source is None
        self.source = _BUILTIN.read_text("utf-8") if source is None else source
        self.bos_token = bos_token
        self.eos_token = eos_token
        environment = _environment()
        self._template = _compiled(environment, self.source)
        self._tool_source = tool_source or self.source
        self._tool_template = _compiled(environment, tool_source) if tool_source else self._template

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> ChatTemplate:
        """The template that came with a tokenizer's checkpoint, else the built-in one.

        Raises:
            ChatTemplateError: The checkpoint's template has a syntax error.
        """
        return cls(
            tokenizer.chat_template,
            tool_source=tokenizer.chat_template_for_tools,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> ChatTemplate:
        """A template from a Jinja file.

        Raises:
            ChatTemplateError: The file cannot be read, or has a syntax error.
        """
        try:
            return cls(Path(path).read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ChatTemplateError(
                f"cannot read the chat template {str(path)[:200]!r}: {reason}\n"
                "hint: give a file; ChatTemplate(text) takes the template itself"
            ) from error

    def render(
        self,
        messages: Iterable[Message],
        tools: Iterable[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: JSONValue,
    ) -> str:
        """The prompt as text, for reading. For the model use :meth:`encode`: text alone does not
        say which special token names a user typed.

        Args:
            messages: The conversation, see :func:`normalize_messages`.
            tools: JSON descriptions of the functions on offer.
            add_generation_prompt: End with the header of the assistant's next message.
            kwargs: Variables for the template. The built-in one knows ``tools_in_user_message``
                (default True) and ``quote_tool_results`` (default False).

        Raises:
            ChatTemplateError: A message is malformed, or the template fails or drops an image.
        """
        text, swap = self._render(
            {"|"}, messages, tools, add_generation_prompt, self.bos_token, self.eos_token, kwargs
        )
        return swap.back(text)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Iterable[Message],
        tools: Iterable[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: JSONValue,
    ) -> list[int]:
        """The prompt as token ids: one BOS first, and one ``<|image|>`` id for each image.

        Special tokens come from the template only; names of special tokens in messages, tools and
        ``kwargs`` are encoded as text. Arguments and errors as for :meth:`render`.
        """
        text, swap = self._render(
            _needed_characters(tokenizer.special_tokens),
            messages,
            tools,
            add_generation_prompt,
            tokenizer.bos_token,
            tokenizer.eos_token,
            kwargs,
        )
        ids: list[int] = []
        for run, special in tokenizer.split_special(text):
            ids += tokenizer.encode(swap.back(run))
            if special is not None:
                ids.append(special)
        bos = tokenizer.bos_id
        if bos is None:
            return ids
        start = next((i for i, token in enumerate(ids) if token != bos), len(ids))
        return [bos, *ids[start:]]

    def _render(
        self,
        needed: set[str],
        messages: Iterable[Message],
        tools: Iterable[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        bos_token: str,
        eos_token: str,
        kwargs: Mapping[str, JSONValue],
    ) -> tuple[str, _Swap]:
        """The template's output with stand-ins in it, and what takes them out."""
        for name in _RESERVED:
            if name in kwargs:
                raise ChatTemplateError(f"{name!r} cannot be passed as a template variable")
        conversation = normalize_messages(messages)
        offered = _checked_tools(tools)
        template = self._tool_template if offered else self._template
        source = self._tool_source if offered else self.source
        try:
            given = (conversation, offered, dict(kwargs))
            swap = _Swap(needed, [source, bos_token, eos_token, *_strings(given)])
            conversation, offered, extra = swap.into(given)
        except RecursionError:
            raise ChatTemplateError("messages or tools are nested too deeply") from None
        text = _run(
            template,
            messages=conversation,
            tools=offered,
            add_generation_prompt=add_generation_prompt,
            bos_token=bos_token,
            eos_token=eos_token,
            **extra,
            **{_STAND_INS: swap.stand_ins},
        )
        num_images = len(image_parts(conversation))
        num_written = text.count(IMAGE_TOKEN)
        if num_images != num_written:
            raise ChatTemplateError(
                f"the messages have {num_images} images and the chat template wrote {num_written} "
                f"{IMAGE_TOKEN} for them; the template does not support images in these places"
            )
        return text, swap


# ------------------------------------------------------------------------------------- injection


class _Swap:
    """Swaps the characters that special token names need for characters that occur nowhere."""

    def __init__(self, needed: set[str], texts: list[str]) -> None:
        used = set().union(*map(set, texts)) if texts else set()
        free = (char for char in _candidates() if char not in used)
        self._into = {ord(char): next(free) for char in sorted(needed)}
        self._back = {ord(stand_in): char for char, stand_in in self._into.items()}
        self.stand_ins = "".join(self._into.values())

    def into(self, value: Any) -> Any:
        """A copy of a JSON value with stand-ins in all its strings."""
        if isinstance(value, str):
            return value.translate(self._into)
        if isinstance(value, Mapping):
            return {self.into(key): self.into(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.into(item) for item in value]
        return value

    def back(self, text: str) -> str:
        return text.translate(self._back)


def _candidates() -> Iterator[str]:
    """Characters for stand-ins: rare ones that Python calls printable, then private ones."""
    yield from map(chr, range(0x1D800, 0x1DA00))
    yield from map(chr, range(0xF0000, 0x10FFFE))


def _needed_characters(special_tokens: Iterable[str]) -> set[str]:
    """Characters such that every special token name has at least one of them.

    ``|`` for names like ``<|eot|>``, which leaves ``<`` and ``>`` in peace, because templates look
    for tags in messages.
    """
    needed: set[str] = {"|"}
    for name in special_tokens:
        if "|" not in name:
            needed.add(next((char for char in name if not char.isspace()), name[0]))
    return needed


def _strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


# -------------------------------------------------------------------------------------- messages


def normalize_messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """A checked copy of a conversation, in one plain form.

    Accepted is a list of mappings with

    * ``role``: ``system``, ``user``, ``assistant``, or ``tool`` (also spelled ``ipython``),
    * ``content``: a string; or a list of parts ``{"type": "text", "text": …}``,
      ``{"type": "image", …}``, ``{"type": "image_url", …}``; for a tool result any JSON value; for
      an assistant message with tool calls it may be None or absent,
    * ``tool_calls`` (assistant): ``[{"type": "function", "function": {"name": …, "arguments":
      …}}]`` with the arguments as an object or as its JSON text.

    In the result a list of text parts is one string, an image part is ``{"type": "image"}``,
    arguments are objects and an empty ``tool_calls`` is left out. Other keys stay.

    Raises:
        ChatTemplateError: Names the index of the message that is wrong, and what to do.

    >>> normalize_messages([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}])
    [{'role': 'user', 'content': 'Hi'}]
    """
    if not isinstance(messages, (list, tuple)):
        raise ChatTemplateError(
            f"messages must be a list of {{'role': …, 'content': …}}, not {_kind(messages)}"
        )
    if not messages:
        raise ChatTemplateError("messages is empty; give at least one message")
    return [_normalized(f"messages[{index}]", message) for index, message in enumerate(messages)]


def image_parts(messages: Iterable[Message]) -> list[Mapping[str, Any]]:
    """The image parts of a conversation as they were given, in the order of their ``<|image|>``.

    >>> image_parts([{"role": "user", "content": [{"type": "image", "image": "a.png"}]}])
    [{'type': 'image', 'image': 'a.png'}]
    """
    return [
        part
        for message in messages
        if _is_parts(content := message.get("content"))
        for part in content
        if part["type"] in _IMAGE_TYPES
    ]


def _normalized(where: str, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ChatTemplateError(
            f"{where} must be a dict with role and content, not {_kind(message)}"
        )
    role = message.get("role")
    if role not in _ROLES:
        given = "has no role" if role is None else f"has the unknown role {role!r}"
        raise ChatTemplateError(f"{where} {given}; use one of {', '.join(_ROLES)}")
    result = dict(message)
    calls = result.pop("tool_calls", None)
    if calls is not None and not isinstance(calls, (list, tuple)):
        raise ChatTemplateError(f"{where}.tool_calls must be a list, not {_kind(calls)}")
    if calls:
        if role != "assistant":
            raise ChatTemplateError(f"{where}: only an assistant message can have tool_calls")
        result["tool_calls"] = [
            _normalized_call(f"{where}.tool_calls[{index}]", call)
            for index, call in enumerate(calls)
        ]
    content = message.get("content")
    if content is None and calls:
        result["content"] = ""
    elif role in ("tool", "ipython") and not _is_parts(content):
        if "content" not in message:
            raise ChatTemplateError(f"{where} has no content; give the tool's result, or null")
        result["content"] = content
    else:
        result["content"] = _normalized_content(where, role, content)
    if role in ("tool", "ipython") and _is_parts(result["content"]):
        result["is_parts"] = True
    return result


def _normalized_content(where: str, role: str, content: Any) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    if content is None:
        also = " or tool_calls" if role == "assistant" else ""
        raise ChatTemplateError(f"{where} ({role}) has no content; give a string{also}")
    if not isinstance(content, (list, tuple)):
        raise ChatTemplateError(
            f"{where}.content must be a string or a list of parts, not {_kind(content)}"
        )
    parts: list[dict[str, str]] = []
    for index, part in enumerate(content):
        place = f"{where}.content[{index}]"
        if not isinstance(part, Mapping) or "type" not in part:
            raise ChatTemplateError(
                f"{place} must be a dict with a type, such as {{'type': 'text', 'text': …}}, "
                f"not {_kind(part)}"
            )
        if part["type"] == "text":
            if not isinstance(part.get("text"), str):
                raise ChatTemplateError(
                    f"{place}: a text part needs a string under 'text', not "
                    f"{_kind(part.get('text'))}"
                )
            parts.append({"type": "text", "text": part["text"]})
        elif part["type"] in _IMAGE_TYPES:
            if role == "system":
                raise ChatTemplateError(f"{place}: a system message cannot hold an image")
            parts.append({"type": "image"})
        else:
            raise ChatTemplateError(
                f"{place} has the unknown type {part['type']!r}; use text, image or image_url"
            )
    if any(part["type"] == "image" for part in parts):
        return parts
    return "".join(part["text"] for part in parts)


def _normalized_call(where: str, call: Any) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise ChatTemplateError(f"{where} must be a dict, not {_kind(call)}")
    if call.get("type", "function") != "function":
        raise ChatTemplateError(f"{where} has the unknown type {call['type']!r}; use function")
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ChatTemplateError(f"{where} needs {{'function': {{'name': …, 'arguments': …}}}}")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ChatTemplateError(f"{where}: arguments are not valid JSON: {error}") from error
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise ChatTemplateError(f"{where}: arguments must be a JSON object, not {_kind(arguments)}")
    result = {"id": call["id"]} if "id" in call else {}
    plain = {"name": function["name"], "arguments": dict(arguments)}
    return {**result, "type": "function", "function": plain}


def _is_parts(content: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    """Whether a content is a list of parts, as against any other JSON list."""
    return (
        isinstance(content, (list, tuple))
        and bool(content)
        and all(
            isinstance(part, Mapping) and part.get("type") in ("text", *_IMAGE_TYPES)
            for part in content
        )
    )


def _checked_tools(tools: Any) -> list[Any] | None:
    """The tools as a list, None for none."""
    if tools is None:
        return None
    if not isinstance(tools, (list, tuple)):
        raise ChatTemplateError(f"tools must be a list of JSON descriptions, not {_kind(tools)}")
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise ChatTemplateError(
                f"tools[{index}] must be a dict that describes a function, not {_kind(tool)}"
            )
    return list(tools) or None


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


# ----------------------------------------------------------------------------------------- jinja


def _environment() -> jinja2.Environment:
    """What chat templates are written for, in a sandbox: they come with downloaded files."""
    from datetime import datetime

    import jinja2
    from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        """``{% generation %}…{% endgeneration %}``, a mark for training; here only its body."""

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            body: list[nodes.Node] = parser.parse_statements(
                ("name:endgeneration",), drop_needle=True
            )
            return body

    Generation.tags = {"generation"}

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(pattern: str) -> str:
        return datetime.now().strftime(pattern)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, Generation]
    )
    environment.filters["tojson"] = jinja2.pass_context(_tojson)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def _tojson(
    context: Mapping[str, Any],
    value: Any,
    indent: int | str | None = None,
    ensure_ascii: bool = False,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a prompt: no HTML escapes, keys in their order, other scripts as they are."""
    text = json.dumps(
        value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if ensure_ascii:
        stand_ins = context.get(_STAND_INS, "")
        text = re.sub(
            r"[^\x00-\x7f]",
            lambda m: m.group() if m.group() in stand_ins else json.dumps(m.group())[1:-1],
            text,
        )
    return text


def _compiled(environment: jinja2.Environment, source: str) -> jinja2.Template:
    import jinja2

    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"the chat template has a syntax error in line {error.lineno}: {error.message}"
        ) from error


def _run(template: jinja2.Template, **variables: Any) -> str:
    import jinja2

    try:
        return template.render(**variables)
    except jinja2.TemplateError as error:
        raise ChatTemplateError(f"the chat template refuses the messages: {error}") from error
    except Exception as error:  # whatever the template's expressions run into
        raise ChatTemplateError(
            f"the chat template failed: {type(error).__name__}: {error}"
        ) from error
