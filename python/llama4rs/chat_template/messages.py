"""Conversations, checked and in one plain form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from ..errors import ChatTemplateError, shown

__all__ = ["Message", "checked_tools", "image_parts", "normalize_messages"]

Message = Mapping[str, Any]

_ROLES = ("system", "user", "assistant", "tool", "ipython")
_IMAGE_TYPES = ("image", "image_url")


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
    if not isinstance(role, str) or role not in _ROLES:
        given = "has no role" if role is None else f"has the unknown role {shown(role)}"
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
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
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
                f"{place} has the unknown type {shown(part['type'])}; use text, image or image_url"
            )
    if any(part["type"] == "image" for part in parts):
        return parts
    return "".join(part["text"] for part in parts)


def _normalized_call(where: str, call: Any) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise ChatTemplateError(f"{where} must be a dict, not {_kind(call)}")
    if call.get("type", "function") != "function":
        raise ChatTemplateError(f"{where} has the unknown type {shown(call['type'])}; use function")
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


def checked_tools(tools: Any) -> list[Any] | None:
    """The tools as a list, None for none.

    Raises:
        ChatTemplateError: Names the index of the one that describes no function.
    """
    if tools is None:
        return None
    if not isinstance(tools, (list, tuple)):
        raise ChatTemplateError(f"tools must be a list of JSON descriptions, not {_kind(tools)}")
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise ChatTemplateError(
                f"tools[{index}] must be a dict that describes a function, not {_kind(tool)}"
            )
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise ChatTemplateError(
                f"tools[{index}] names no function\nhint: write {{'type': 'function', 'function': "
                "{'name': …, 'description': …, 'parameters': {…}}}"
            )
    return list(tools) or None


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
