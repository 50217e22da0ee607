"""Stop strings do not depend on how a text is cut."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from llama4rs.stop_strings import StopStrings


@given(
    text=st.text("abE", max_size=12),
    stops=st.lists(st.text("abE", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 12), max_size=5),
)
def test_stop_strings_do_not_depend_on_the_pieces(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    def run(pieces: list[str]) -> tuple[str, str | None]:
        stop = StopStrings(stops)
        sure = "".join(stop.push(piece) for piece in pieces)
        assert not any(s in sure for s in stops)
        return sure + stop.flush(), stop.found

    bounds = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[a:b] for a, b in pairwise(bounds)]
    expected = run([text])
    assert run(pieces) == run(list(text)) == expected
    ends = [text.find(s) + len(s) for s in stops if s in text]
    if not ends:
        assert expected == (text, None)
    else:
        before, found = expected
        assert found is not None
        assert (before + found) == text[: min(ends)]
