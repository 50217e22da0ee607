"""Model directories on disk: `pack` makes one, `verify` checks one, `inspect` looks at one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from .counts import MOST_THREADS, check_count, check_path, check_text
from .errors import RequestError, option_errors, shown
from .hub import resolve_model
from .progress import Progress, progress_bar

__all__ = ["Policy", "inspect", "pack", "policy_pairs", "verify"]

Policy: TypeAlias = Mapping[str, str] | Sequence[tuple[str, str]]
"""Formats for matrices by name pattern, as a mapping or as pairs: ``{"lm_head": "bf16"}``. ``*``
stands for any characters; the first pattern that matches a name decides."""


def policy_pairs(policy: Policy) -> list[tuple[str, str]]:
    """`policy` as the core takes it.

    Raises:
        RequestError: It is neither a mapping nor pairs.
    """
    pairs = policy.items() if isinstance(policy, Mapping) else policy
    try:
        return [(str(pattern), str(form)) for pattern, form in pairs]
    except (TypeError, ValueError):
        raise RequestError(
            f'policy maps patterns of names to formats, {{"lm_head": "bf16"}}; got {shown(policy)}'
        ) from None


def pack(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    weights: str = "int4",
    policy: Policy = (),
    threads: int | None = None,
    force: bool = False,
    progress: Progress | bool = False,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> dict[str, Any]:
    """Converts a published checkpoint into a directory that opens at once.

    Tokenizer, chat template and configuration are copied along.

    Args:
        source: Directory, or id on the Hugging Face hub.
        destination: Directory to make.
        weights: Format of the decoder's matrices, as for `Llama4`.
        policy: Other formats for some matrices, as for `Llama4`.
        threads: Threads to compute with; None for as many as there are cores.
        force: Replace `destination` if it is there already.
        progress: True shows a bar; or a function called as ``progress(what, done, total)``.
        revision, token, local_files_only: For ids on the hub, see `llama4rs.hub.resolve_model`.

    Returns:
        ``tensors`` (``name``, ``format``, ``shape``, ``bytes`` and ``relative_error`` of each: the
        norm of what packing changed over the norm of the original), ``bytes`` and ``warnings``.

    Raises:
        CheckpointNotFoundError: There is no such source.
        CheckpointError: The source is damaged, or is no Llama 4.
        PackError: NaN weights, an existing destination, a full disk.
        RequestError: An unknown format.
    """
    from ._llama4rs import pack as core_pack

    check_text("weights", weights, optional=False)
    check_path("destination", destination)
    folder = resolve_model(
        source, revision=revision, token=token, local_files_only=local_files_only
    )
    check_count("threads", threads, most=MOST_THREADS)
    with option_errors(), progress_bar(progress) as report:
        return core_pack(
            str(folder),
            os.fspath(destination),
            weights=weights,
            policy=policy_pairs(policy),
            threads=threads,
            force=force,
            progress=report,
        )


def verify(path: str | os.PathLike[str], *, progress: Progress | bool = False) -> dict[str, Any]:
    """Reads a packed directory completely and checks every tensor's checksum.

    Args:
        path: A directory made by `pack`.
        progress: True shows a bar; or a function called as ``progress(what, done, total)``.

    Returns:
        How many ``tensors``, ``files`` and ``bytes`` are intact.

    Raises:
        CheckpointNotFoundError: There is no such directory.
        CheckpointError: A tensor is damaged; the message names it.
    """
    from ._llama4rs import verify as core_verify

    folder = resolve_model(path, local_files_only=True)
    with progress_bar(progress) as report:
        return core_verify(str(folder), progress=report)


def inspect(
    model: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> dict[str, Any]:
    """What the headers of a model directory say; no weights are read.

    Args:
        model: Directory, id on the hub, or None for the demo model.
        revision, token, local_files_only: For ids on the hub, see `llama4rs.hub.resolve_model`.

    Returns:
        ``kind`` (``"packed"`` or ``"published"``), ``config``, ``weights`` (the format of a packed
        model, else None), ``tensors`` (as `pack` returns them), ``parameters``, ``bytes`` and
        ``warnings``.

    Raises:
        CheckpointNotFoundError: There is no such model.
        CheckpointError: The model is damaged, or is no Llama 4.

    Example:
        >>> import llama4rs
        >>> llama4rs.inspect()["config"]["model_type"]
        'llama4'
    """
    from ._llama4rs import open_info

    folder = resolve_model(model, revision=revision, token=token, local_files_only=local_files_only)
    return open_info(str(folder))
