"""What ``llama4rs demo`` shows: a story, a number far back in a text, a picture, the experts."""

from __future__ import annotations

import functools
import operator
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image
    from rich.console import Console
    from rich.text import Text

    from .llm import Llama4
    from .outputs import Output

__all__ = ["Passkey", "Picture", "draw_picture", "expert_table", "hide_passkey", "run"]

SCOUT = "meta-llama/Llama-4-Scout-17B-16E-Instruct"

_ANIMALS = ("fox", "owl", "bear", "rabbit", "duck", "mouse", "llama", "otter", "hedgehog")
_TRAITS = ("little", "old", "brave", "kind", "clever", "quiet", "friendly")
_PLACES = ("the forest", "the river", "the hill", "the barn", "the garden", "the lake", "the mill")
_THINGS = ("lamp", "kite", "drum", "bell", "book", "hat", "basket", "flute")
_COLOURS = {
    "red": (225, 25, 25),
    "green": (20, 165, 50),
    "blue": (35, 70, 230),
    "yellow": (250, 220, 20),
    "purple": (150, 40, 190),
}
_CORNERS = ("top left", "top right", "bottom left", "bottom right")
_WEATHER = ("sunny", "rainy", "windy", "cold", "warm")


def _filler(rng: random.Random) -> Iterator[str]:
    """Sentences that tell nothing, without end."""
    while True:
        one, two = rng.sample(_ANIMALS, 2)
        trait, place = rng.choice(_TRAITS), rng.choice(_PLACES)
        thing, weather = rng.choice(_THINGS), rng.choice(_WEATHER)
        yield rng.choice(
            (
                f"The {trait} {one} walked to {place}.",
                f"The {one} and the {two} played near {place}.",
                f"It was a {weather} day near {place}.",
                f"There was a {thing} under a tree.",
                f"The {one} looked for the {thing} all day.",
            )
        )


@dataclass(frozen=True)
class Passkey:
    """A message with a five-digit number hidden in it, and a question for the number."""

    number: str
    message: str

    def found_in(self, answer: str) -> bool:
        """Whether an answer names the number."""
        return self.number in answer


def hide_passkey(
    num_tokens: int, count_tokens: Callable[[str], int], *, depth: float = 0.1, seed: int = 0
) -> Passkey:
    """Hides a number in filler text.

    Args:
        num_tokens: Length of the message, about.
        count_tokens: Number of tokens of a text.
        depth: Where the number stands, 0 at the beginning, 1 at the end.
        seed: Another seed, another number and another text.

    Example:
        >>> from llama4rs.demo import hide_passkey
        >>> passkey = hide_passkey(60, lambda text: len(text.split()))
        >>> passkey.message.count(passkey.number), passkey.message[-20:]
        (2, 'What is the passkey?')
    """
    rng = random.Random(seed)
    number = "".join(rng.choice("0123456789") for _ in range(5))
    statement = f"The passkey is {number}. Remember it. {number} is the passkey."
    question = "What is the passkey?"
    room = num_tokens - count_tokens(f"{statement} {question}")
    sentences: list[str] = []
    for sentence in _filler(rng):
        room -= count_tokens(f" {sentence}")
        if room < 0:
            break
        sentences.append(sentence)
    sentences.insert(round(depth * len(sentences)), statement)
    return Passkey(number, " ".join([*sentences, question]))


def run(llm: Llama4, console: Console, *, seed: int = 0, passkey_tokens: int = 1500) -> bool:
    """Shows everything; takes some seconds with the demo model.

    Args:
        llm: The model; the demo model is trained for both tasks.
        console: Where to write.
        seed: Another seed, another story and another number.
        passkey_tokens: Length of the text that the number is hidden in.

    Returns:
        Whether the number was found.
    """
    console.rule("A story", align="left")
    story = _tell_story(llm, console, seed)
    console.rule("A number, far back", align="left")
    answer, found = _find_passkey(llm, console, seed, passkey_tokens)
    outputs = [story, answer]
    if llm.has_vision:
        console.rule("A picture", align="left")
        outputs += _look(llm, console, seed)
    console.rule("Experts at work", align="left")
    console.print("Share of all these tokens that each expert of a layer computed:\n")
    usage = functools.reduce(operator.add, (output.expert_usage for output in outputs))
    console.print(f"{expert_table(usage)}\n", highlight=False)
    console.rule("Next", align="left")
    console.print(
        f"Talk to this tiny model:    llama4rs chat\n"
        f"Talk to Llama 4 Scout:      llama4rs chat {SCOUT} --weights int4\n"
        f"Convert it once, open fast: llama4rs pack {SCOUT} scout-int4",
        highlight=False,
        soft_wrap=True,
    )
    return found


def _tell_story(llm: Llama4, console: Console, seed: int) -> Output:
    prompt = "Once upon a time"
    console.print(prompt, style="dim", end="")
    stream = llm.stream(prompt, max_tokens=250, temperature=0.5, seed=seed)
    for piece in stream:
        console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    output = stream.output
    console.print(
        f"\n\n{output.usage.completion_tokens} tokens, "
        f"{output.decode_tokens_per_second:,.0f} tokens/s on {llm.device}\n",
        style="dim",
        highlight=False,
    )
    return output


