"""What chat templates run in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ChatTemplateError

if TYPE_CHECKING:
    import jinja2

__all__ = ["STAND_INS", "compiled", "environment", "rendered"]

STAND_INS = "llama4rs_stand_ins"
"""The name under which a render's stand-ins reach the tojson filter."""


def environment() -> jinja2.Environment:
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
        stand_ins = context.get(STAND_INS, "")
        text = re.sub(
            r"[^\x00-\x7f]",
            lambda m: m.group() if m.group() in stand_ins else json.dumps(m.group())[1:-1],
            text,
        )
    return text


def compiled(environment: jinja2.Environment, source: str) -> jinja2.Template:
    import jinja2

    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"the chat template has a syntax error in line {error.lineno}: {error.message}"
        ) from error


def rendered(template: jinja2.Template, **variables: Any) -> str:
    import jinja2

    try:
        return template.render(**variables)
    except jinja2.TemplateError as error:
        raise ChatTemplateError(f"the chat template refuses the messages: {error}") from error
    except Exception as error:  # whatever the template's expressions run into
        raise ChatTemplateError(
            f"the chat template failed: {type(error).__name__}: {error}"
        ) from error
