"""Images through the public API: places in prompts, exact logits, the cache, the command line."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import weakref
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chain_model import (
    BOS,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    PATCH,
    SCRIPT,
    TILE_X,
    TILE_Y,
    VOCAB,
    byte_tokenizer_json,
    make_chain_model,
)
from conftest import MakeCheckpoint
from oracle.answers import load_answers
from oracle.checkpoint import make_checkpoint, weights
from oracle.comparison import assert_agrees
from oracle.configs import MULTIMODAL
from oracle.llama4_vision_numpy import multimodal_forward
from oracle.prompts import IMAGE_PROMPTS, image_prompts

pytest.importorskip("llama4rs._llama4rs", reason="the compiled core is not built")

from typer.testing import CliRunner

import llama4rs
from images.pictures import picture
from llama4rs import CheckpointNotFoundError, ImageError, Llama4, RequestError, TokenizerError
from llama4rs.cli.app import app
from llama4rs.image_cache import ImageCache
from llama4rs.images import (
    ImageConfig,
    ImageTokens,
    expand_placeholders,
    normalize,
    plan_image,
    preprocess,
)

TILE = 56
TOKENS_PER_TILE = 4
FEATURE_BYTES = TOKENS_PER_TILE * 64 * 4
"""Of an image of one tile: tokens, hidden size, float32."""
IDS = ImageTokens(
    image_start=IMAGE_START,
    image_end=IMAGE_END,
    tile_x_separator=TILE_X,
    tile_y_separator=TILE_Y,
    image=IMAGE,
    patch=PATCH,
)
CONFIG = ImageConfig(tile_size=TILE)
ONE_TILE = (IMAGE_START, IMAGE, PATCH, PATCH, PATCH, PATCH, IMAGE_END)
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 3}

MIXED_SIZES = [(56, 56), (112, 56), (30, 20), (57, 200), (300, 40), (112, 112), (90, 90), (1, 1)]
"""Width and height; with and without resizing, 1 to 7 tiles."""

Pixels = npt.NDArray[np.uint8]


def grey(level: int, width: int = TILE, height: int = TILE) -> Pixels:
    return np.full((height, width, 3), level, dtype=np.uint8)


def png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def data_url(pixels: Pixels) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def image_part(source: object) -> dict[str, object]:
    return {"type": "image", "image": source}


def text_part(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes `SCRIPT` whatever it sees; what it expects after a patch of an image
    depends on that image only."""
    return make_chain_model(tmp_path_factory.mktemp("seeing"), vision=True)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Llama4:
    return Llama4(folder, threads=1)


@pytest.fixture
def fresh(folder: Path) -> Llama4:
    """With an empty cache."""
    return Llama4(folder, threads=1)


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Llama4:
    return Llama4(make_chain_model(tmp_path_factory.mktemp("blind")), threads=1)


@pytest.fixture(scope="module")
def cria() -> Llama4:
    try:
        return Llama4(threads=1)
    except CheckpointNotFoundError as error:
        pytest.skip(str(error).splitlines()[0])


# --------------------------------------------------------------------------- equal to transformers


