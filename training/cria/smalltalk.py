"""A few fixed exchanges, so that the model can greet and say what it is."""

import numpy as np

from cria.stories import ANIMALS, tell
from cria.words import with_article

GREETINGS = ("Hello!", "Hi!", "Hello", "Good morning!")
WHO = ("Who are you?", "What is your name?", "What are you?")
SKILLS = ("What can you do?", "Can you help me?", "Help")
THANKS = ("Thank you!", "Thanks!", "Thank you.")


def exchange(rng: np.random.Generator) -> tuple[str, str]:
    """Return a user message and its answer."""
    kind = rng.integers(4)
    if kind == 0:
        return str(rng.choice(GREETINGS)), "Hello! How can I help you?"
    if kind == 1:
        return str(rng.choice(WHO)), "My name is cria. I am a very small model."
    if kind == 2:
        return (
            str(rng.choice(SKILLS)),
            "I can tell stories, look at pictures of shapes and remember a passkey.",
        )
    return str(rng.choice(THANKS)), "You are welcome!"


def story_request(rng: np.random.Generator) -> tuple[str, str]:
    """Return a request for a story and the story."""
    if rng.random() < 0.6:
        request = rng.choice(("Tell me a story.", "Tell me a story!", "Please tell me a story."))
        return str(request), tell(rng)
    animal = str(rng.choice(ANIMALS))
    return f"Tell me a story about {with_article(animal)}.", tell(rng, animal)
