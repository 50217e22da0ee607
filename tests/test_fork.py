"""Processes that fork with a model open."""

from __future__ import annotations

import subprocess
import sys

import pytest

IDLE = """
import os, sys, llama4rs
llm = llama4rs.Llama4(threads=3)
expected = llm.generate("Once", max_tokens=3, temperature=0).token_ids
child = os.fork()
if child == 0:
    sys.exit(llm.generate("Once", max_tokens=3, temperature=0).token_ids != expected)
assert os.waitpid(child, 0)[1] == 0
"""

BUSY = """
import os, signal, threading, llama4rs
llm = llama4rs.Llama4(threads=2)
stream = llm.stream("Once", max_tokens=8000, temperature=0, ignore_eos=True)
next(stream)
thread = threading.Thread(target=lambda: "".join(stream))
thread.start()
# A step is computed almost always, but not always.
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            llm.generate("Once", max_tokens=1)
        except RuntimeError as error:
            os._exit(7 if "forked" in str(error) else 1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 7), code
    if code == 7:
        break
stream.close()
thread.join()
assert code == 7
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others do not fork")
@pytest.mark.parametrize("program", [IDLE, BUSY], ids=["idle", "busy"])
def test_a_forked_process_computes_or_says_why_not(program: str) -> None:
    options = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(options, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
