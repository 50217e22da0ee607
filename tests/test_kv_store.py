"""Keys and values on disk: the same bits as never having stopped, whatever happens to the files."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import llama4rs
from kv_texts import CHUNK, CONFIG, PAGE, VOCAB, Reference, ask, tokens
from llama4rs._llama4rs import Engine, kv_list, kv_prune, kv_verify
from llama4rs.planning.memory import kv_bytes
from llama4rs.planning.sources import model_sizes
from oracle.checkpoint import make_checkpoint
from oracle.configs import MULTIMODAL
from oracle.prompts import image_prompts

FORMATS = ["f32", "bf16", "int8", "int4"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("model")
    make_checkpoint(directory, CONFIG, 5)
    return str(directory)


@pytest.fixture
def kv_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "kv"


def open_engine(path: str, kv_dir: Path, **options: Any) -> Engine:
    options = {"weights": "f32", "threads": 1} | options
    return Engine(path, kv_dir=kv_dir, **options)


def segments(kv_dir: Path) -> list[Path]:
    return sorted(kv_dir.glob("*.kv"))


# --------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("kv_read", ["map", "copy"])
@pytest.mark.parametrize("kv_cache", FORMATS)
def test_a_later_process_goes_on_with_the_same_bits(
    path: str, kv_dir: Path, kv_cache: str, kv_read: str
) -> None:
    reference = Reference(path, weights="f32", kv_cache=kv_cache)
    for length in [63, 64, 65, 200, 256, 257, 510, 700]:
        ids = tokens("ab", length)
        # Steps of another size each time: pages do not depend on how a prompt was cut.
        engine = open_engine(path, kv_dir, kv_cache=kv_cache, kv_read=kv_read, step_tokens=length)
        answer, cached = ask(engine, ids)
        assert answer == reference.ask(ids)
        again = open_engine(path, kv_dir, kv_cache=kv_cache, kv_read=kv_read, step_tokens=50)
        answer, cached = ask(again, ids)
        assert answer == reference.ask(ids)
        assert cached == (length - 1) // PAGE * PAGE
    assert kv_verify(kv_dir)["problems"] == []


class StoredTexts(RuleBasedStateMachine):
    """Any order of requests, forks, restarts, evictions and damage."""

    path: str
    references: dict[str, Reference]

    @initialize(
        kv_cache=st.sampled_from(FORMATS),
        kv_read=st.sampled_from(["map", "copy"]),
        budget=st.sampled_from([None, None, 700_000]),
    )
    def start(self, kv_cache: str, kv_read: str, budget: int | None) -> None:
        self.folder = tempfile.mkdtemp()
        self.kv_dir = Path(self.folder) / "kv"
        self.budget = budget
        self.options: dict[str, Any] = {"kv_cache": kv_cache, "kv_read": kv_read}
        self.reference = self.references[kv_cache]
        self.texts = [tokens("a", 10)]
        # What a restart must find: nothing was evicted or damaged since.
        self.stored: list[list[int]] = []
        self.open(1 << 30)

    def open(self, prefix_cache_bytes: int) -> None:
        options = self.options | {"prefix_cache_bytes": prefix_cache_bytes}
        self.engine = open_engine(self.path, self.kv_dir, kv_budget=self.budget, **options)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @rule(data=st.data(), letter=st.sampled_from("ab"), more=st.integers(1, 300))
    def append(self, data: st.DataObject, letter: str, more: int) -> None:
        at = data.draw(st.integers(0, len(self.texts) - 1))
        text = self.texts[at]
        text = [*text, *tokens(letter, len(text) + more)[len(text) :]][:900]
        self.texts[at] = text
        ask(self.engine, text, max_tokens=0)
        self.stored.append(text)

    @rule(data=st.data(), count=st.integers(1, 3))
    def generate(self, data: st.DataObject, count: int) -> None:
        text = data.draw(st.sampled_from(self.texts))
        answer, cached = ask(self.engine, text, count)
        assert answer == self.reference.ask(text, count)
        assert cached % PAGE == 0 and cached < len(text)

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        text = data.draw(st.sampled_from(self.texts))
        length = data.draw(st.integers(1, len(text)))
        self.texts = [*self.texts[-3:], text[:length]]

    @rule(prefix_cache_bytes=st.sampled_from([0, 100_000, 1 << 30]))
    def restart(self, prefix_cache_bytes: int) -> None:
        self.open(prefix_cache_bytes)
        if self.stored and self.budget is None:
            text = self.stored[-1]
            _, cached = ask(self.engine, text, 1)
            assert cached == (len(text) - 1) // PAGE * PAGE

    @rule(budget=st.integers(0, 1_000_000))
    def evict(self, budget: int) -> None:
        kv_prune(self.kv_dir, budget_bytes=budget)
        self.stored = []

    @precondition(lambda self: segments(self.kv_dir))
    @rule(data=st.data(), cut=st.booleans())
    def damage(self, data: st.DataObject, cut: bool) -> None:
        file = data.draw(st.sampled_from(segments(self.kv_dir)))
        content = bytearray(file.read_bytes())
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        if content:  # an earlier cut may have left nothing
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        # A new file: what is mapped never changes in place.
        file.unlink()
        file.write_bytes(content[:at] if cut else content)
        self.stored = []

    @invariant()
    def keeps_its_budget(self) -> None:
        if getattr(self, "budget", None) is not None:
            assert sum(file.stat().st_size for file in segments(self.kv_dir)) <= self.budget


def test_any_history_gives_the_same_bits(path: str) -> None:
    StoredTexts.path = path
    StoredTexts.references = {
        kv_cache: Reference(path, weights="f32", kv_cache=kv_cache) for kv_cache in FORMATS
    }
    case: Any = StoredTexts.TestCase
    case.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)
    case().runTest()


def test_images_are_found_by_their_content(checkpoint: Any, kv_dir: Path) -> None:
    name = "vision_tiny_56"
    ids, pixels = image_prompts(MULTIMODAL[name])["three_images"]
    ids = [1] * (2 * PAGE) + ids + [2] * (2 * PAGE)
    path = str(checkpoint(name))

    def answer(pixels: Any) -> int:
        engine = open_engine(path, kv_dir)
        request = engine.submit(ids, max_tokens=1, image_features=engine.encode_image(pixels))
        while request.next() is not None:
            pass
        return request.usage["cached_tokens"]

    pixels = pixels.astype("float32")
    assert answer(pixels) == 0
    assert answer(pixels) > 3 * PAGE
    assert answer(-pixels) == 2 * PAGE


# --------------------------------------------------------------------------- who may share


def test_what_pages_depend_on_keeps_them_apart(path: str, kv_dir: Path, tmp_path: Path) -> None:
    other_weights, other_config = tmp_path / "weights", tmp_path / "config"
    make_checkpoint(other_weights, CONFIG, 6)
    make_checkpoint(other_config, CONFIG | {"rms_norm_eps": 1e-3}, 5)
    packed = tmp_path / "packed"
    llama4rs.pack(path, packed, weights="int8/g32")
    ids = tokens("a", 300)
    openings: list[tuple[str, dict[str, Any]]] = [
        (path, {}),
        (str(other_weights), {}),
        (str(other_config), {}),
        (path, {"kv_cache": "bf16"}),
        (path, {"kv_cache": "int8"}),
        (path, {"weights": "int8/g32"}),
        (path, {"weights": "int8/g32", "arithmetic": "exact"}),
        (path, {"weights": "bf16"}),
        (path, {"weights": "bf16", "policy": [("*.self_attn.*", "f32")]}),
        (str(packed), {"weights": "int8/g32"}),
    ]
    for model, options in openings:
        assert ask(open_engine(model, kv_dir, **options), ids)[1] == 0, (model, options)
    for model, options in openings:
        assert ask(open_engine(model, kv_dir, **options), ids)[1] == 256, (model, options)
    assert len({file["fingerprint"] for file in kv_list(kv_dir)}) == len(openings)
    # What pages do not depend on does not matter.
    engine = open_engine(path, kv_dir, threads=2, step_tokens=7, max_context=400)
    assert ask(engine, ids)[1] == 256


def test_two_writers_a_reader_and_an_eviction_at_once(path: str, kv_dir: Path) -> None:
    reference = Reference(path, weights="f32")
    texts = [tokens(branches, 150 * n) for branches in ("ab", "aab", "ba") for n in (1, 3, 5)]
    for text in texts:
        reference.ask(text)
    wrong: list[Any] = []
    done = threading.Event()

    def use(seed: int) -> None:
        shuffled = random.Random(seed)
        for _ in range(3):
            engine = open_engine(path, kv_dir, kv_read=("map", "copy")[seed % 2])
            for text in shuffled.sample(texts, len(texts)):
                answer, _ = ask(engine, text)
                if answer != reference.ask(text):
                    wrong.append(text)

    def evict() -> None:
        while not done.wait(0.02):
            kv_prune(kv_dir, budget_bytes=600_000)

    kv_dir.mkdir()
    users = [threading.Thread(target=use, args=(seed,)) for seed in range(3)]
    evicting = threading.Thread(target=evict)
    for thread in [evicting, *users]:
        thread.start()
    for thread in users:
        thread.join()
    done.set()
    evicting.join()
    assert wrong == []
    assert kv_verify(kv_dir)["problems"] == []


# --------------------------------------------------------------------------- memory and budget


def test_mapped_pages_take_no_memory(path: str, kv_dir: Path) -> None:
    engine = open_engine(path, kv_dir, kv_read="map")
    ids = tokens("abc", 64 * 20)
    ask(engine, ids)
    assert engine.kv_bytes_in_use() == 0
    answer, cached = ask(engine, [*ids, 1, 2, 3])
    assert cached == len(ids)
    assert answer == Reference(path, weights="f32").ask([*ids, 1, 2, 3])
    copying = open_engine(path, kv_dir, kv_read="copy")
    ask(copying, ids)
    assert copying.kv_bytes_in_use() > 0


@pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK - 70])
def test_the_same_prompt_again_computes_a_page_at_most(
    path: str, kv_dir: Path, length: int
) -> None:
    """Also where the answer has gone on beyond the end of the prompt's chunk."""
    reference, ids = Reference(path, weights="f32"), tokens("a", length)
    for max_tokens in (2, 100):
        engine = open_engine(path, kv_dir / str(max_tokens), prefix_cache_bytes=0)
        in_memory = Engine(path, weights="f32", threads=1)
        expected = reference.ask(ids, max_tokens)
        assert ask(engine, ids, max_tokens) == (expected, 0)
        assert ask(in_memory, ids, max_tokens) == (expected, 0)
        later = open_engine(path, kv_dir / str(max_tokens), kv_read="copy", prefix_cache_bytes=0)
        for again in (engine, in_memory, later):
            for _ in range(2):
                answer, cached = ask(again, ids, max_tokens)
                assert answer == expected
                assert length - cached <= PAGE


