"""From what the user calls a model to a directory: a path, a Hugging Face id, or nothing."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from .errors import CheckpointError, CheckpointNotFoundError, shown

__all__ = ["demo_model_path", "resolve_model"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
# Meta's own weight files, next to the converted ones in some repositories.
_OTHER_FILES = ["original/*"]


def demo_model_path() -> Path:
    """The directory of cria, the tiny Llama 4 that comes with the package.

    Raises:
        CheckpointNotFoundError: The package was installed without its data.
    """
    path = Path(__file__).parent / "cria"
    if not (path / "config.json").is_file():
        raise CheckpointNotFoundError(
            f"the demo model is missing from this installation ({path})\n"
            "hint: reinstall llama4rs, or name a model directory"
        )
    return path


def resolve_model(
    model: str | os.PathLike[str] | None,
    *,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The directory of a model, downloaded first if need be.

    A path that exists wins. Anything else of the form ``owner/name`` is an id on the Hugging Face
    hub: its weights, configuration and tokenizer are fetched into the cache of ``huggingface_hub``
    (set ``HF_HOME`` to move it), where they are found again next time.

    Args:
        model: Directory, hub id, or None for the demo model.
        revision: Branch, tag or commit on the hub; its main branch by default.
        token: Access token for gated models; by default the one of ``hf auth login``.
        local_files_only: Never use the network, as ``HF_HUB_OFFLINE=1`` does.

    Raises:
        CheckpointNotFoundError: Neither a directory nor a model on the hub, or it cannot be
            fetched; the message says what to do.
        CheckpointError: A file in place of a directory.

    Example:
        >>> from llama4rs.hub import resolve_model
        >>> resolve_model("./nowhere")
        Traceback (most recent call last):
        ...
        llama4rs.errors.CheckpointNotFoundError: no model directory './nowhere'
        hint: give a directory with config.json and safetensors files, or a Hugging Face id such \
as meta-llama/Llama-4-Scout-17B-16E-Instruct
    """
    if model is None:
        return demo_model_path()
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"a model is a directory, a hub id or None, got {shown(model)}")
    name = os.fspath(model)
    try:
        path = Path(name).expanduser()
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, RuntimeError):  # a name that is too long, a user who is not known
        is_folder = exists = False
    if name and is_folder:
        return path
    if name and exists:
        raise CheckpointError(f"{name!r} is a file\nhint: give the directory that it is in")
    if not isinstance(model, str) or not _HUB_ID.fullmatch(name):
        raise _not_found(
            f"no model directory {shown(name)}",
            "give a directory with config.json and safetensors files, or a Hugging Face id such as "
            "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        )
    return _download(name, revision, token, local_files_only)


def _download(name: str, revision: str | None, token: str | None, local_files_only: bool) -> Path:
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise _not_found(
            f"there is no directory {name!r}, and fetching it from the hub needs huggingface_hub",
            "pip install huggingface_hub, or give a directory",
        ) from error
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=_FILES,
            ignore_patterns=_OTHER_FILES,
        )
    except errors.GatedRepoError as error:
        raise _not_found(
            f"access to {name} on the Hugging Face hub is restricted",
            "accept its licence on its page there, then run `hf auth login` or pass token=",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise _not_found(
            f"{name} has no revision {revision!r} on the Hugging Face hub",
            "leave out the revision for the main branch",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise _not_found(
            f"{name!r} is neither a directory nor a model on the Hugging Face hub",
            "check the spelling; a private model needs `hf auth login` or token=",
        ) from error
    except errors.LocalEntryNotFoundError as error:
        offline = local_files_only or _is_offline()
        raise _not_found(
            f"{name!r} is not a directory and not in the local cache of the hub",
            f"the network was not asked (local_files_only or HF_HUB_OFFLINE is set); "
            f"`hf download {name}` fetches the model"
            if offline
            else "the Hugging Face hub cannot be reached: check the network, or give a directory",
        ) from error
    except errors.HfHubHTTPError as error:
        raise _not_found(
            f"the Hugging Face hub refused {name!r}: {error}",
            "try again later, or give a directory",
        ) from error
    except Exception as error:  # its own errors have no common base class
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise _not_found(
                f"the disk is full; {name} could not be fetched",
                "free some space, or set HF_HOME to a larger disk, then run the same again: "
                "finished files are kept",
            ) from error
        raise _not_found(
            f"{name!r} is not a directory, and fetching it from the hub failed: {error}",
            "check the network, or give a directory",
        ) from error
    return Path(folder)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _not_found(problem: str, hint: str) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(f"{problem}\nhint: {hint}")
