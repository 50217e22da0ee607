"""Conversations to prompts.

:class:`ChatTemplate` turns a list of messages, in the shape that the OpenAI chat API made common,
into the prompt format of Llama 4. It uses the Jinja template of the checkpoint, or the built-in
one.

What users write cannot act as a control token. In every string of the messages, tools and extra
variables, the characters that special token names need are swapped for unused stand-ins before
the template runs, so a special token name found in the result can only be the template's. The
stand-ins are swapped back afterwards, in the plain text between special tokens, and each such
text is encoded in one piece. Ordinary text thus gets the ids it would have without this.

Where the built-in template differs from the published one, it is in cases that the latter handles
badly:

===================================  ============================  ==============================
case                                 published                     built-in
===================================  ============================  ==============================
tools, first message a content list  Python ``repr``, images lost  parts as usual
tools, first message not a user's    rewritten as a user message   tools go to first user message
tools in system message, none given  tools dropped                 a system message is made
empty ``tools`` list                 guidance without functions    as no tools
system message of several parts      first part only               all parts
``tool_calls: []``                   message dropped               as without
content beside tool calls            between the Python marks      before them
content ``None`` beside tool calls   error                         as ``""``
arguments as a JSON string           quoted twice                  as the object they encode
function name with quotes            broken JSON                   escaped
tool result that is a string         quoted as a JSON string       as it is
tool result of text parts            JSON of the parts             their text
===================================  ============================  ==============================

Meta's own reference code also writes string results unquoted. ``quote_tool_results=True`` gives
the published form. An empty ``tools``, lists of text parts, ``tool_calls: []``, content ``None``
and arguments as JSON text come right with a checkpoint's own template too: messages are brought to
one plain form before any template sees them.
"""

from __future__ import annotations

from .messages import image_parts, normalize_messages
from .template import IMAGE_TOKEN, ChatTemplate

__all__ = ["IMAGE_TOKEN", "ChatTemplate", "image_parts", "normalize_messages"]