def system_bytes_read() -> int:
    """What this process has read from files so far, as the system counts."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(":") for line in lines)["rchar"])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs /proc")
@pytest.mark.parametrize("prefix_cache_bytes", [0, 1 << 30])
@pytest.mark.parametrize("kv_cache", FORMATS)
def test_no_byte_is_read_that_the_next_token_does_not_need(
    path: str, kv_dir: Path, kv_cache: str, prefix_cache_bytes: int
) -> None:
    """The pages of the global layers, and those of the chunked layers in the current chunk."""
    options = {"kv_cache": kv_cache, "prefix_cache_bytes": prefix_cache_bytes}
    sizes = model_sizes(path, "f32", ()).shape
    for known in (2 * CHUNK, 2 * CHUNK + PAGE, 3 * CHUNK - PAGE):
        ids = tokens("a", known)
        ask(open_engine(path, kv_dir, **options), ids, max_tokens=0)
        chunked, codes = (kv_bytes(sizes, n, kv_cache) for n in (known % CHUNK, known))
        needed = chunked["chunked"] + codes["global"]
        for kv_read, other in (("map", "b"), ("copy", "c")):
            engine = open_engine(path, kv_dir, kv_read=kv_read, **options)
            # Its first pages are known, the rest is not.
            request = engine.submit([*ids, *tokens(other, 200)], max_tokens=2)
            before = system_bytes_read()
            request.next()
            read = system_bytes_read() - before
            counted = engine.kv_bytes_read()
            assert counted is not None
            assert request.usage["cached_tokens"] == known
            assert counted["pages"] == needed
            assert 0 <= read - sum(counted.values()) < 4096


def test_a_text_may_be_longer_than_memory(path: str, kv_dir: Path) -> None:
    ids = tokens("abcd", 2 * 8192 + 300)
    memory = 8_000_000
    in_memory = Engine(path, weights="f32", threads=1)
    in_memory.set_kv_memory(memory)
    with pytest.raises(llama4rs.OutOfMemoryError):
        in_memory.submit(ids, max_tokens=1)

    engine = open_engine(path, kv_dir)
    engine.set_kv_memory(memory)
    request = engine.submit(ids, max_tokens=2, logprobs=VOCAB)
    answer = []
    halfway = kv_dir.with_name("halfway")
    while (event := request.next()) is not None:
        assert engine.kv_bytes_in_use() <= memory
        if event.token_id is not None:
            assert event.logprob is not None and event.top_logprobs is not None
            answer.append((event.token_id, event.logprob, tuple(event.top_logprobs)))
        elif segments(kv_dir) and not halfway.exists():
            # What is there if the process ends now.
            assert event.prefilled < 8192 + 512
            shutil.copytree(kv_dir, halfway)
    later = open_engine(path, halfway)
    later.set_kv_memory(memory)
    assert ask(later, ids) == (answer, 8192)
    assert ask(later, ids) == (answer, len(ids) // PAGE * PAGE)


def test_a_conversation_has_few_files(path: str, kv_dir: Path) -> None:
    for length in range(50, 900, 50):
        ask(open_engine(path, kv_dir), tokens("ab", length), max_tokens=0)
    stored = kv_list(kv_dir)
    for layers, most in [("global", 4), ("chunked", 4 * 3)]:
        files = [file for file in stored if file["layers"] == layers]
        assert sum(file["tokens"] for file in files) <= 850 // PAGE * PAGE
        assert 0 < len(files) <= most
    week = 7 * 24 * 3600
    left = [file for file in stored if file["used"] < time.time() - week / 2]
    assert {(file["layers"], file["start"] // CHUNK) for file in left} == {
        ("chunked", chunk) for chunk in range(850 // CHUNK)
    }


def test_the_last_turn_can_be_taken_back(path: str, kv_dir: Path) -> None:
    ask(open_engine(path, kv_dir), tokens("a", CHUNK - 20), max_tokens=0)
    ask(open_engine(path, kv_dir), tokens("a", CHUNK + 100), max_tokens=0)
    ids = [*tokens("a", CHUNK - 20), 1, 2, 3]
    answer, cached = ask(open_engine(path, kv_dir), ids)
    assert cached == (CHUNK - 20) // PAGE * PAGE
    assert answer == Reference(path, weights="f32").ask(ids)


def test_files_are_private(path: str, kv_dir: Path) -> None:
    ask(open_engine(path, kv_dir), tokens("a", 100))
    assert stat.S_IMODE(kv_dir.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in segments(kv_dir)} == {0o400}


# --------------------------------------------------------------------------- what goes wrong


def test_a_directory_that_is_gone_is_told_once_and_costs_nothing(path: str, kv_dir: Path) -> None:
    engine = open_engine(path, kv_dir)
    reference = Reference(path, weights="f32")
    kv_dir.rename(kv_dir.with_name("elsewhere"))
    kv_dir.write_text("in the way")
    with pytest.warns(RuntimeWarning, match="kept in memory only") as told:
        for branches in ("a", "b", "c"):
            assert ask(engine, tokens(branches, 200))[0] == reference.ask(tokens(branches, 200))
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kv_dir.unlink()
        kv_dir.with_name("elsewhere").rename(kv_dir)
        answer, cached = ask(engine, tokens("b", 200))
    assert (answer, cached) == (reference.ask(tokens("b", 200)), 192), "pages stayed in memory"
    assert ask(open_engine(path, kv_dir), tokens("b", 200))[1] == 192, "and are stored now"


FULL_DISK = """
import resource, sys, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from kv_texts import Reference, ask, tokens
from llama4rs._llama4rs import Engine

