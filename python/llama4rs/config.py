"""A model's configuration, to look at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Config"]


class Config(Mapping[str, Any]):
    """The ``config.json`` of a model with the defaults filled in; cannot be changed.

    Fields are attributes and items, under their published names. Those of the decoder are found
    without naming ``text_config``.

    Example:
        >>> import llama4rs
        >>> config = llama4rs.Llama4().config
        >>> config.num_local_experts == config["num_local_experts"]
        True
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__["_values"] = {name: _frozen(value) for name, value in values.items()}

    def __getitem__(self, name: str) -> Any:
        values: dict[str, Any] = self.__dict__["_values"]
        if name not in values and isinstance(values.get("text_config"), Config):
            return values["text_config"][name]
        return values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__["_values"])

    def __len__(self) -> int:
        return len(self.__dict__["_values"])

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the model's configuration has no field {name!r}") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("the configuration of an opened model cannot be changed")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self]

    def __repr__(self) -> str:
        return f"Config({json.dumps(self.to_dict(), indent=2)})"

    def to_dict(self) -> dict[str, Any]:
        """A copy made of plain dicts and lists."""
        return {name: _plain(value) for name, value in self.items()}


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return Config(value)
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