@pytest.mark.parametrize("prompt", IMAGE_PROMPTS)
@pytest.mark.parametrize("name", MULTIMODAL)
def test_logits_of_expanded_ids_equal_transformers(
    checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, name: str, prompt: str
) -> None:
    """The stored answers are for noise that no file can hold: it is put in place of each image's
    normalised tiles. There is no tokenizer, the ids are expanded already."""
    ids, pixels = image_prompts(MULTIMODAL[name])[prompt]
    size = MULTIMODAL[name]["vision_config"]["image_size"]
    tiles_per_image = IMAGE_PROMPTS[prompt]
    noise = iter(np.split(pixels, np.cumsum(tiles_per_image)[:-1]))
    monkeypatch.setattr("llama4rs.images.normalize", lambda tiles, config: next(noise))
    shapes = {1: (size, size), 3: (2 * size, size), 5: (2 * size, 2 * size)}
    pictures = [grey(i, *shapes[tiles]) for i, tiles in enumerate(tiles_per_image)]

    llm = Llama4(checkpoint(name), weights="f32", threads=1)
    logits = llm.logits(ids, images=pictures)
    expected = load_answers()[f"{name}/{prompt}/logits"]
    assert_agrees(logits, expected, f"{name}/{prompt}", tolerance=1e-3)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Random weights and a tokenizer: everything in the prompt matters."""
    whole = MULTIMODAL["vision_tiny_56"]
    ids = {"boi_token_index": IMAGE_START, "eoi_token_index": IMAGE_END}
    config = whole | ids | {"image_token_index": PATCH}
    config["text_config"] = whole["text_config"] | {"vocab_size": VOCAB, "bos_token_id": BOS}
    folder = make_checkpoint(tmp_path_factory.mktemp("random") / "checkpoint", config, 5)
    (folder / "tokenizer.json").write_text(byte_tokenizer_json())
    return folder, config


@pytest.mark.parametrize("count", [1, 3, 8])
def test_logits_of_pictures_equal_the_oracle(
    random_model: tuple[Path, dict[str, Any]], count: int
) -> None:
    """The numpy models stand for transformers, with which they agree (`oracle`)."""
    folder, config = random_model
    pictures = [picture(*size, seed=i) for i, size in enumerate(MIXED_SIZES[:count])]
    prompt = "See " + " and ".join(["<|image|>"] * count) + ": what?"
    logits = Llama4(folder, weights="f32", threads=1).logits(prompt, images=pictures)

    ids = [BOS]
    for index, words in enumerate(["See ", *[" and "] * (count - 1), ": what?"]):
        ids += words.encode()
        if index < count:
            ids.append(IMAGE)
    plans = [plan_image(*size, CONFIG) for size in MIXED_SIZES[:count]]
    tiles = [preprocess(Image.fromarray(shown), CONFIG) for shown in pictures]
    pixels = normalize(np.concatenate(tiles), CONFIG)
    expanded = expand_placeholders(ids, plans, IDS)
    expected = multimodal_forward(config, weights(config, 5), expanded, pixels).logits
    assert_agrees(logits, expected, f"{count} pictures", tolerance=1e-3)


@pytest.mark.parametrize("step_tokens", [1, 5, 16])
def test_steps_may_end_inside_an_image(
    random_model: tuple[Path, dict[str, Any]], step_tokens: int
) -> None:
    folder, _ = random_model
    pictures = [picture(*size, seed=i) for i, size in enumerate(MIXED_SIZES[:3])]
    prompt = "a<|image|>bc<|image|>d<|image|>"
    whole, pieces = (
        Llama4(folder, weights="f32", threads=1, step_tokens=step) for step in (None, step_tokens)
    )
    expected = whole.logits(prompt, images=pictures)
    np.testing.assert_array_equal(pieces.logits(prompt, images=pictures), expected)
    answers = [
        llm.generate(prompt, images=pictures, temperature=0, max_tokens=9)
        for llm in (whole, pieces)
    ]
    assert answers[0].token_ids == answers[1].token_ids


def test_requests_side_by_side_see_their_own_pictures(
    random_model: tuple[Path, dict[str, Any]],
) -> None:
    llm = Llama4(random_model[0], weights="f32", threads=1)
    prompts = ["a<|image|>b", "<|image|><|image|>", "no picture"]
    pictures = [[picture(56, 56)], [picture(112, 56, seed=1), picture(9, 9, seed=2)], []]
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
    together = llm.generate(prompts, images=pictures, **options)
    for prompt, shown, output in zip(prompts, pictures, together, strict=True):
        alone = llm.generate(prompt, images=shown, **options)
        assert (output.token_ids, output.prompt_token_ids) == (
            alone.token_ids,
            alone.prompt_token_ids,
        )


# ---------------------------------------------------------------------------------- raw prompts


def test_images_come_first_without_a_mark(llm: Llama4) -> None:
    assert llm.has_vision
    output = llm.generate("a\n", images=[grey(9)], temperature=0)
    assert output.prompt_token_ids == (BOS, *ONE_TILE, *b"a\n")
    assert output.text == SCRIPT
    two = llm.generate("<|begin_of_text|>a", images=[grey(9), grey(8)], **GREEDY)
    assert two.prompt_token_ids == (BOS, *ONE_TILE, *ONE_TILE, ord("a"))


def test_marks_are_the_places(llm: Llama4) -> None:
    output = llm.generate("a<|image|>b<|image|>", images=[grey(9), grey(8, 112)], **GREEDY)
    tile = (PATCH,) * TOKENS_PER_TILE
    wide = (IMAGE_START, *tile, TILE_X, *tile, TILE_Y, IMAGE, *tile, IMAGE_END)
    assert output.prompt_token_ids == (BOS, ord("a"), *ONE_TILE, ord("b"), *wide)
    assert output.usage.prompt_tokens == len(output.prompt_token_ids)


def test_marks_may_be_mere_text(llm: Llama4) -> None:
    output = llm.generate("<|image|>", images=[grey(9)], parse_special=False, **GREEDY)
    assert output.prompt_token_ids == (BOS, *ONE_TILE, *b"<|image|>")
    assert IMAGE not in llm.generate("<|image|>", parse_special=False, **GREEDY).prompt_token_ids


def test_token_ids_have_places_or_are_expanded(llm: Llama4) -> None:
    short = llm.generate([BOS, IMAGE, 10], images=[grey(9)], **GREEDY)
    assert short.prompt_token_ids == (BOS, *ONE_TILE, 10)
    again = llm.generate(short.prompt_token_ids, images=[grey(9)], **GREEDY)
    assert (again.prompt_token_ids, again.text) == (short.prompt_token_ids, short.text)
    one = llm.logits([BOS, IMAGE, 10], images=[grey(9)])
    np.testing.assert_array_equal(llm.logits([BOS, *ONE_TILE, 10], images=[grey(9)]), one)
    np.testing.assert_array_equal(llm.logits("\n", images=[grey(9)]), one)


def test_batches_take_lists_of_lists(llm: Llama4) -> None:
    prompts = ["a", "b<|image|>", "c"]
    shown = [[grey(9), grey(8)], (grey(7),), None]
    outputs = llm.generate(prompts, images=shown, **GREEDY)
    assert [output.prompt_token_ids for output in outputs] == [
        (BOS, *ONE_TILE, *ONE_TILE, ord("a")),
        (BOS, ord("b"), *ONE_TILE),
        (BOS, ord("c")),
    ]
    assert llm.generate([], images=[]) == []


def test_streams(llm: Llama4) -> None:
    assert "".join(llm.stream("\n", images=[grey(9)], temperature=0)) == SCRIPT
    assert "".join(llm.chat_stream("a", images=[grey(9)], temperature=0)) == SCRIPT

    async def read() -> str:
        stream = llm.astream("\n", images=[grey(9)], temperature=0)
        return "".join([piece async for piece in stream])

    assert asyncio.run(read()) == SCRIPT


# --------------------------------------------------------------------------------- conversations


def test_images_of_a_chat_come_before_the_text(llm: Llama4) -> None:
    short = llm.chat("what?", images=[grey(9), grey(8)], **GREEDY)
    parts = [image_part(grey(9)), image_part(grey(8)), text_part("what?")]
    whole = llm.chat([{"role": "user", "content": parts}], **GREEDY)
    assert short.prompt_token_ids == whole.prompt_token_ids
    ids = short.prompt_token_ids
    start = ids.index(IMAGE_START)
    assert ids[start : start + 19] == (*ONE_TILE, *ONE_TILE, *b"what?")


def test_names_of_image_tokens_in_messages_are_text(llm: Llama4) -> None:
    output = llm.chat("<|image|><|patch|>", images=[grey(9)], **GREEDY)
    assert (output.prompt_token_ids.count(IMAGE), output.prompt_token_ids.count(PATCH)) == (1, 4)
    assert IMAGE not in llm.chat("<|image|>", **GREEDY).prompt_token_ids


def test_every_kind_of_source_is_the_same_picture(fresh: Llama4, tmp_path: Path) -> None:
    pixels = picture(80, 70)
    file = tmp_path / "cat.png"
    file.write_bytes(png(pixels))
    sources = [str(file), file, png(pixels), Image.fromarray(pixels), pixels, data_url(pixels)]
    parts = [
        *map(image_part, sources),
        {"type": "image", "path": str(file)},
        {"type": "image", "url": data_url(pixels)},
        {"type": "image_url", "image_url": {"url": data_url(pixels), "detail": "high"}},
        {"type": "image_url", "image_url": data_url(pixels)},
    ]
    for source in sources:
        fresh.generate("a", images=[source], **GREEDY)
    fresh.chat([{"role": "user", "content": parts}], **GREEDY)
    assert (fresh.image_cache.misses, len(fresh.image_cache)) == (1, 1)
    assert fresh.image_cache.hits == len(sources) - 1 + len(parts)


@pytest.mark.parametrize("scheme", ["", "file://", "FILE://", "ftp://", "./", " data:,"])
def test_an_image_url_never_names_a_file(llm: Llama4, tmp_path: Path, scheme: str) -> None:
    file = tmp_path / "cat.png"
    file.write_bytes(png(grey(9)))
    for url in (f"{scheme}{file}", file):
        for part in ({"url": url}, url):
            messages = [{"role": "user", "content": [{"type": "image_url", "image_url": part}]}]
            with pytest.raises(ImageError, match="an image_url takes a data or http"):
                llm.chat(messages)
    assert llm.chat([{"role": "user", "content": [image_part(file)]}], **GREEDY).token_ids


@pytest.fixture
def site() -> Iterator[str]:
    """The address of a server with one picture."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = png(grey(9))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/cat.png"
        server.shutdown()
        thread.join()


