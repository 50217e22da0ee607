"""Messages, and what the published format makes of them."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

from llama4rs.chat_template import ChatTemplate
from llama4rs.tokenizer import Tokenizer

RELAXED = settings(deadline=None, max_examples=150)
BOS = "<|begin_of_text|>"
PROMPT = "<|header_start|>assistant<|header_end|>\n\n"

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Météo d'une ville <b>",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
WEATHER_TEXT = """{
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Météo d'une ville <b>",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {
                    "type": "string"
                }
            }
        }
    }
}

"""
FORMAT = (
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and '
    "its value}.Do not use variables.\n\n"
)
IN_USER = (
    "Given the following functions, please respond with a JSON for a function call with its proper "
    "arguments that best answers the given prompt.\n\n" + FORMAT + WEATHER_TEXT
)
IN_SYSTEM = (
    "You have access to the following functions. To call a function, please respond with JSON for "
    "a function call." + FORMAT + WEATHER_TEXT
)


def block(role: str, content: str) -> str:
    return f"<|header_start|>{role}<|header_end|>\n\n{content}<|eot|>"


def user(content: Any = "Hi") -> dict[str, Any]:
    return {"role": "user", "content": content}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def assistant(content: Any, **calls: dict[str, Any]) -> dict[str, Any]:
    """An assistant message, with a call for each keyword."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": name, "arguments": arguments}}
            for name, arguments in calls.items()
        ]
    return message


def tool(content: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": "1"}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


IMAGE = {"type": "image_url", "image_url": {"url": "a.png"}}


def joint_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    return tokenizer.encode(prompt, parse_special=True)


def render(*messages: dict[str, Any], **options: Any) -> str:
    return ChatTemplate().render(list(messages), **options)
