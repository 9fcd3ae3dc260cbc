"""Stop strings, as a reader of the answer meets them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from magistral_mlx.chat.stop import StopStrings


def shown(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    scanner = StopStrings(stops)
    return "".join([*map(scanner.feed, pieces), scanner.finish()]), scanner.matched


def test_text_ends_before_the_stop_string() -> None:
    assert shown(["END"], ["The ", "answerEND", "more"]) == ("The answer", "END")


def test_a_stop_string_that_comes_in_pieces_is_found() -> None:
    assert shown(["\n\nUser:"], ["Hi.\n", "\nUs", "er: no"]) == ("Hi.", "\n\nUser:")


def test_what_may_begin_a_stop_string_waits() -> None:
    scanner = StopStrings(["</answer>"])
    assert scanner.feed("four </an") == "four "
    assert scanner.feed("d then") == "</and then"


def test_what_still_waits_at_the_end_is_shown() -> None:
    assert shown(["</answer>"], ["four </ans"]) == ("four </ans", None)


def test_the_first_of_several_stop_strings_ends_the_text() -> None:
    assert shown(["late", "ly", "soon"], ["rather soonly or late"]) == ("rather ", "soon")


def test_of_two_that_begin_at_once_the_longer_is_named() -> None:
    assert shown(["ab", "abc"], ["xabcd"]) == ("x", "abc")


def test_the_stop_string_is_shown_if_that_is_asked_for() -> None:
    scanner = StopStrings(["</a>", "END"], include=True)
    assert scanner.feed("four <") == "four "
    assert scanner.feed("/a> more") == "</a>"
    assert (scanner.feed("END"), scanner.finish(), scanner.matched) == ("", "", "</a>")


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.text("ab", max_size=3), max_size=12),
)
def test_no_part_of_the_stop_string_that_ended_the_text_is_ever_shown(
    stops: list[str], pieces: list[str]
) -> None:
    text, whole = "", "".join(pieces)
    scanner = StopStrings(stops)
    read = ""
    for piece in pieces:
        read += piece
        text += scanner.feed(piece)
        if scanner.matched:
            break
    text += scanner.finish()
    if scanner.matched is None:
        assert text == whole
        assert not any(stop in whole for stop in stops)
    else:
        assert read.startswith(text + scanner.matched)
        assert not any(stop in text for stop in stops)