def test_the_network_is_opt_in(folder: Path, llm: Llama4, site: str) -> None:
    part = {"type": "image_url", "image_url": {"url": site}}
    messages = [{"role": "user", "content": [part, text_part("what?")]}]
    with pytest.raises(ImageError, match="allow_image_urls=True"):
        llm.chat(messages)
    with pytest.raises(ImageError, match="network is off"):
        llm.generate("a", images=[site.upper()])
    bold = Llama4(folder, threads=1, allow_image_urls=True)
    assert bold.chat(messages, **GREEDY).prompt_token_ids.count(PATCH) == 4


# ------------------------------------------------------------------------------------- properties

SOURCES = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(MIXED_SIZES)), max_size=3)
RELAXED = settings(deadline=None, max_examples=60)


@given(SOURCES, st.lists(st.sampled_from(["a", "bc", "<|image|>"]), max_size=6))
@RELAXED
def test_places_and_images(
    llm: Llama4, sources: list[tuple[int, tuple[int, int]]], pieces: list[str]
) -> None:
    """Any number of images at any places: the tokens are those of the reference, each image's
    features stand at its own patches, and other counts are errors."""
    pictures = [grey(80 * level, *size) for level, size in sources]
    text = "".join(pieces)
    num_places = pieces.count("<|image|>")
    if num_places != len(sources) and (num_places or not sources):
        with pytest.raises(ImageError, match="image"):
            llm.logits(text, images=pictures)
        return
    ids = [BOS] + ([] if num_places else [IMAGE] * len(sources))
    for piece in pieces:
        ids += [IMAGE] if piece == "<|image|>" else piece.encode()
    expanded = expand_placeholders(ids, [plan_image(*size, CONFIG) for _, size in sources], IDS)
    assert llm.generate(text, images=pictures, max_tokens=1).prompt_token_ids == tuple(expanded)

    logits = llm.logits(text, images=pictures)
    at_patches = logits[np.array(expanded) == PATCH]
    alone = [llm.logits([IMAGE], images=[shown]) for shown in pictures]
    marks = [
        np.array(expand_placeholders([IMAGE], [plan_image(*size, CONFIG)], IDS)) == PATCH
        for _, size in sources
    ]
    expected = [rows[mark] for rows, mark in zip(alone, marks, strict=True)]
    if expected:
        np.testing.assert_allclose(at_patches, np.concatenate(expected), atol=1e-4)


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("prompt", "num_images", "words"),
    [
        ("<|image|>", 2, r"2 images for 1 <\|image\|> placeholder"),
        ("<|image|><|image|>", 1, r"1 image for 2 <\|image\|> placeholders"),
        ("<|image|>", 0, "no images"),
        ("<|patch|>", 0, "no images"),
        ([BOS, 10], 1, r"1 image for 0 <\|image\|> placeholders"),
        ([IMAGE], 0, "no images"),
        ([BOS, *ONE_TILE], 2, r"2 images with 8 vision tokens for 4 <\|patch\|>"),
        ([PATCH], 1, r"1 image with 4 vision tokens for 1 <\|patch\|>"),
    ],
)
def test_counts_must_agree(llm: Llama4, prompt: Any, num_images: int, words: str) -> None:
    misses = llm.image_cache.misses
    shown = [grey(200 + i) for i in range(num_images)]
    for ask in (llm.generate, llm.stream, llm.logits):
        with pytest.raises(ImageError, match=words):
            ask(prompt, images=shown)
    assert llm.image_cache.misses == misses, "encoded for nothing"


