"""What the sessions of the tests are made of."""

from typing import Any

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 6}
BOOK = "Once upon a time there was a little dog who lived in a big house. " * 20
