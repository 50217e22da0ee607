"""What the files beside a checkpoint's tokenizer say: BOS, EOS, stop ids and chat templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import TokenizerError

__all__ = ["read_settings"]


def read_settings(folder: Path) -> dict[str, Any]:
    """Keyword arguments for `Tokenizer` from the files beside the tokenizer file."""
    config = _read_object(folder / "tokenizer_config.json")
    generation = _read_object(folder / "generation_config.json")
    settings: dict[str, Any] = {
        "bos_token": _token_name(config.get("bos_token")),
        "eos_token": _token_name(config.get("eos_token")),
        "eos_ids": _id_list(folder / "generation_config.json", generation.get("eos_token_id")),
    }
    templates = _templates(folder, config)
    if templates:
        settings["chat_template"] = templates.get("default", next(iter(templates.values())))
        settings["chat_template_for_tools"] = templates.get("tool_use")
    return settings


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is no such file."""
    try:
        value = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def _token_name(value: Any) -> str | None:
    """A token is written as its text, or as an object with the text in ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _id_list(path: Path, value: Any) -> list[int]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for item in ids:
        if isinstance(item, bool) or not isinstance(item, int) or item < 0:
            raise TokenizerError(f"{path}: eos_token_id must be ids of tokens, got {item!r}")
    return list(ids)


def _templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name; ``default`` is the usual one."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        try:
            return {"default": jinja.read_text("utf-8")}
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{jinja} is not UTF-8 text: {error}") from error
    source = folder / "chat_template.json"
    value = _read_object(source).get("chat_template")
    if value is None:
        source = folder / "tokenizer_config.json"
        value = config.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list):
        value = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
    if isinstance(value, dict) and all(isinstance(s, str) for pair in value.items() for s in pair):
        return dict(value)
    raise TokenizerError(f"{source}: chat_template is neither a string nor named strings")
