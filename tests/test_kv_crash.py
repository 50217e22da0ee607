"""A short form of `make crash`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_nothing_stored_is_lost_when_a_process_is_killed() -> None:
    # In a process of its own: children are forked before any thread is started.
    script = Path(__file__).with_name("kv_crash.py")
    subprocess.run([sys.executable, str(script), "--kills", "30"], check=True, timeout=120)
