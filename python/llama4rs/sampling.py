"""How tokens are chosen and when a request ends: `SamplingParams`, and the words users write."""

from __future__ import annotations

import difflib
import math
import operator
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict

from .counts import is_count
from .errors import RequestError, shown

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SamplingOptions", "SamplingParams"]

DEFAULT_MAX_TOKENS = 4096
"""Most new tokens of a request that does not say `max_tokens`."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """All options of one request, with their defaults. Never changes; keyword-only.

    ``Llama4.generate`` and its sisters take these names as keyword arguments; build an object to
    use the same options many times.

    Attributes:
        max_tokens: Most new tokens, 1 or more; fewer where the context is full before. None means
            4096.
        temperature: 0 takes the most probable token every time; 1 samples from the model's own
            distribution; 0 or more.
        top_p: Sample from the most probable tokens that together have this probability, above 0
            and at most 1. 1 keeps all.
        top_k: Sample from this many of the most probable tokens. 0 keeps all (so does -1).
        min_p: Drop tokens less probable than this share of the most probable one, 0 to 1.
        repetition_penalty: Divides the positive logits of tokens that occurred before (and
            multiplies the negative ones), above 0. 1 changes nothing.
        stop: Text that ends the output, one string or several. Found across token borders; the
            output ends before it.
        stop_token_ids: Token ids that end the output, besides the model's own.
        ignore_eos: True goes on after the model's own end-of-text tokens.
        seed: Start of the random numbers, 0 to 2**64 - 1. The same seed gives the same tokens,
            whatever else runs. None takes a new one every time.
        logprobs: Report the log probability of each token, and of this many of the most probable
            ones beside it. True is 0: the chosen token's only. None reports nothing.

    Raises:
        RequestError: A value is out of range (also a ``ValueError``).

    Example:
        >>> from llama4rs import SamplingParams
        >>> SamplingParams(temperature=0, stop="END").stop
        ('END',)
        >>> SamplingParams(top_p=2)
        Traceback (most recent call last):
        ...
        llama4rs.errors.RequestError: top_p must be above 0 and at most 1, got 2
    """

    max_tokens: int | None = None
    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    seed: int | None = 0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        def check(name: str, accepted: str, *, good: bool) -> None:
            if not good:
                value = getattr(self, name)
                greedy = name == "top_p" and is_count(value, 0, 0)
                hint = "; temperature=0 gives greedy decoding" if greedy else ""
                raise RequestError(f"{name} must be {accepted}, got {shown(value)}{hint}")

        def store(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        if isinstance(self.logprobs, bool):
            store("logprobs", 0 if self.logprobs else None)
        for name, accepted, least, most in _COUNTS:
            value = getattr(self, name)
            if value is not None or name == "top_k":
                check(name, accepted, good=is_count(value, least, most))
                store(name, operator.index(value))
        if self.top_k == -1:
            store("top_k", 0)
        for name, accepted, low, high in _RANGES:
            value = getattr(self, name)
            check(name, accepted, good=_is_real(value) and low <= value <= high)
        check("ignore_eos", "True or False", good=isinstance(self.ignore_eos, bool))

        stop = _as_tuple(self.stop)
        good = stop is not None and all(isinstance(text, str) and text for text in stop)
        check("stop", "a string or several, none of them empty", good=good)
        store("stop", stop)
        ids = _as_tuple(self.stop_token_ids)
        good = ids is not None and all(is_count(token_id, 0) for token_id in ids)
        check("stop_token_ids", "token ids of 0 or more", good=good)
        store("stop_token_ids", tuple(map(operator.index, ids or ())))

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> SamplingParams:
        """The defaults that a checkpoint's ``generation_config.json`` asks for.

        ``do_sample: false`` is temperature 0. Fields of other samplers are left alone.

        Raises:
            RequestError: A value is out of range.

        Example:
            >>> from llama4rs import SamplingParams
            >>> SamplingParams.from_generation_config({"temperature": 0.7}).temperature
            0.7
        """
        if not isinstance(config, Mapping):
            raise RequestError(f"a generation config is a JSON object, got {shown(config)}")
        own = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        values = {name: config[name] for name in own if config.get(name) is not None}
        if config.get("max_new_tokens") is not None:
            values["max_tokens"] = config["max_new_tokens"]
        if config.get("do_sample") is False:
            values["temperature"] = 0.0
        return cls(**values)

    def with_options(self, **options: Unpack[SamplingOptions]) -> SamplingParams:
        """A copy with some options changed; takes every name that ``Llama4.generate`` takes.

        An option that is None is left as it was.

        Raises:
            RequestError: A value is out of range.
            TypeError: An unknown name (the message suggests a known one), or two names for the
                same option.

        Example:
            >>> from llama4rs import SamplingParams
            >>> SamplingParams().with_options(max_new_tokens=5, do_sample=False).max_tokens
            5
        """
        return replace(self, **_canonical(options))

    def chosen_seed(self) -> int:
        """`seed`, or a new random one where that is None."""
        return secrets.randbits(64) if self.seed is None else self.seed


class SamplingOptions(TypedDict, total=False):
    """Keyword arguments of ``Llama4.generate``: the fields of `SamplingParams`, and their
    spellings in other libraries."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    stop: Sequence[str] | None
    stop_token_ids: Iterable[int] | int | None
    ignore_eos: bool | None
    seed: int | None
    logprobs: int | None

    do_sample: bool | None
    eos_token_id: Iterable[int] | int | None
    max_completion_tokens: int | None
    max_new_tokens: int | None
    n_predict: int | None
    num_predict: int | None
    random_seed: int | None
    repeat_penalty: float | None
    stop_sequences: Sequence[str] | None
    stop_strings: Sequence[str] | None
    temp: float | None
    top_logprobs: int | None


