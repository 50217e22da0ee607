"""The bytes behind an http(s) URL, within limits of size and time."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from ..errors import ImageError
from .limits import check_num_bytes

__all__ = ["fetch"]

_CHUNK_BYTES = 64 * 1024
# urllib's usual opener would also follow a redirection to ftp.
_HANDLERS = (
    urllib.request.ProxyHandler,
    urllib.request.UnknownHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
)


def fetch(url: str, *, max_bytes: int, timeout_seconds: float) -> bytes:
    """Download a file into memory.

    This reaches whatever this machine reaches, its own network included: call it only for URLs
    whose author may do so.

    Args:
        url: ``http://…`` or ``https://…``; redirections are followed.
        max_bytes: The longest answer to accept.
        timeout_seconds: For connecting, for each silence, and for the answer as a whole.

    Raises:
        ImageError: The URL cannot be fetched within the limits.
    """
    deadline = time.monotonic() + timeout_seconds
    opener = urllib.request.OpenerDirector()
    for handler in _HANDLERS:
        opener.add_handler(handler())
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "llama4rs"})
        with opener.open(request, timeout=timeout_seconds) as response:
            check_num_bytes(int(response.headers.get("Content-Length") or 1), max_bytes)
            return _read(response, max_bytes, deadline)
    except ImageError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise ImageError(
            f"{_shown(url)} answers {error.code} {_first_line(str(error.reason))}"
        ) from error
    except TimeoutError as error:
        raise ImageError(f"{_shown(url)} takes longer than {timeout_seconds:g} s") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(error.reason if isinstance(error, urllib.error.URLError) else error)
        raise ImageError(f"cannot fetch {_shown(url)}: {_first_line(reason)}") from error


def _read(response: http.client.HTTPResponse, max_bytes: int, deadline: float) -> bytes:
    data = bytearray()
    while chunk := response.read1(_CHUNK_BYTES):
        data += chunk
        check_num_bytes(len(data), max_bytes)
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(data)


def _shown(url: str) -> str:
    """The URL without user, query and fragment, where secrets may be."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:200]
    except ValueError:
        return "the URL"


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
