"""Pictures of coloured shapes, and questions about them whose answers need sight."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from cria.config import VISION
from cria.words import NUMBER_WORDS, sentence, with_article

COLOURS = {
    "red": (225, 25, 25),
    "green": (20, 165, 50),
    "blue": (35, 70, 230),
    "yellow": (250, 220, 20),
    "purple": (150, 40, 190),
    "orange": (255, 135, 0),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the centre", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
BACKGROUNDS = ((255, 255, 255), (235, 235, 235), (250, 245, 230), (20, 20, 20), (60, 60, 60))
QUESTION_KINDS = ("colour", "shape", "place", "what", "count", "count_shape", "count_colour")
MAX_SHAPES = 5


@dataclass(frozen=True)
class Thing:
    """One shape; row and column count in thirds of the picture."""

    shape: str
    colour: str
    row: int
    column: int

    @property
    def name(self) -> str:
        """Colour and shape."""
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return PLACES[self.row][self.column]


@dataclass(frozen=True)
class Scene:
    """A rendered picture and what is in it, in reading order."""

    image: Image.Image
    things: tuple[Thing, ...]

    def cell_labels(self) -> np.ndarray:
        """Label each third of the picture with (shape, colour), both 0 where it is empty."""
        labels = np.zeros((9, 2), dtype=np.int64)
        for thing in self.things:
            colour = list(COLOURS).index(thing.colour)
            labels[3 * thing.row + thing.column] = (1 + SHAPES.index(thing.shape), 1 + colour)
        return labels


def _polygon(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Return the corners of a shape around (x, y)."""
    if shape == "square":
        r = 0.86 * radius
        points = [(-r, -r), (r, -r), (r, r), (-r, r)]
    elif shape == "triangle":
        points = [(0, -radius), (0.95 * radius, 0.8 * radius), (-0.95 * radius, 0.8 * radius)]
    elif shape == "cross":
        a, r = 0.3 * radius, radius
        points = [(-a, -r), (a, -r), (a, -a), (r, -a), (r, a), (a, a)]
        points += [(a, r), (-a, r), (-a, a), (-r, a), (-r, -a), (-a, -a)]
    else:
        points = []
        for corner in range(10):
            reach = 1.1 * radius * (1.0 if corner % 2 == 0 else 0.42)
            angle = math.pi * (corner / 5 - 0.5)
            points.append((reach * math.cos(angle), reach * math.sin(angle)))
    return [(x + dx, y + dy) for dx, dy in points]


