"""Random models of real shapes, for measurements and tests."""

from __future__ import annotations

import os
from typing import Any

from .counts import MOST_THREADS, check_count
from .errors import option_errors
from .packing import Policy, policy_pairs
from .progress import Progress, progress_bar

__all__ = ["synth"]


def synth(
    destination: str | os.PathLike[str],
    *,
    shape: str,
    weights: str = "int4",
    policy: Policy = (),
    seed: int = 0,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | bool = False,
) -> dict[str, Any]:
    """Writes a random model in packed form. It is as fast as a trained one, and talks noise.

    Activations keep unit size and tokens spread over the experts, as in a trained model. There is
    no tokenizer: such a model takes token ids.

    Args:
        destination: Directory to make.
        shape: ``"tiny"``, ``"edge"`` (16 layers, 2048 wide, 3.7 billion parameters),
            ``"scout-layers=N"`` or ``"maverick-layers=N"`` (N layers of the published sizes), each
            with a vocabulary of 32000; ``"scout"`` is all of Scout's text model.
        weights: Format of the decoder's matrices, as for `Llama4`.
        policy: Other formats for some matrices, as for `Llama4`.
        seed: The same seed gives the same bytes.
        threads: Threads to compute with; None for as many as there are cores.
        force: Replace `destination` if it is there already.
        progress: True shows a bar; or a function called as ``progress(what, done, total)``.

    Returns:
        ``tensors``, ``bytes`` and ``warnings``, as `llama4rs.pack` does.

    Raises:
        PackError: An existing destination, a full disk.
        RequestError: An unknown shape or format.
    """
    from ._llama4rs import synth as core_synth

    check_count("threads", threads, most=MOST_THREADS)
    with option_errors(), progress_bar(progress) as report:
        return core_synth(
            os.fspath(destination),
            shape=shape,
            weights=weights,
            policy=policy_pairs(policy),
            seed=seed,
            threads=threads,
            force=force,
            progress=report,
        )
