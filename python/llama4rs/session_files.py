"""Saved sessions: small files below ``kv_dir``, each written whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RequestError, SessionError, shown
from .planning.shape import read_shape

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .tokenizer import Tokenizer

__all__ = ["SessionFiles", "SessionInfo", "SessionState", "check_name", "model_sessions"]

_MAGIC = b"llama4rs session 1\n"
_SUFFIX = ".session"
_TEMPORARY = ".writing-"
_LOCK = ".lock"
_STALE_SECONDS = 3600
# What this becomes tells one tokenizer from another.
_PROBE = "The quick brown fox, 1234567.89 — Übermut; Привет, 世界 \n\n\t def f(x): return x**2"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}")


@dataclass
class SessionState:
    """All that a session is: what can be computed from this is not part of it.

    Attributes:
        token_ids: Every token so far; images are expanded to their patch tokens.
        features: For the patch tokens, in order: arrays ``float32 [patches, hidden]``.
        messages: The conversation so far, images left out; empty for plain text.
        tools: Functions on offer in the conversation.
    """

    token_ids: array[int] = field(default_factory=lambda: array("I"))
    features: list[npt.NDArray[np.float32]] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[Any] | None = None

    @property
    def image_features(self) -> npt.NDArray[np.float32] | None:
        """All of `features`, ``float32 [patches, hidden]``; None without images."""
        if len(self.features) < 2:
            return self.features[0] if self.features else None
        import numpy as np

        return np.concatenate(self.features)

    def copy(self) -> SessionState:
        """A state that grows on its own; features, which nobody changes, are shared."""
        return SessionState(
            self.token_ids[:], [*self.features], [*self.messages], self.tools and [*self.tools]
        )


@dataclass(frozen=True)
class SessionInfo:
    """A saved session.

    Args:
        name: Its name.
        tokens: Its length; 0 where the file is damaged.
        bytes: Of its file and its images. Keys and values are not counted: sessions share them.
        saved: When it was saved last, seconds since 1970.
        problem: Why it cannot be opened, or None.
    """

    name: str
    tokens: int
    bytes: int
    saved: float
    problem: str | None = None


def check_name(name: str) -> str:
    """`name`, which can be the name of a session.

    Raises:
        RequestError: It cannot.

    Example:
        >>> check_name("war and peace 2")
        'war and peace 2'
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.endswith((" ", ".")):
        raise RequestError(
            f"a session's name has up to 100 letters, digits, blanks, and . _ -, and begins with a "
            f"letter or digit; got {shown(name)}"
        )
    return name


