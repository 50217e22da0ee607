"""Short stories from a small grammar: a hero, a friend, a thing, a place and a simple plot."""

from dataclasses import dataclass

import numpy as np

from cria.words import sentence, with_article

NAMES = {
    "she": ("Ruby", "Lily", "Mia", "Nora", "Ella", "Rosa", "Anna", "Zoe"),
    "he": ("Max", "Tom", "Ben", "Leo", "Sam", "Oscar", "Finn", "Hugo"),
}
ANIMALS = (
    "fox", "owl", "bear", "rabbit", "duck", "mouse", "cat", "dog", "frog", "goat", "elephant",
    "otter", "llama", "horse", "squirrel", "hedgehog",
)  # fmt: skip
TRAITS = ("little", "old", "brave", "kind", "clever", "young", "quiet", "friendly", "shy", "honest")
THINGS = (
    "lamp", "kite", "ball", "drum", "bell", "book", "hat", "umbrella", "key", "boat", "basket",
    "orange scarf", "red coat", "map", "flute", "apple",
)  # fmt: skip
PLACES = (
    "the forest", "the river", "the hill", "the barn", "the garden", "the lake", "the village",
    "the bridge", "the meadow", "the mill",
)  # fmt: skip
WEATHER = ("sunny", "rainy", "windy", "cold", "warm", "snowy")
FOODS = ("honey", "bread", "soup", "cake", "berries", "nuts", "cheese")
FORMS = {"she": ("she", "her", "her"), "he": ("he", "him", "his")}


@dataclass(frozen=True)
class Character:
    """Someone in a story."""

    name: str
    animal: str
    trait: str
    subject: str

    @property
    def object(self) -> str:
        """Object pronoun."""
        return FORMS[self.subject][1]

    @property
    def possessive(self) -> str:
        """Possessive pronoun."""
        return FORMS[self.subject][2]


def _pick(rng: np.random.Generator, options):
    """Draw one of the options."""
    return options[rng.integers(len(options))]


def _character(rng: np.random.Generator, animal: str, name_not: str = "") -> Character:
    """Draw a character of a kind of animal."""
    subject = _pick(rng, ("she", "he"))
    name = _pick(rng, [n for n in NAMES[subject] if n != name_not])
    return Character(name, animal, _pick(rng, TRAITS), subject)


def _opening(rng: np.random.Generator, hero: Character, place: str) -> list[str]:
    """Introduce the hero."""
    who = with_article(f"{hero.trait} {hero.animal}")
    first = _pick(
        rng,
        (
            f"Once upon a time there was {who} named {hero.name}.",
            f"Once upon a time, {who} named {hero.name} lived near {place}.",
            f"Once upon a time there was {who} who lived by {place}. "
            f"{sentence(hero.possessive)} name was {hero.name}.",
        ),
    )
    second = _pick(
        rng,
        (
            f"One {_pick(rng, WEATHER)} day, {hero.name} went to {place}.",
            f"One {_pick(rng, WEATHER)} morning, {hero.name} walked to {place}.",
            f"One day {hero.subject} went to {place} alone.",
        ),
    )
    return [first, second]


def _meeting(rng: np.random.Generator, hero: Character, friend: Character) -> str:
    """Bring the friend in."""
    who = with_article(f"{friend.trait} {friend.animal}")
    return _pick(
        rng,
        (
            f"Then {hero.subject} met {who} named {friend.name}.",
            f"Just then, {who} named {friend.name} came along.",
            f"On the way {hero.subject} saw {who}. It was {hero.possessive} friend {friend.name}.",
        ),
    )


def _lost(rng: np.random.Generator, hero: Character, friend: Character, place: str) -> list[str]:
    """Tell of a thing that is lost and found again."""
    thing = _pick(rng, THINGS)
    noun = thing.split()[-1]
    far = _pick(rng, [p for p in PLACES if p != place])
    taker = _pick(rng, ("the wind took", "a bird took", "the water took"))
    return [
        _pick(
            rng,
            (
                f"{hero.name} had {with_article(thing)} and loved it very much.",
                f"There {hero.subject} found {with_article(thing)} under a tree.",
            ),
        ),
        _pick(
            rng,
            (
                f"But {taker} the {noun} away to {far}.",
                f"Suddenly {taker} the {noun} and left it near {far}.",
            ),
        ),
        _pick(
            rng,
            (
                f"{hero.name} was very sad.",
                f"{hero.name} looked for the {noun} all day.",
                f'"Where is my {noun}?" asked {hero.name}.',
            ),
        ),
        _meeting(rng, hero, friend),
        _pick(
            rng,
            (
                f'"I will help you," said {friend.name}.',
                f'"Do not cry," said {friend.name}. "We will look together."',
            ),
        ),
        _pick(
            rng,
            (
                f"They ran to {far} and found the {noun} in the grass.",
                f"{friend.name} saw the {noun} near {far} and gave it back to {hero.object}.",
            ),
        ),
    ]


