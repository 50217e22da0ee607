"""First stage: train the vision tower alone to name shape and colour in every image token.

Three linear heads on the projected tokens (shape, colour, place in the tile) give a dense signal;
they serve training only and are dropped at export.
"""

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cria.config import TEXT, VISION
from cria.images import normalise, split_into_tiles
from cria.model import Cria
from cria.shapes import COLOURS, SHAPES, draw_scene

HEAD_SIZES = (1 + len(SHAPES), 1 + len(COLOURS), VISION.tokens_per_tile)


class SightHeads(nn.Linear):
    """Linear read-out of shape, colour and place from projected image tokens."""

    def __init__(self):
        super().__init__(TEXT.hidden, sum(HEAD_SIZES))

    def loss(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the share of cells with right shape and colour.

        tokens is [tiles, tokens per tile, width], labels is [tiles, tokens per tile, 2].
        """
        shape, colour, place = self(tokens).flatten(0, 1).split(HEAD_SIZES, dim=-1)
        labels = labels.flatten(0, 1)
        places = torch.arange(tokens.shape[1]).repeat(tokens.shape[0])
        loss = functional.cross_entropy(shape, labels[:, 0]) + functional.cross_entropy(
            colour, labels[:, 1]
        )
        loss = loss + 0.3 * functional.cross_entropy(place, places)
        right = (shape.argmax(-1) == labels[:, 0]) & (colour.argmax(-1) == labels[:, 1])
        return loss, right.float().mean()


def vision_batch(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw whole-picture tiles (bytes) and their cell labels."""
    tiles, labels = [], []
    for _ in range(size):
        scene = draw_scene(rng)
        tiles.append(split_into_tiles(scene.image)[0][-1])
        labels.append(scene.cell_labels())
    return np.stack(tiles), np.stack(labels)


def to_pixels(tiles: np.ndarray) -> Tensor:
    """Turn byte tiles into the normalised input of the tower."""
    return torch.from_numpy(normalise(tiles))


def train_vision(
    model: Cria, heads: SightHeads, steps: int, seed: int, report: Callable[[dict], None]
) -> None:
    """Train tower, projector and heads for `steps` batches of 128 pictures."""
    parts = (model.vision_model, model.multi_modal_projector, heads)
    parameters = [p for part in parts for p in part.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, (step + 1) / 50) * 0.5 * (1.02 + math.cos(math.pi * step / steps)),
    )
    start = time.monotonic()
    for step in range(steps):
        tiles, labels = vision_batch(np.random.default_rng((seed, step)), 128)
        loss, right = heads.loss(model.image_features(to_pixels(tiles)), torch.from_numpy(labels))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 25 == 0 or step == steps - 1:
            report(
                {
                    "stage": "vision",
                    "step": step,
                    "seconds": round(time.monotonic() - start, 1),
                    "loss": round(loss.item(), 4),
                    "cells_right": round(right.item(), 4),
                }
            )