def test_a_bad_image_is_named_and_nothing_is_encoded(fresh: Llama4) -> None:
    with pytest.raises(ImageError, match=r"^not an image"):
        fresh.chat("what?", images=[b"no image"])
    with pytest.raises(ImageError, match=r"image 2 of 2: cannot read image 'nowhere\.png'"):
        fresh.chat("what?", images=[grey(9), "nowhere.png"])
    assert fresh.image_cache.misses == 0


@pytest.mark.parametrize("images", ["cat.png", Path("cat.png"), b"png", grey(9), 5])
def test_one_image_is_no_list(llm: Llama4, images: Any) -> None:
    with pytest.raises(TypeError, match=r"write \[image\]"):
        llm.generate("a", images=images)
    with pytest.raises(TypeError, match=r"write \[image\]"):
        llm.chat("a", images=images)
    with pytest.raises(TypeError, match="for each prompt"):
        llm.generate(["a", "b"], images=images)


def test_images_of_batches_and_conversations(llm: Llama4) -> None:
    with pytest.raises(ImageError, match="1 lists of images for 2 prompts"):
        llm.generate(["a", "b"], images=[[grey(9)]])
    with pytest.raises(TypeError, match="for each prompt"):
        llm.generate(["a"], images=[grey(9)])
    talk = [{"role": "user", "content": "hi"}]
    with pytest.raises(TypeError, match="into its messages"):
        llm.chat(talk, images=[grey(9)])
    with pytest.raises(TypeError, match="into its messages"):
        llm.generate([talk], images=[[grey(9)]])
    with pytest.raises(ImageError, match="image part without an image"):
        llm.chat([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])