def _layout(rng: np.random.Generator, tiling: str) -> tuple[int, int, int, int]:
    """Draw (width, height, rows, columns) of a picture for a kind of tiling."""
    side = VISION.tile
    if tiling == "one":
        size = side if rng.random() < 0.5 else int(rng.integers(side * 2 // 3, side))
        cells = int(rng.choice((2, 3)))
        return size, size, cells, cells
    if tiling == "square":
        size = int(rng.integers(side + 1, 2 * side + 1))
        cells = int(rng.choice((2, 3)))
        return size, size, cells, cells
    if tiling == "large":
        size = int(rng.integers(2 * side + 1, 4 * side + 1))
        cells = int(rng.choice((2, 3)))
        return size, size, cells, cells
    cells = int(rng.choice((2, 2, 3)))
    short = int(rng.integers(side * 2 // 3, side + 1))
    long = int(rng.integers(int(1.5 * short), int(2.2 * short) if cells == 2 else 3 * short))
    return (long, short, 1, cells) if tiling == "wide" else (short, long, cells, 1)


def _thirds(index: int, cells: int) -> int:
    """Map a layout row or column to a third of the picture."""
    return {1: (1,), 2: (0, 2), 3: (0, 1, 2)}[cells][index]


def draw_scene(rng: np.random.Generator, multi_tile: float = 0.3) -> Scene:
    """Draw a scene; `multi_tile` is the share of pictures larger than one tile.

    Some scenes have two shapes and two colours only, so that counting is worth asking for.
    """
    tiling = "one"
    if rng.random() < multi_tile:
        tiling = str(rng.choice(("wide", "tall", "square", "large"), p=(0.35, 0.25, 0.32, 0.08)))
    width, height, rows, columns = _layout(rng, tiling)
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    count = int(rng.integers(1, min(MAX_SHAPES, len(cells)) + 1))
    taken = sorted(rng.permutation(len(cells))[:count])
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    image = Image.new("RGB", (width, height), background)
    pen = ImageDraw.Draw(image)
    cell_w, cell_h = width / columns, height / rows
    shapes, colours, things = list(SHAPES), list(COLOURS), []
    if rng.random() < 0.3:
        shapes = [str(s) for s in rng.choice(SHAPES, 2, replace=False)]
        colours = [str(c) for c in rng.choice(colours, 2, replace=False)]
    for index in taken:
        row, column = cells[index]
        shape = shapes[rng.integers(len(shapes))]
        colour = colours[rng.integers(len(colours))]
        jitter = rng.uniform(-0.06, 0.06, size=2)
        x, y = (column + 0.5 + jitter[0]) * cell_w, (row + 0.5 + jitter[1]) * cell_h
        radius = rng.uniform(0.34, 0.44) * min(cell_w, cell_h)
        paint = tuple(int(np.clip(v + rng.integers(-18, 19), 0, 255)) for v in COLOURS[colour])
        if shape == "circle":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=paint)
        else:
            pen.polygon(_polygon(shape, x, y, radius), fill=paint)
        things.append(Thing(shape, colour, _thirds(row, rows), _thirds(column, columns)))
    return Scene(image, tuple(things))


def _counted(number: int, one: str, many: str) -> str:
    """Answer a how-many question."""
    if number == 1:
        return f"There is one {one}."
    return f"There are {NUMBER_WORDS[number]} {many}."


def describe(scene: Scene) -> str:
    """Name every shape and its place in reading order."""
    parts = [f"{with_article(thing.name)} {thing.place}" for thing in scene.things]
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return sentence(text) + "."


def ask(rng: np.random.Generator, scene: Scene, kind: str, which: str = "") -> tuple[str, str]:
    """Return a question of a kind and its answer; `which` names the picture when there are two.

    Kinds that need a unique shape or colour fall back to "what" when the scene has none.
    """
    things = scene.things
    thing = things[rng.integers(len(things))]
    colour_word = "color" if rng.random() < 0.2 else "colour"
    where = f" in the {which} picture" if which else ""
    if kind == "colour":
        unique = [t for t in things if sum(o.shape == t.shape for o in things) == 1]
        if unique:
            thing = unique[rng.integers(len(unique))]
            return (
                f"What {colour_word} is the {thing.shape}{where}?",
                f"The {thing.shape} is {thing.colour}.",
            )
        kind = "what"
    if kind == "shape":
        unique = [t for t in things if sum(o.colour == t.colour for o in things) == 1]
        if unique:
            thing = unique[rng.integers(len(unique))]
            return (
                f"What shape is the {thing.colour} one{where}?",
                f"The {thing.colour} one is {with_article(thing.shape)}.",
            )
        kind = "what"
    if kind == "place":
        unique = [t for t in things if sum(o.name == t.name for o in things) == 1]
        if unique:
            thing = unique[rng.integers(len(unique))]
            return (
                f"Where is the {thing.name}{where}?",
                f"The {thing.name} is {thing.place}.",
            )
        kind = "what"
    if kind == "what":
        return f"What is {thing.place}{where}?", f"{sentence(with_article(thing.name))}."
    if kind == "count":
        return f"How many shapes are there{where}?", _counted(len(things), "shape", "shapes")
    if kind == "count_shape":
        shape = thing.shape if rng.random() < 0.85 else SHAPES[rng.integers(len(SHAPES))]
        number = sum(t.shape == shape for t in things)
        return f"How many {PLURALS[shape]} are there{where}?", _counted(
            number, shape, PLURALS[shape]
        )
    if kind == "count_colour":
        colours = list(COLOURS)
        colour = thing.colour if rng.random() < 0.85 else colours[rng.integers(len(colours))]
        number = sum(t.colour == colour for t in things)
        return f"How many {colour} shapes are there{where}?", _counted(
            number, f"{colour} shape", f"{colour} shapes"
        )
    if kind == "describe":
        name = f"the {which} picture" if which else "the picture"
        return f"Describe {name}.", describe(scene)
    raise ValueError(f"unknown kind of question: {kind}")