def _find_passkey(llm: Llama4, console: Console, seed: int, num_tokens: int) -> tuple[Output, bool]:
    passkey = hide_passkey(num_tokens, lambda text: len(llm.tokenizer.encode(text)), seed=seed)
    start = passkey.message.index("The passkey is")
    before = len(llm.tokenizer.encode(passkey.message[:start]))
    excerpt = passkey.message[max(0, start - 60) : start + 90]
    console.print(f"... {excerpt} ...", style="dim", markup=False, highlight=False)
    console.print("... What is the passkey?\n", style="dim", highlight=False)
    began = time.perf_counter()
    output = llm.chat(passkey.message, max_tokens=32, temperature=0)
    seconds = time.perf_counter() - began
    console.print(output.text, markup=False, highlight=False)
    found = passkey.found_in(output.text)
    distance = output.usage.prompt_tokens - before
    verdict = "right" if found else f"wrong, it is {passkey.number}"
    console.print(
        f"\n{verdict}: {distance} tokens back, read at "
        f"{output.prefill_tokens_per_second:,.0f} tokens/s, {seconds:.2f} s in all\n",
        style="green" if found else "red",
        highlight=False,
    )
    return output, found


def _look(llm: Llama4, console: Console, seed: int) -> list[Output]:
    picture = draw_picture(llm.config.vision_config.image_size, seed=seed)
    if console.color_system is not None:
        console.print(_half_blocks(picture.image))
    outputs = []
    for question, answer in picture.questions:
        output = llm.chat(question, images=[picture.image], max_tokens=64, temperature=0)
        outputs.append(output)
        console.print(question, style="dim", highlight=False)
        console.print(output.text, markup=False, highlight=False)
        right = output.text == answer
        verdict = "right" if right else f"wrong: {answer}"
        console.print(f"{verdict}\n", style="green" if right else "red", highlight=False)
    return outputs


@dataclass(frozen=True)
class Picture:
    """A drawn picture, and questions about it with their answers."""

    image: Image.Image
    questions: tuple[tuple[str, str], ...]


def draw_picture(size: int, *, seed: int = 0) -> Picture:
    """Draws a circle, a square and a triangle in three corners of a white square.

    Args:
        size: Side in pixels.
        seed: Another seed, other colours and other corners.

    Example:
        >>> from llama4rs.demo import draw_picture
        >>> picture = draw_picture(84)
        >>> picture.image.size, picture.questions[-1][0]
        ((84, 84), 'Describe the picture.')
    """
    from PIL import Image, ImageDraw

    rng = random.Random(seed)
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    radius = 0.2 * size
    corners = sorted(rng.sample(range(4), 3))
    colours = rng.sample(sorted(_COLOURS), 3)
    shapes = rng.sample(("circle", "square", "triangle"), 3)
    parts = []
    for corner, colour, shape in zip(corners, colours, shapes, strict=True):
        row, column = divmod(corner, 2)
        centre = ((0.25 + 0.5 * column) * size, (0.25 + 0.5 * row) * size)
        paint = _COLOURS[colour]
        if shape == "circle":
            left, top = (value - radius for value in centre)
            pen.ellipse((left, top, left + 2 * radius, top + 2 * radius), fill=paint)
        elif shape == "square":
            pen.regular_polygon((centre, 1.2 * radius), 4, fill=paint)
        else:
            pen.regular_polygon((centre, 1.1 * radius), 3, fill=paint)
        parts.append(f"a {colour} {shape} at the {_CORNERS[corner]}")
    questions = (
        (f"What shape is the {colours[0]} one?", f"The {colours[0]} one is a {shapes[0]}."),
        (f"What colour is the {shapes[1]}?", f"The {shapes[1]} is {colours[1]}."),
        ("Describe the picture.", f"A{', '.join(parts[:-1])[1:]} and {parts[-1]}."),
    )
    return Picture(image, questions)


def _half_blocks(picture: Image.Image, columns: int = 32) -> Text:
    """The picture in characters, two pixels above each other in each."""
    from rich.text import Text

    small = picture.resize((columns, columns))
    text = Text()
    for y in range(0, columns, 2):
        for x in range(columns):
            above, below = (_hex(small.getpixel((x, y + dy))) for dy in (0, 1))
            text.append("\u2580", style=f"{above} on {below}")
        text.append("\n")
    return text


def _hex(pixel: Any) -> str:
    red, green, blue = pixel
    return f"#{red:02x}{green:02x}{blue:02x}"


def expert_table(usage: npt.NDArray[np.uint64]) -> str:
    """Shares of the experts as text, a line for each layer that has some.

    Args:
        usage: Token counts ``[layers, experts]``.

    Example:
        >>> import numpy as np
        >>> print(expert_table(np.array([[1, 3], [0, 0]])))
        layer     0    1
            0   25%  75%
    """
    shown = min(usage.shape[1], 16)
    lines = ["layer  " + " ".join(f"{expert:4d}" for expert in range(shown))]
    for layer, counts in enumerate(usage):
        total = int(counts.sum())
        if total:
            shares = " ".join(f"{int(count) / total:4.0%}" for count in counts[:shown])
            lines.append(f"{layer:5d}  {shares}")
    if shown < usage.shape[1]:
        lines.append(f"(the first {shown} of {usage.shape[1]} experts)")
    return "\n".join(lines)
