"""Whatever is called an image becomes the RGB picture that a viewer shows."""

from __future__ import annotations

import base64
import http.server
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llama4rs.errors import ImageError
from llama4rs.images import load_image

from .pictures import picture

WIDTH, HEIGHT = 30, 20
PICTURE = picture(WIDTH, HEIGHT, 3)


def encoded(image: Image.Image | npt.NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PNG = encoded(PICTURE, "PNG")
BASE64 = base64.b64encode(PNG).decode()


def loaded(source: Any, **options: Any) -> npt.NDArray[np.uint8]:
    image = load_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


# ---------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize(
    "source",
    [
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        Image.fromarray(PICTURE),
        PICTURE,
        np.asfortranarray(PICTURE),
        f"data:image/png;base64,{BASE64}",
        f"DATA:;base64,{BASE64.rstrip('=')}",
        f"data:image/png;base64,{quote(BASE64)}",
        "data:image/png;base64,\n" + "\n".join(BASE64[i : i + 76] for i in range(0, 9999, 76)),
        "data:image/png," + quote(PNG),
    ],
    ids=lambda source: f"{type(source).__name__} {str(source)[:22] if type(source) is str else ''}",
)
def test_sources(source: Any) -> None:
    assert np.array_equal(loaded(source), PICTURE)


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "Bild öäü.dat"
    path.write_bytes(PNG)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (path, str(path), f"~/{path.name}"):
        assert np.array_equal(loaded(source), PICTURE)


def test_result_is_a_copy() -> None:
    image, array = Image.fromarray(PICTURE), PICTURE.copy()
    from_image, from_array = load_image(image), load_image(array)
    image.putpixel((0, 0), (1, 2, 3))
    array[:] = 7
    assert np.array_equal(np.asarray(from_image), PICTURE)
    assert np.array_equal(np.asarray(from_array), PICTURE)


