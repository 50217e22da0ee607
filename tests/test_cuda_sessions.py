"""Named texts on a GPU: going on is the same as never having stopped, in another process, too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import llama4rs
from test_cuda import SIMULATED, device

__all__ = ["device"]

NAMES = ("Mia", "Tom", "Ada", "Hugo", "Lena", "Otto")
BOOK = "Once upon a time there was a house. " + " ".join(
    f"{name} had {count} red balls and gave {count % 3} of them to a friend."
    for count, name in enumerate(NAMES * 3, start=2)
)
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 5, "logprobs": 2}
DRAWN: dict[str, Any] = {"temperature": 1.2, "top_p": 0.95, "seed": 4, "max_tokens": 5}

ELSEWHERE = """
import ctypes, json, sys
if sys.argv[2]:
    ctypes.CDLL(sys.argv[2], mode=ctypes.RTLD_GLOBAL)
import llama4rs
llm = llama4rs.Llama4(device="cuda", kv_dir=sys.argv[1], kv_cache="int8")
options = json.loads(sys.argv[3])
outputs = [llm.session(name).generate("Then ", **options) for name in ("book", "fork")]
print(json.dumps([[o.token_ids, o.logprobs[-1].logprob, o.usage.cached_tokens] for o in outputs]))
"""


def test_a_saved_text_goes_on_in_another_process(tmp_path: Path) -> None:
    options: dict[str, Any] = {"device": "cuda", "kv_cache": "int8"}
    llm = llama4rs.Llama4(kv_dir=tmp_path, **options)
    assert llm.device.startswith("cuda:0")
    book = llm.session("book")
    book.append(BOOK)
    first = book.generate("Mia ", **GREEDY)
    assert first.usage.cached_tokens >= (len(book) - 70) // 64 * 64
    fork = book.fork("fork")
    fork.generate("Tom ", **DRAWN)
    book.save()
    fork.save()
    saved = [list(session.token_ids) for session in (book, fork)]
    here = [session.generate("Then ", **GREEDY) for session in (book, fork)]

    simulated = next((str(path) for path in SIMULATED if path.is_file()), "")
    simulated = simulated if "simulated" in llm.device else ""
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path), simulated, json.dumps(GREEDY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for got, expected, tokens in zip(json.loads(done.stdout), here, saved, strict=True):
        assert expected.logprobs is not None
        assert got[:2] == [list(expected.token_ids), expected.logprobs[-1].logprob]
        # All full pages were found.
        assert got[2] >= len(tokens) // 64 * 64

    # A model that remembers nothing says the same.
    plain = llama4rs.Llama4(prefix_cache_bytes=0, **options)
    ids = saved[1] + llm.tokenizer.encode("Then ")
    again = plain.generate(ids, **GREEDY)
    assert (again.token_ids, again.logprobs) == (here[1].token_ids, here[1].logprobs)