def test_text_only_models_say_so(blind: Llama4) -> None:
    assert not blind.has_vision
    for ask in (
        lambda: blind.generate("a", images=[grey(9)]),
        lambda: blind.chat("a", images=["nowhere.png"]),
        lambda: blind.logits([1], images=[grey(9)]),
        lambda: blind.plan_image(20, 20),
    ):
        with pytest.raises(RequestError, match="reads no images: it has no vision part"):
            ask()
    assert blind.generate("<|image|>", **GREEDY).prompt_token_ids == (BOS, IMAGE)
    assert blind.image_cache.misses == 0


def test_without_a_tokenizer_only_expanded_ids_work(
    tmp_path: Path, llm: Llama4, folder: Path
) -> None:
    silent = Llama4(make_chain_model(tmp_path, vision=True, tokenizer=False), threads=1)
    expected = llm.logits([BOS, IMAGE], images=[grey(9)])
    np.testing.assert_array_equal(silent.logits([BOS, *ONE_TILE], images=[grey(9)]), expected)
    with pytest.raises(TokenizerError, match=rf"ids of <\|image\|>.*\nhint: .* {PATCH} for every"):
        silent.logits([BOS, IMAGE], images=[grey(9)])
    assert silent.plan_image(56, 56).num_tokens == len(ONE_TILE)
    helped = Llama4(silent.path, threads=1, tokenizer=folder)
    np.testing.assert_array_equal(helped.logits([BOS, IMAGE], images=[grey(9)]), expected)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    make_chain_model(tmp_path, vision=True)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace("<|patch|>", "<|grid|>"))
    with pytest.raises(TokenizerError, match=r"it has no <\|patch\|>"):
        Llama4(tmp_path, threads=1).generate("a", images=[grey(9)])
    swapped = file.read_text().replace("<|image_end|>", "<|patch|>")
    file.write_text(swapped.replace("<|grid|>", "<|image_end|>"))
    with pytest.raises(TokenizerError, match="not of the same model"):
        Llama4(tmp_path, threads=1).generate("a", images=[grey(9)])