path, kv_dir = sys.argv[1], Path(sys.argv[2])
options = {"weights": "f32", "threads": 1}
reference = Reference(path, weights="f32")
engine = Engine(path, kv_dir=kv_dir, **options)
ask(engine, tokens("a", 130))
before = sorted(kv_dir.iterdir())
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for length in (500, 600):
        ids = tokens("a", length)
        assert ask(engine, ids)[0] == reference.ask(ids)
assert len(told) == 1 and "File too large" in str(told[0].message), told
assert sorted(kv_dir.iterdir()) == before, "nothing half-made is left"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert ask(engine, ids)[1] == 576
assert ask(Engine(path, kv_dir=kv_dir, **options), ids)[1] == 576
"""


def test_a_disk_that_is_full_costs_nothing_but_the_files(path: str, kv_dir: Path) -> None:
    arguments = [path, str(kv_dir), str(Path(__file__).parent)]
    subprocess.run([sys.executable, "-c", FULL_DISK, *arguments], check=True, timeout=60)


FULL_DISK_LONG_TEXT = """
import resource, sys, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from kv_texts import ask, tokens
from llama4rs import OutOfMemoryError
from llama4rs._llama4rs import Engine

path, kv_dir = sys.argv[1], Path(sys.argv[2])
ids = tokens("ab", 8192 + 2500)
engine = Engine(path, weights="f32", threads=1, kv_dir=kv_dir)
for memory in range(1_000_000, 10_000_000, 50_000):
    engine.set_kv_memory(memory)
    try:
        engine.submit(ids, max_tokens=1)
    except OutOfMemoryError:
        continue
    break
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
warnings.simplefilter("ignore")
for _ in range(2):
    try:
        ask(engine, ids, 1)
        raise SystemExit(f"{memory} bytes are enough without the disk")
    except OutOfMemoryError as error:
        message = str(error)
    for part in ("longer than kv_memory", "File too large", "ulimit -f", "put the disk right"):
        assert part in message, message
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert len(ask(engine, ids, 1)[0]) == 1
"""


def test_a_disk_that_fails_under_a_text_longer_than_memory_is_told(path: str, kv_dir: Path) -> None:
    arguments = [path, str(kv_dir), str(Path(__file__).parent)]
    subprocess.run([sys.executable, "-c", FULL_DISK_LONG_TEXT, *arguments], check=True, timeout=120)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_directory_that_cannot_be_written_is_read(path: str, kv_dir: Path) -> None:
    ids = tokens("a", 300)
    ask(open_engine(path, kv_dir), ids)
    kv_dir.chmod(0o500)
    try:
        engine = open_engine(path, kv_dir)
        assert ask(engine, ids)[1] == 256
        with pytest.warns(RuntimeWarning, match="kept in memory only"):
            ask(engine, tokens("b", 300))
    finally:
        kv_dir.chmod(0o700)


def test_options_that_make_no_sense_are_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(llama4rs.RequestError, match="set kv_dir"):
        llama4rs.Llama4(path, weights="f32", kv_budget="1GB")
    with pytest.raises(llama4rs.RequestError, match='"map" or "copy"'):
        llama4rs.Llama4(path, weights="f32", kv_dir=tmp_path, kv_read="often")
    with pytest.raises(llama4rs.RequestError, match="kv_budget"):
        llama4rs.Llama4(path, weights="f32", kv_dir=tmp_path, kv_budget="some")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="make the directory"):
        llama4rs.Llama4(path, weights="f32", kv_dir=tmp_path / "file")


# --------------------------------------------------------------------------- looking after it


def test_list_verify_and_prune(path: str, kv_dir: Path) -> None:
    engine = open_engine(path, kv_dir)
    for branches in ("a", "b"):
        ask(engine, tokens(branches, 200))
    stored = kv_list(kv_dir)
    assert len(stored) == 4
    assert {file["layers"] for file in stored} == {"global", "chunked"}
    assert all(file["tokens"] == 192 and file["problem"] is None for file in stored)
    assert sum(file["bytes"] for file in stored) == sum(f.stat().st_size for f in segments(kv_dir))

    told: list[Any] = []
    report = kv_verify(kv_dir, progress=lambda *state: told.append(state))
    assert (report["files"], report["pages"], report["problems"]) == (4, 12, [])
    assert told and told[-1][2] == report["bytes"]

    bad = segments(kv_dir)[0]
    content = bytearray(bad.read_bytes())
    content[70_000] ^= 1
    bad.unlink()
    bad.write_bytes(content)
    [(file, problem)] = kv_verify(kv_dir)["problems"]
    assert file == bad.name and "checksum of page 0" in problem
    assert kv_prune(kv_dir, damaged=True)["files"] == 0, "pages are not read for that"
    bad.write_bytes(content[:1000])
    assert kv_prune(kv_dir, damaged=True) == {"files": 1, "bytes": 1000}
    assert kv_prune(kv_dir, older_than=3600)["files"] == 0
    assert kv_prune(kv_dir, files=[segments(kv_dir)[0].name])["files"] == 1
    assert kv_prune(kv_dir, fingerprints=[stored[0]["fingerprint"]])["files"] == 2
    assert kv_list(kv_dir) == []
    assert kv_prune(kv_dir, budget_bytes=0) == {"files": 0, "bytes": 0}


# --------------------------------------------------------------------------- limits of the system


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_files_over_the_budget_do_not_stay_mapped(path: str, kv_dir: Path) -> None:
    engine = open_engine(path, kv_dir)
    ask(engine, tokens("a", 2 * PAGE))
    size = sum(file.stat().st_size for file in segments(kv_dir))
    engine = open_engine(path, kv_dir, kv_budget=4 * size)
    for number in range(40):
        ask(engine, [number, *tokens("a", 2 * PAGE)])
    maps = Path("/proc/self/maps").read_text().splitlines()
    removed = [line for line in maps if str(kv_dir) in line and line.endswith("(deleted)")]
    # Those of the budget, and what the last request gave up.
    assert len(removed) <= 2 * 4 + 4, len(removed)
