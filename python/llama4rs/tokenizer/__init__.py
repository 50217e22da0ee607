"""Text to token ids and back, for Llama 4 tokenizers.

Two file formats are read:

* ``tokenizer.json``, the format of the ``tokenizers`` library. Any byte-level BPE works, whatever
  its size and wherever its special tokens sit.
* ``tokenizer.model``, Meta's text format: one ``base64(token bytes) rank`` pair per line. It is
  converted to the first kind once and the result is kept in the user's cache folder.

The rule that everything else here follows: **text is text**. A user who types ``<|eot|>`` gets the
ordinary tokens of those seven characters. Only ``parse_special=True``, or the chat template's own
output (see :mod:`llama4rs.chat_template`), turns such a string into a control token.
"""

from __future__ import annotations

from .cache import cache_dir
from .tokenizer import StreamDecoder, Tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "cache_dir"]