_COUNTS = (
    ("max_tokens", "an integer of 1 or more", 1, None),
    ("top_k", "an integer of 0 (off) or more", -1, None),
    ("seed", "an integer from 0 to 2**64 - 1", 0, (1 << 64) - 1),
    ("logprobs", "True, or an integer of 0 or more", 0, None),
)
_RANGES = (
    ("temperature", "a number of 0 or more", 0.0, math.inf),
    ("top_p", "above 0 and at most 1", math.ulp(0.0), 1.0),
    ("min_p", "a number from 0 to 1", 0.0, 1.0),
    ("repetition_penalty", "a number above 0", math.ulp(0.0), math.inf),
)

_FIELDS = frozenset(field.name for field in fields(SamplingParams))

_ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "eos_token_id": "stop_token_ids",
        "max_completion_tokens": "max_tokens",
        "max_new_tokens": "max_tokens",
        "n_predict": "max_tokens",
        "num_predict": "max_tokens",
        "random_seed": "seed",
        "repeat_penalty": "repetition_penalty",
        "stop_sequences": "stop",
        "stop_strings": "stop",
        "temp": "temperature",
        "top_logprobs": "logprobs",
    }
)

# What to write in place of options that exist elsewhere and mean something else here.
_ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "best_of": "pass the prompt several times, one call per seed",
        "frequency_penalty": "repetition_penalty is the penalty that there is",
        "max_length": "max_tokens counts new tokens only",
        "messages": "the conversation is the first argument",
        "n": "call once per seed",
        "num_beams": "only sampling and greedy decoding (temperature=0) exist",
        "num_return_sequences": "call once per seed",
        "presence_penalty": "repetition_penalty is the penalty that there is",
        "prompt": "the prompt is the first argument",
        "stream": "use stream() or chat_stream(), or astream() with asyncio",
        "tools": "tools go with chat()",
    }
)


def _canonical(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` under the names of the fields of `SamplingParams`, without those left None."""
    given = {name: value for name, value in options.items() if value is not None}
    unknown = sorted(options.keys() - _FIELDS - _ALIASES.keys() - {"do_sample"})
    if unknown:
        raise TypeError(_unknown_option(unknown[0]))

    do_sample = given.pop("do_sample", True)
    if not isinstance(do_sample, bool):
        raise RequestError(f"do_sample must be True or False, got {shown(do_sample)}")
    if given.get("logprobs") is True and "top_logprobs" in given:
        del given["logprobs"]  # logprobs=True, top_logprobs=5 is how OpenAI spells logprobs=5

    values: dict[str, Any] = {}
    source: dict[str, str] = {}
    for spelling, value in given.items():
        name = _ALIASES.get(spelling, spelling)
        if name in source:
            raise TypeError(f"{source[name]} and {spelling} are one option; give one of them")
        values[name], source[name] = value, spelling
    if is_count(values.get("stop_token_ids"), 0):
        values["stop_token_ids"] = (values["stop_token_ids"],)
    if not do_sample:
        if values.get("temperature", 0) != 0:
            raise TypeError("do_sample=False is temperature=0; give one of them")
        values["temperature"] = 0.0
    return values


def _unknown_option(given: str) -> str:
    message = f"unknown option {given!r}"
    if given in _ADVICE:
        return f"{message}: {_ADVICE[given]}"
    close = difflib.get_close_matches(given, [*_FIELDS, *_ALIASES, "do_sample"], n=1)
    if close:
        return f"{message}; did you mean {_ALIASES.get(close[0], close[0])!r}?"
    return f"{message}; the options are {', '.join(sorted(_FIELDS))}"


def _is_real(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _as_tuple(value: object) -> tuple[Any, ...] | None:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, Iterable) else None