def test_grey_and_alpha_arrays() -> None:
    grey = PICTURE[:, :, 0]
    assert np.array_equal(loaded(grey), np.stack([grey] * 3, axis=2))
    rgba = np.dstack([PICTURE, np.where(grey > 99, 255, 0).astype(np.uint8)])
    assert np.array_equal(loaded(rgba), np.where(grey[:, :, None] > 99, PICTURE, 255))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "type NoneType"),
        (12, "type int"),
        ([PNG], "type list"),
        (PICTURE.astype(np.float32) / 255, "float32.*uint8"),
        (PICTURE.astype(np.int64), "int64.*uint8"),
        (PICTURE.transpose(2, 0, 1), r"\[3, 20, 30\].*\[height, width, 3\]"),
        (PICTURE[None], r"\[1, 20, 30, 3\]"),
        (PICTURE[:, :, :2], r"\[20, 30, 2\]"),
        (PICTURE[:0], "nothing to see"),
        (PICTURE[:, :0], "nothing to see"),
        (np.array(3, dtype=np.uint8), r"shape \[\]"),
        (Image.new("RGB", (0, 5)), "nothing to see"),
        (b"", "empty"),
        (b"hello", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        ("", "cannot read image ''"),
        ("no/such/file.png", "no/such/file.png.*No such file"),
        ("nul\0byte", "cannot read image"),
        ("x" * 5000, "x…'.*too long"),
        (Path("."), "not a regular file"),
        ("file:///etc/passwd", "file URLs are not supported"),
        ("ftp://host/a.png", "ftp URLs are not supported"),
        ("http://localhost/a.png", "allow_urls"),
        ("HTTPS://localhost/a.png", "allow_urls"),
        ("data:image/png;base64", "without a comma"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,???", "damaged base64"),
        ("data:text/plain,hello", "not an image"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else type(value).__name__,
)
def test_unusable_sources(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=f"(?s){message}"):
        load_image(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "an empty file is not an image"),
        (b"text", "not an image, or one with a damaged start"),
        (PNG[:100], "a damaged"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{str(path)!r}: {problem}")


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ImageError, match="not a regular file"):
            load_image(path)


def test_limits(tmp_path: Path) -> None:
    (path := tmp_path / "a.png").write_bytes(PNG)
    for source in (PNG, path, Image.fromarray(PICTURE), PICTURE, f"data:;base64,{BASE64}"):
        assert load_image(source, max_pixels=600).size == (WIDTH, HEIGHT)
        with pytest.raises(ImageError, match="30 x 20 pixels is over the limit of 599 pixels"):
            load_image(source, max_pixels=599)
    for source in (PNG, path, f"data:;base64,{BASE64}"):
        assert load_image(source, max_bytes=len(PNG)).size == (WIDTH, HEIGHT)
        with pytest.raises(ImageError, match=f"more than {len(PNG) - 1} bytes"):
            load_image(source, max_bytes=len(PNG) - 1)
    with pytest.raises(ImageError, match="65535 a side"):
        load_image(Image.new("L", (65_536, 1)))


# ------------------------------------------------------------------------------------ conversions


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_formats(kind: str) -> None:
    flat = Image.new("RGB", (WIDTH, HEIGHT), (200, 100, 40))
    difference = loaded(encoded(flat, kind)).astype(int) - np.asarray(flat)
    assert np.abs(difference).max() <= (0 if kind in ("BMP", "PNG", "PPM", "TIFF", "GIF") else 4)


# What a camera stores for a scene when it is held in each of the eight ways.
STORED = {
    1: PICTURE,
    2: PICTURE[:, ::-1],
    3: PICTURE[::-1, ::-1],
    4: PICTURE[::-1],
    5: PICTURE.transpose(1, 0, 2),
    6: PICTURE.transpose(1, 0, 2)[::-1],
    7: PICTURE.transpose(1, 0, 2)[::-1, ::-1],
    8: PICTURE.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    stored = np.ascontiguousarray(STORED[orientation])
    data = encoded(stored, kind, exif=exif, **options)
    assert np.array_equal(loaded(data), PICTURE)
    assert np.array_equal(loaded(Image.open(io.BytesIO(data))), PICTURE)


def test_damaged_exif_is_passed_over() -> None:
    data = encoded(PICTURE, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(9))
    assert np.array_equal(loaded(data), PICTURE)


def test_transparency_turns_white() -> None:
    rgba = np.dstack([PICTURE, np.full((HEIGHT, WIDTH), 128, dtype=np.uint8)])
    expected = (PICTURE * 128.0 + 255 * 127.0) / 255
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert np.abs(loaded(encoded(rgba, kind, **options)) - expected).max() <= 1


def test_transparent_colours_turn_white() -> None:
    image = Image.new("RGB", (4, 4), (10, 20, 30))
    image.putpixel((1, 1), (40, 50, 60))
    pixels = loaded(encoded(image, "PNG", transparency=(10, 20, 30)))
    assert pixels[1, 1].tolist() == [40, 50, 60] and pixels[0, 0].tolist() == [255] * 3
    palette = image.quantize(2)
    clear = palette.getpixel((0, 0))
    for kind in ("PNG", "GIF"):
        pixels = loaded(encoded(palette, kind, transparency=clear))
        assert pixels[1, 1].tolist() == [40, 50, 60] and pixels[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_high_byte(kind: str) -> None:
    levels = np.arange(0, 65_536, 109, dtype=np.uint16)[:600].reshape(HEIGHT, WIDTH)
    pixels = loaded(encoded(Image.fromarray(levels), kind))
    assert np.array_equal(pixels[:, :, 0], levels >> 8)
    assert np.array_equal(pixels[:, :, 0], pixels[:, :, 2])


def test_images_without_a_range() -> None:
    for image, message in (
        (Image.new("F", (3, 3), 0.5), "floating point"),
        (Image.new("I", (3, 3), 70_000), "32-bit"),
        (Image.new("I", (3, 3), -1), "32-bit"),
    ):
        for source in (image, encoded(image, "TIFF")):
            with pytest.raises(ImageError, match=message):
                load_image(source)
    assert loaded(Image.new("I", (3, 3), 65_535)).min() == 255


def test_cmyk_jpeg() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(loaded(encoded(image, "JPEG")).astype(int) - [255, 0, 0]).max() < 6


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (loaded(data) == [255, 0, 0]).all()


def test_a_pil_image_keeps_its_frame() -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "lime")]
    image = Image.open(
        io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    )
    image.seek(1)
    assert (loaded(image) == [0, 255, 0]).all()


@given(st.integers(1, 3000), st.integers(1, 600), st.sampled_from(["L", "RGBA", "CMYK", "I;16"]))
@settings(deadline=None, max_examples=60)
def test_strips_leave_no_seams(width: int, height: int, mode: str) -> None:
    image = Image.new(mode, (width, height), 0x7F7F if mode == "I;16" else (127,) * len(mode))
    pixels = loaded(image)
    assert pixels.shape == (height, width, 3)
    assert (pixels == pixels[0, 0]).all() and pixels[0, 0, 0] > 0


def test_pillow_keeps_its_settings() -> None:
    from PIL import ImageFile

    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    load_image(PNG)
    for data in (b"", PNG[:50], PNG[:-40]):
        with pytest.raises(ImageError):
            load_image(data)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_pillow_is_imported_late() -> None:
    code = "import sys, llama4rs; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ------------------------------------------------------------------------------------------- URLs


class Site(http.server.BaseHTTPRequestHandler):
    """A site with one picture and many faults."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/to/"):
            self.answer(302, b"", Location=path[4:])
        elif path == "/endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(bytes(100_000))
        elif path == "/slow":
            self.send_response(200)
            self.end_headers()
            for byte in PNG[:30]:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        elif path == "/silent":
            time.sleep(0.8)
        elif path == "/huge":
            self.answer(200, b"", length=10**12)
        elif path == "/short":
            self.answer(200, PNG[:99], length=len(PNG))
        elif path == "/a.png":
            self.answer(200, PNG)
        else:
            self.answer(404, b"<html>")

    def answer(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is what some tests are about."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        with Server(("127.0.0.1", 0), Site) as server:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()


def test_urls(site: str) -> None:
    for path in ("/a.png", "/a.png?size=large", "/to//a.png"):
        assert np.array_equal(loaded(site + path, allow_urls=True), PICTURE)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/b.png?key=secret", "/b.png answers 404 Not Found"),
        ("/endless", "more than 1000000 bytes"),
        ("/huge", "more than 1000000 bytes"),
        ("/short", "damaged or incomplete PNG|IncompleteRead"),
        ("/slow", "takes longer than 0.3 s"),
        ("/silent", "takes longer than 0.3 s|timed out"),
        ("/to/file:///etc/passwd", "cannot fetch|answers 302"),
        ("/to/ftp://127.0.0.1/a.png", "cannot fetch|answers 302"),
        ("/to//to//to//to/x", "answers 302"),
    ],
)
def test_unusable_urls(site: str, path: str, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        load_image(site + path, allow_urls=True, max_bytes=1_000_000, timeout_seconds=0.3)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://", "http://[", "http://a b/", "http://127.0.0.1:1/a"])
def test_impossible_urls(url: str) -> None:
    with pytest.raises(ImageError, match="cannot fetch"):
        load_image(url, allow_urls=True, timeout_seconds=0.5)
