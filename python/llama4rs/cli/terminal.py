"""Writing model output to a terminal."""

from __future__ import annotations

import sys

from ..outputs import Output

__all__ = ["print_json", "print_statistics", "write_piece"]

# A model may write control characters; only tab and newline may act on the terminal.
_VISIBLE = {
    code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"
}


def write_piece(piece: str) -> None:
    """Writes a piece of text at once."""
    if sys.stdout.isatty():
        piece = piece.translate(_VISIBLE)
    sys.stdout.write(piece)
    sys.stdout.flush()


def print_statistics(output: Output) -> None:
    """One line about speed on standard error, where somebody watches."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        return
    usage = output.usage
    print(
        f"[prompt {usage.prompt_tokens} tokens, {output.prefill_tokens_per_second:,.0f} tokens/s; "
        f"output {usage.completion_tokens} tokens, {output.decode_tokens_per_second:,.1f} tokens/s;"
        f" {output.finish_reason}]",
        file=sys.stderr,
    )


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Writes a value as JSON; characters of all scripts as they are."""
    import json

    print(json.dumps(value, ensure_ascii=False, indent=indent), flush=True)