def test_too_long_before_anything_is_encoded(folder: Path) -> None:
    small = Llama4(folder, threads=1, max_context=40)
    assert small.generate("a", images=[grey(9)] * 4, **GREEDY).usage.prompt_tokens == 30
    with pytest.raises(RequestError, match="first 6 of 7 images the prompt has 45 tokens"):
        small.generate("a", images=[grey(i) for i in range(7)])
    with pytest.raises(RequestError, match="with its image the prompt has"):
        small.generate("a", images=[picture(224, 224)])
    assert small.image_cache.misses == 1


def test_plan(llm: Llama4) -> None:
    plan = llm.plan_image(112, 56)
    assert (plan.num_tiles, plan.num_tokens, plan.num_patch_tokens) == (3, 17, 12)
    for width, height in MIXED_SIZES:
        output = llm.generate("", images=[picture(width, height)], max_tokens=1)
        assert output.usage.prompt_tokens == 1 + llm.plan_image(width, height).num_tokens
    with pytest.raises(ImageError):
        llm.plan_image(0, 5)


# ------------------------------------------------------------------------------------------ cache


def test_a_follow_up_does_not_encode_again(fresh: Llama4) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [image_part(picture(112, 112)), text_part("what?")]}
    ]
    for turn in range(3):
        messages.append(fresh.chat(messages, **GREEDY).message)
        messages.append({"role": "user", "content": "and?"})
        assert (fresh.image_cache.misses, fresh.image_cache.hits) == (1, turn)
    assert fresh.image_cache.bytes == 5 * FEATURE_BYTES
    changed = picture(112, 112)
    changed[5, 5, 0] ^= 1
    fresh.chat("what?", images=[changed], **GREEDY)
    assert fresh.image_cache.misses == 2


def test_the_cache_changes_no_logits(folder: Path) -> None:
    shown = [picture(112, 56), grey(3), picture(112, 56)]
    keeping, forgetting = Llama4(folder), Llama4(folder, image_cache_bytes=0)
    first = keeping.logits("abc", images=shown)
    for llm in (keeping, forgetting):
        np.testing.assert_array_equal(llm.logits("abc", images=shown), first)
    assert (keeping.image_cache.misses, keeping.image_cache.hits) == (2, 4)
    assert (forgetting.image_cache.misses, forgetting.image_cache.bytes) == (3, 0)