class SessionFiles:
    """The sessions of one directory, for one model.

    Args:
        folder: Where they are; need not exist.
        model: Says which model's tokens these are; None for any, to list and delete.
        hidden_size: Width of an image feature.
    """

    def __init__(self, folder: Path, model: str | None = None, hidden_size: int = 1) -> None:
        self._folder = folder
        self._images = folder / "images"
        self._model = model
        self._hidden_size = hidden_size

    def load(self, name: str) -> SessionState | None:
        """A saved session; None if there is none of this name.

        Raises:
            SessionError: The file, or an image of it, is damaged, or the session another model's.
        """
        path = self._path(name)
        with self._locked(fcntl.LOCK_SH):
            return self._load(name, path)

    def _load(self, name: str, path: Path) -> SessionState | None:
        data = _content(path)
        if data is None:
            return None
        head, body = _parse(path, data)
        if head["model"] != self._model:
            raise SessionError(
                f"the session {name!r} in {self._folder} was made with a model of other sizes or "
                "with another tokenizer\nhint: open that model, or choose another name"
            )
        token_ids = array("I", body)
        if sys.byteorder == "big":
            token_ids.byteswap()
        features = [self._image(path, digest) for digest in head["images"]]
        return SessionState(token_ids, features, head["messages"], head["tools"])

    def save(self, name: str, state: SessionState) -> None:
        """Writes a session; it replaces one of the same name.

        Raises:
            OSError: The disk is full, the directory cannot be written.
            RequestError: A message holds what JSON cannot.
        """
        for folder in (self._folder, self._images):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked(fcntl.LOCK_SH):
            self._save(name, state)

    def _save(self, name: str, state: SessionState) -> None:
        images = []
        for rows in state.features:
            content = rows.astype("<f4", copy=False).tobytes()
            images.append(hashlib.sha256(content).hexdigest())
            path = self._images / images[-1]
            if _content(path) != content:  # it may be there, and damaged
                _write(path, content)
        head = {
            "name": name,
            "model": self._model,
            "tokens": len(state.token_ids),
            "images": images,
            "messages": state.messages,
            "tools": state.tools,
        }
        token_ids = state.token_ids
        if sys.byteorder == "big":
            token_ids = token_ids[:]
            token_ids.byteswap()
        try:
            rest = json.dumps(head).encode() + b"\n" + token_ids.tobytes()
        except (TypeError, ValueError) as error:
            raise RequestError(f"a message cannot be saved: {error}") from error
        digest = hashlib.sha256(rest).hexdigest().encode()
        _write(self._path(name), _MAGIC + digest + b"\n" + rest)

    def delete(self, name: str) -> bool:
        """Removes a session and the images that no other session has; False if there was none."""
        with self._locked(fcntl.LOCK_EX):
            return self._delete(name)

    def _delete(self, name: str) -> bool:
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            return False
        heads = [head for *_, head in self._heads()]
        known = [head for head in heads if head is not None]
        if len(known) == len(heads):  # a damaged session may be restored, and need its images
            used = {digest for head in known for digest in head["images"]}
            for path in self._images.glob("[!.]*"):
                if path.name not in used:
                    path.unlink(missing_ok=True)
        return True

    def list(self) -> list[SessionInfo]:
        """All saved sessions, the one saved last first."""
        found = []
        for path, saved, size, head in self._heads():
            name = path.name.removesuffix(_SUFFIX)
            if head is None:
                found.append(SessionInfo(name, 0, size, saved, "the file is damaged"))
                continue
            for digest in set(head["images"]):
                with suppress(FileNotFoundError):
                    size += (self._images / digest).stat().st_size
            known = self._model in (None, head["model"])
            problem = None if known else "made with another model"
            found.append(SessionInfo(name, head["tokens"], size, saved, problem))
        return sorted(found, key=lambda info: -info.saved)

    def _heads(self) -> Iterator[tuple[Path, float, int, dict[str, Any] | None]]:
        """Path, time, size and header of every session; None for a damaged one."""
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            try:
                data, saved = path.read_bytes(), path.stat().st_mtime
            except FileNotFoundError:  # somebody deleted it just now
                continue
            try:
                head = _parse(path, data)[0]
            except SessionError:
                head = None
            yield path, saved, len(data), head

    @contextmanager
    def _locked(self, operation: int) -> Iterator[None]:
        """Whoever removes images is alone: until a session is written, nothing names its images.

        Nothing is locked where files or locks cannot be had: in a directory that is not there or
        that may not be written, on some network file systems.
        """
        try:
            handle = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            yield
            return
        try:
            with suppress(OSError):
                fcntl.flock(handle, operation)
            yield
        finally:
            with suppress(OSError):  # a process that was forked meanwhile would keep the lock
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)

    def _path(self, name: str) -> Path:
        return self._folder / f"{check_name(name)}{_SUFFIX}"

    def _image(self, session: Path, digest: str) -> npt.NDArray[np.float32]:
        import numpy as np

        path = self._images / digest
        content = _content(path) or b""
        width = 4 * self._hidden_size
        if hashlib.sha256(content).hexdigest() != digest or len(content) % width:
            raise SessionError(
                f"{session}: its image {path} is damaged or missing\n"
                "hint: delete the session and make it again"
            )
        return np.frombuffer(content, dtype="<f4").reshape(-1, self._hidden_size)


def _parse(path: Path, data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the bytes of the token ids."""
    start = len(_MAGIC) + 65
    rest = data[start:]
    digest = hashlib.sha256(rest).hexdigest().encode()
    if data[:start] != _MAGIC + digest + b"\n":
        raise SessionError(
            f"{path} is no session, or a damaged one\nhint: delete the file and begin again"
        )
    line, _, body = rest.partition(b"\n")
    head: dict[str, Any] = json.loads(line)
    return head, body


def _content(path: Path) -> bytes | None:
    """All of a file; None if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write(path: Path, content: bytes) -> None:
    """Writes a file so that after a crash it is there completely or not at all."""
    for left in path.parent.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):  # another process may do the same
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                left.unlink()
    handle, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def model_sessions(
    kv_dir: Path | None, config_json: str, tokenizer: Tokenizer | None
) -> SessionFiles:
    """The sessions of one model that are saved in `kv_dir`.

    The model is told apart by its sizes and by what its tokenizer makes of a text. Weights are
    not compared: with others of the same shape, keys and values are computed again.

    Raises:
        RequestError: `kv_dir` is None.
    """
    if kv_dir is None:
        raise RequestError(
            "sessions are saved in kv_dir, and the model was opened without it\n"
            "hint: Llama4(..., kv_dir='kv')"
        )
    shape = read_shape(config_json)
    model = json.dumps(asdict(shape), sort_keys=True)
    if tokenizer is not None:
        model += repr(tokenizer.encode(_PROBE))
    digest = hashlib.sha256(model.encode()).hexdigest()
    return SessionFiles(kv_dir / "sessions", digest, shape.hidden_size)
