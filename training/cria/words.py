"""Small English helpers that the data generators share."""

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SILENT_H = ("honest", "hour")


def with_article(phrase: str) -> str:
    """Put the right indefinite article before a phrase."""
    vowel = phrase[0] in "aeiou" or phrase.startswith(SILENT_H)
    return f"{'an' if vowel else 'a'} {phrase}"


def sentence(text: str) -> str:
    """Capitalise the first letter."""
    return text[0].upper() + text[1:]
