"""Where converted tokenizers are kept, so that each file is converted once."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path

__all__ = ["CacheEntry", "cache_dir"]

logger = logging.getLogger(__name__)

_MAGIC = b"llama4rs-tokenizer"


def cache_dir() -> Path | None:
    """The folder for converted tokenizers: ``$LLAMA4RS_CACHE``, else ``$XDG_CACHE_HOME/llama4rs``,
    else ``~/.cache/llama4rs``. None when there is no home folder either. It may not exist yet."""
    if own := os.environ.get("LLAMA4RS_CACHE"):
        return Path(own)
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and os.path.isabs(xdg):
        return Path(xdg) / "llama4rs"
    try:
        return Path.home() / ".cache" / "llama4rs"
    except RuntimeError:
        return None


class CacheEntry:
    """One converted tokenizer: a header with checksums, then the ``tokenizer.json``.

    Args:
        source: The contents of the file that was converted.
        version: Of the conversion.
    """

    def __init__(self, source: bytes, version: int) -> None:
        self._digest = hashlib.sha256(source).hexdigest()
        self._version = version
        folder = cache_dir()
        name = f"tokenizer-{self._digest[:32]}-v{version}.json"
        self.file: Path | None = folder / name if folder else None

    def header(self, body: bytes) -> bytes:
        """The line before `body`."""
        fields = (str(self._version), self._digest, hashlib.sha256(body).hexdigest())
        return b" ".join((_MAGIC, *(field.encode() for field in fields)))

    def read(self) -> bytes | None:
        """What was kept; None if there is nothing that can be used."""
        if self.file is None:
            return None
        try:
            header, _, body = self.file.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.info("tokenizer cache not read: %s", error)
            return None
        if header != self.header(body):
            logger.info("rebuilding the damaged tokenizer cache %s", self.file)
            return None
        return body

    def write(self, body: bytes) -> None:
        """Keeps `body` if that is possible; the file is there completely or not at all."""
        if self.file is None:
            return
        temporary: str | None = None
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.file.parent, prefix=f".{self.file.name}.")
            with os.fdopen(handle, "wb") as stream:
                stream.write(self.header(body) + b"\n")
                stream.write(body)
            os.replace(temporary, self.file)
            temporary = None
        except OSError as error:
            logger.info("tokenizer cache not written: %s", error)
        finally:
            if temporary is not None:
                try:
                    os.unlink(temporary)
                except OSError:
                    logger.info("left behind: %s", temporary)