def test_the_cache_is_bounded(folder: Path) -> None:
    llm = Llama4(folder, threads=1, image_cache_bytes=2 * FEATURE_BYTES)
    cache = llm.image_cache

    def show(*levels: int) -> tuple[int, int]:
        before = cache.hits, cache.misses
        for level in levels:
            llm.generate("a", images=[grey(level)], max_tokens=1)
        return cache.hits - before[0], cache.misses - before[1]

    assert show(1, 2, 1) == (1, 2)
    assert show(3) == (0, 1)  # 2 was seen longest ago
    assert show(1) == (1, 0)
    assert show(2) == (0, 1)
    assert (len(cache), cache.bytes) == (2, 2 * FEATURE_BYTES)
    llm.generate("a", images=[picture(112, 112)], max_tokens=1)  # larger than the cache
    assert (len(cache), cache.bytes) == (2, 2 * FEATURE_BYTES)
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)
    assert "max_bytes=2048" in repr(cache)


@pytest.mark.parametrize("size", [-1, 1.5, True, "many"])
def test_cache_sizes_are_checked(size: Any) -> None:
    with pytest.raises(RequestError, match="image_cache_bytes"):
        ImageCache(size)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), max_size=40), st.integers(0, 60))
@RELAXED
def test_cache_against_a_plain_list(shown: list[tuple[int, int]], max_bytes: int) -> None:
    cache = ImageCache(max_bytes)
    model: list[tuple[bytes, int]] = []  # latest last
    for key, length in shown:
        name = f"{key} {length}".encode()
        found = cache.find(name)
        assert (found is not None) == (name in [kept for kept, _ in model])
        if found is None:
            cache.keep(name, np.zeros(length, np.float32))
        model = [entry for entry in model if entry[0] != name]
        if found is not None or 4 * length <= max_bytes:
            model.append((name, 4 * length))
        while sum(size for _, size in model) > max_bytes:
            model.pop(0)
        assert cache.bytes == sum(size for _, size in model) <= max_bytes
        assert len(cache) == len(model)
    assert cache.hits + cache.misses == len(shown)


