"""Images for Llama 4: from what a user has to tiles, and to the tokens that stand for them.

>>> import numpy as np
>>> from llama4rs import images
>>> picture = images.load_image(np.zeros((512, 512, 3), dtype=np.uint8))  # or a path, bytes, …
>>> tiles = images.preprocess(picture)
>>> tiles.shape
(5, 3, 336, 336)
>>> images.plan_image(*picture.size).num_tokens  # without looking at a pixel
727

Sources: sections on vision and prompts of Meta's ``llama_models/llama4`` and transformers'
``models/llama4``. Importing this package imports Pillow.
"""

from __future__ import annotations

from .canvas import Canvas, plan_canvas
from .config import ImageConfig
from .limits import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS
from .normalize import Flavour, normalize
from .pixels import preprocess
from .plan import ImagePlan, plan_image
from .sources import ImageSource, load_image
from .tokens import (
    ImageTokens,
    check_patches,
    check_places,
    expand_placeholders,
    image_prompt_tokens,
)

__all__ = [
    "DEFAULT_MAX_BYTES",
    "DEFAULT_MAX_PIXELS",
    "Canvas",
    "Flavour",
    "ImageConfig",
    "ImagePlan",
    "ImageSource",
    "ImageTokens",
    "check_patches",
    "check_places",
    "expand_placeholders",
    "image_prompt_tokens",
    "load_image",
    "normalize",
    "plan_canvas",
    "plan_image",
    "preprocess",
]