def _found(rng: np.random.Generator, hero: Character, friend: Character, place: str) -> list[str]:
    """Tell of a thing that belongs to somebody else."""
    thing = _pick(rng, THINGS)
    noun = thing.split()[-1]
    return [
        f"Near {place} {hero.subject} found {with_article(thing)}.",
        _pick(
            rng,
            (
                f'"Whose {noun} is this?" asked {hero.name}.',
                f"{hero.name} did not know whose {noun} it was.",
            ),
        ),
        _meeting(rng, hero, friend),
        _pick(
            rng,
            (
                f'"That is my {noun}!" said {friend.name}.',
                f"{friend.name} had lost the {noun} and was looking for it.",
            ),
        ),
        f"{hero.name} gave the {noun} to {friend.object}.",
        _pick(
            rng,
            (
                f'"Thank you," said {friend.name}. "You are a good friend."',
                f"{friend.name} was so happy that {friend.subject} danced.",
            ),
        ),
    ]


def _hungry(rng: np.random.Generator, hero: Character, friend: Character, place: str) -> list[str]:
    """Tell of food that is shared."""
    food = _pick(rng, FOODS)
    return [
        f"{sentence(hero.subject)} was very hungry and had nothing to eat.",
        _meeting(rng, hero, friend),
        _pick(
            rng,
            (
                f"{friend.name} had some {food} in a basket.",
                f"{friend.name} was carrying some {food} home.",
            ),
        ),
        _pick(
            rng,
            (
                f'"May I have some {food}?" asked {hero.name}.',
                f'"That smells good," said {hero.name}.',
            ),
        ),
        _pick(
            rng,
            (
                f'"Yes, we can share," said {friend.name}.',
                f'"There is enough for both of us," said {friend.name}.',
            ),
        ),
        f"They sat down near {place} and ate the {food} together.",
    ]


def _afraid(rng: np.random.Generator, hero: Character, friend: Character, place: str) -> list[str]:
    """Tell of a fear that is overcome."""
    fear = _pick(rng, ("the dark", "the storm", "the deep water", "the big trees"))
    return [
        f"But {hero.name} was afraid of {fear}.",
        _pick(
            rng,
            (
                f"{sentence(hero.subject)} wanted to go home.",
                f"{sentence(hero.subject)} sat down and began to cry.",
            ),
        ),
        _meeting(rng, hero, friend),
        _pick(
            rng,
            (
                f'"Take my hand," said {friend.name}. "I am not afraid of {fear}."',
                f"{friend.name} sang a song for {hero.object}.",
            ),
        ),
        _pick(
            rng,
            (
                f"Slowly {hero.name} became brave.",
                f"After a while {hero.name} was not afraid of {fear} anymore.",
            ),
        ),
        f"They walked home from {place} together.",
    ]


def _ending(rng: np.random.Generator, hero: Character, friend: Character) -> list[str]:
    """Close the story."""
    return [
        _pick(
            rng,
            (
                f"From that day on, {hero.name} and {friend.name} were best friends.",
                f"{hero.name} thanked {friend.name} and went home with a smile.",
                f"{hero.name} and {friend.name} played until the sun went down.",
            ),
        ),
        _pick(rng, ("They were very happy.", "It was a good day.", "The end.")),
    ]


def tell(rng: np.random.Generator, animal: str | None = None) -> str:
    """Tell a story, about a given animal if there is one."""
    animal = animal or _pick(rng, ANIMALS)
    hero = _character(rng, animal)
    friend = _character(rng, _pick(rng, [a for a in ANIMALS if a != animal]), hero.name)
    place = _pick(rng, PLACES)
    plot = _pick(rng, (_lost, _found, _hungry, _afraid))
    parts = _opening(rng, hero, place) + plot(rng, hero, friend, place)
    return " ".join(parts + _ending(rng, hero, friend))


def filler_sentence(rng: np.random.Generator) -> str:
    """Write one sentence that belongs to no story and holds no digit."""
    one, two = _pick(rng, ANIMALS), _pick(rng, ANIMALS)
    trait, place, thing = _pick(rng, TRAITS), _pick(rng, PLACES), _pick(rng, THINGS)
    return _pick(
        rng,
        (
            f"The {trait} {one} walked to {place}.",
            f"{sentence(with_article(one))} sat near {place} and ate some {_pick(rng, FOODS)}.",
            f"It was a {_pick(rng, WEATHER)} day near {place}.",
            f"The {one} and the {two} played near {place}.",
            f"There was {with_article(thing)} under a tree.",
            f"{_pick(rng, NAMES['she'])} gave {with_article(thing)} to {_pick(rng, NAMES['he'])}.",
            f"The {one} looked for the {thing} all day.",
            f"{_pick(rng, NAMES['he'])} was not afraid of the {trait} {one}.",
        ),
    )