def test_threads_share_the_cache(folder: Path) -> None:
    llm = Llama4(folder, threads=1, image_cache_bytes=3 * FEATURE_BYTES)
    expected = [llm.logits([IMAGE], images=[grey(40 * i)]) for i in range(5)]
    wrong: list[int] = []

    def work(start: int) -> None:
        for step in range(20):
            index = (start + step) % 5
            logits = llm.logits([IMAGE], images=[grey(40 * index)])
            if not np.array_equal(logits, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    cache = llm.image_cache
    assert cache.hits + cache.misses == 5 + 6 * 20
    assert (len(cache), cache.bytes) == (3, 3 * FEATURE_BYTES)


def test_decoded_pictures_are_let_go(llm: Llama4, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many images a prompt has, one of them is decoded at a time."""
    from llama4rs.images import load_image

    decoded: list[weakref.ref[Image.Image]] = []

    def watched(source: Any, **options: Any) -> Image.Image:
        assert [reference() for reference in decoded] == [None] * len(decoded)
        loaded = load_image(source, **options)
        decoded.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr("llama4rs.images.load_image", watched)
    llm.generate("a", images=[png(picture(60, 60, seed=i)) for i in range(12)], max_tokens=1)
    assert len(decoded) == 12


# ----------------------------------------------------------------------------------- command line


def run(*arguments: str, stdin: str | None = None) -> str:
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "cat.png"
    path.write_bytes(png(picture(112, 56)))
    return str(path)


def test_generate_command(folder: Path, file: str) -> None:
    options = ("-m", str(folder), "-t", "0", "--threads", "1", "--image", file)
    assert run("generate", "what?", *options) == SCRIPT + "\n"
    assert run("generate", "what?", *options, "--image", file) == SCRIPT + "\n"
    assert run("generate", "<|image|>a", *options) == SCRIPT[1:] + "\n"  # raw
    blank = CliRunner().invoke(app, ["generate", "x", *options, "--image", "nowhere.png"])
    assert blank.exit_code == 1
    assert blank.stderr.startswith("error: image 2 of 2: cannot read image")


def test_chat_command(folder: Path, file: str) -> None:
    options = (str(folder), "-t", "0", "--threads", "1")
    talk = f"what?\n/image {file}\nand this?\n/image nowhere.png\n"
    assert run("chat", *options, "--image", file, "--image", file, stdin=talk) == 2 * f"{SCRIPT}\n"
    result = CliRunner().invoke(app, ["chat", *options, "--json"], input=f"/image {file}\nwhat?\n")
    assert f"{IMAGE_START}, {PATCH}" in result.stdout.replace("\n", " ")
    missing = CliRunner().invoke(app, ["chat", *options, "--image", "nowhere.png"], input="a\n")
    assert (missing.exit_code, missing.stdout) == (1, "")


def test_text_only_models_on_the_command_line(blind: Llama4, file: str) -> None:
    result = CliRunner().invoke(app, ["chat", str(blind.path)], input=f"/image {file}\nhi\n")
    assert result.exit_code == 0
    assert "reads no images" in result.stderr


def test_info_command(folder: Path, blind: Llama4) -> None:
    shown = run("info", str(folder))
    assert "56 x 56 pixels" in shown
    assert "tokens per tile" in shown
    assert "tokens per tile" not in run("info", str(blind.path))


# ------------------------------------------------------------------------------------------- cria


def test_cria_answers_about_pictures(cria: Llama4, tmp_path: Path) -> None:
    from llama4rs.demo import draw_picture

    drawn = draw_picture(84).image
    file = tmp_path / "shapes.png"
    drawn.save(file)
    hits = cria.image_cache.hits
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": [image_part(file), text_part("How many shapes are there?")]}
    ]
    answer = cria.chat(talk, temperature=0, max_tokens=40)
    assert answer.finish_reason == "stop"
    assert answer.text.startswith("There ")
    talk += [answer.message, {"role": "user", "content": "Describe the picture."}]
    follow_up = cria.chat(talk, temperature=0, max_tokens=80)
    assert any(shape in follow_up.text for shape in ("circle", "square", "triangle"))
    assert cria.image_cache.hits == hits + 1
    other = cria.chat("How many shapes are there?", images=[drawn], temperature=0, max_tokens=40)
    assert (other.text, other.prompt_token_ids) == (answer.text, answer.prompt_token_ids)


def test_cria_takes_raw_prompts_and_token_ids(cria: Llama4, tmp_path: Path) -> None:
    file = tmp_path / "cat.png"
    file.write_bytes(png(picture(200, 100)))
    output = llama4rs.generate("What is in this picture?", images=[file], **GREEDY)
    plan = cria.plan_image(200, 100)
    assert (plan.num_tiles, plan.num_tokens) == (7, 7 * 9 + 6 + 3)
    text = cria.tokenizer.encode("What is in this picture?")
    assert output.usage.prompt_tokens == 1 + plan.num_tokens + len(text)
    expanded = cria.logits(output.prompt_token_ids, images=[file])
    np.testing.assert_array_equal(expanded, cria.logits("What is in this picture?", images=[file]))


def test_cria_in_small_steps(cria: Llama4) -> None:
    shown = [picture(100, 60, seed=i) for i in range(3)]
    prompt = "a <|image|> b <|image|><|image|>"
    small = Llama4(threads=1, step_tokens=7)
    assert small.generate(prompt, images=shown, **GREEDY).token_ids == (
        cria.generate(prompt, images=shown, **GREEDY).token_ids
    )
    expected = cria.logits(prompt, images=shown)
    np.testing.assert_array_equal(small.logits(prompt, images=shown), expected)
