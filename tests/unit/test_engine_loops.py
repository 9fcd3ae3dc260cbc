"""Loops in a trace are found, and what merely looks alike is not, on text as models write it.

Texts are split by the real Tekken vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from magistral_mlx.engine.loops import LoopDetector, LoopRule, repetitions
from magistral_mlx.errors import InvalidOption
from tests.engine_models import vocabulary_of
from tests.tekken import full_tokenizer

RULE = LoopRule()


@pytest.fixture(scope="module")
def is_word() -> Callable[[int], bool]:
    return vocabulary_of(full_tokenizer()).is_word


def first_alarm(text: str, is_word: Callable[[int], bool]) -> int | None:
    """Tokens of `text` that have come when the detector says loop; None if it never does."""
    return alarm_after(full_tokenizer().encode(text), is_word)


def alarm_after(
    tokens: list[int], is_word: Callable[[int], bool] = lambda token: True
) -> int | None:
    detector = LoopDetector(RULE, is_word)
    return next((count for count, token in enumerate(tokens, 1) if detector.add(token)), None)


def numbered_code() -> str:
    """Functions that differ in a number: the kind of repetition that code is full of."""
    return "\n\n".join(
        f"def test_case_{n}() -> None:\n"
        f"    result = solve(read_input({n}))\n"
        f"    assert result == expected[{n}]\n"
        f"    assert result is not None"
        for n in range(80)
    )


def unrolled_assembly() -> str:
    lines = [
        f"    movups xmm{n % 8}, [rdi + {16 * n}]\n    addps xmm8, xmm{n % 8}" for n in range(99)
    ]
    return "sum_floats:\n" + "\n".join(lines) + "\n    ret\n"


def padded_byte_array() -> str:
    """An initialiser whose last 200 bytes are zero."""
    values = [f"0x{n * 37 % 256:02x}" for n in range(200)] + ["0x00"] * 200
    rows = [", ".join(values[start : start + 12]) for start in range(0, len(values), 12)]
    return "static const uint8_t table[] = {\n  " + ",\n  ".join(rows) + "\n};"


def switch_statement() -> str:
    cases = "".join(f'        case {n}:\n            return "{n}";\n' for n in range(120))
    return "switch (code) {\n" + cases + "}"


def markdown_table() -> str:
    rows = "".join(f"| Item {n} | yes | no | {n * n} | ok |\n" for n in range(90))
    return "| Name | A | B | Square | State |\n| --- | --- | --- | --- | --- |\n" + rows


def table_of_equal_rows() -> str:
    """Forty rows that are all the same, as in a schedule."""
    return "| Day | Morning | Evening |\n|---|---|---|\n" + "| any | open | closed |\n" * 30


def truth_table() -> str:
    rows = itertools.product("TF", repeat=6)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def matrix_of_zeros() -> str:
    row = "[" + ", ".join(["0"] * 20) + "]"
    return "The adjacency matrix starts as\n[" + ",\n ".join([row] * 20) + "]\nand then"


def list_of_numbers() -> str:
    return ", ".join(map(str, range(1, 1500)))


def random_digits() -> str:
    digits = np.random.default_rng(0).integers(0, 10, 4000)
    return "".join(map(str, digits))


def repeating_decimal() -> str:
    return "1/7 = 0." + "142857" * 60 + "..., so the period is six."


def long_division() -> str:
    """1 / 97 digit by digit, once around its period of 96 and a bit."""
    lines, rest = [], 1
    for _ in range(120):
        digit, left = divmod(rest * 10, 97)
        lines.append(f"bring down a zero: {rest}0 / 97 = {digit}, remainder {left}")
        rest = left
    return "\n".join(lines)


def sums_digit_by_digit() -> str:
    rng = np.random.default_rng(1)
    lines = []
    for a, b in rng.integers(10**11, 10**12, (30, 2)).tolist():
        carry, steps = 0, []
        for x, y in zip(reversed(str(a)), reversed(str(b)), strict=True):
            total = int(x) + int(y) + carry
            steps.append(f"{x}+{y}+{carry}={total},{total // 10}")
            carry = total // 10
        lines.append(f"{a} + {b}: " + "; ".join(steps) + f" = {a + b}")
    return "\n".join(lines)


def sum_with_one_carry_all_along() -> str:
    """Nines plus one: every digit's step reads the same."""
    return "5+6=11, carry 1; " + "9+0+1=10, write 0, carry 1; " * 25 + "so 1 followed by zeros."


def rules_and_blank_lines() -> str:
    return ("=" * 80 + "\n\n\n") * 80 + "-" * 900 + "\n| " + "--- | " * 200


def board() -> str:
    rows = ["+---" * 8 + "+\n" + "| . " * 8 + "|\n"] * 8
    return ("Position after the move:\n" + "".join(rows)) * 2


def json_records() -> str:
    records = [f'{{"id": {n}, "name": "user", "active": true, "roles": ["a"]}}' for n in range(90)]
    return "[" + ",\n ".join(records) + "]"


def sequence_of_bases() -> str:
    return "".join(np.random.default_rng(2).choice(list("ACGT"), 3000))


def algebra() -> str:
    return "\n".join(
        f"x_{{{n + 1}}} = x_{{{n}}} - \\frac{{f(x_{{{n}}})}}{{f'(x_{{{n}}})}} \\approx 1.{n:04d}"
        for n in range(90)
    )


def cases_one_by_one() -> str:
    return "\n".join(
        f"Case {n}: if x = {n}, then x^2 = {n * n}, which is {'even' if n % 2 == 0 else 'odd'}. "
        f"So it does {'not ' if n % 2 else ''}work. Let's try the next one."
        for n in range(1, 90)
    )


def draft_written_three_times() -> str:
    """A model may write its whole answer again, with a word of doubt in between."""
    draft = "\n".join(f"{n}. {text}" for n, text in enumerate(numbered_code().split("\n")[:40]))
    return f"Draft:\n{draft}\nLet me check that once more.\n{draft}\nLooks right. Final:\n{draft}"


def refrain() -> str:
    return "Row, row, row your boat, gently down the stream. " * 6 + "And so on."


def equal_rows_of_html() -> str:
    return "<table>\n" + "<tr><td></td><td></td></tr>\n" * 40 + "</table>"


def equal_rows_of_csv() -> str:
    return "name,state,seen\n" + "unknown,unknown,false\n" * 60


def equal_instructions() -> str:
    return "loop:\n" + "add rax, rbx\n" * 60 + "ret"


def equal_calls() -> str:
    return 'print("hello")\n' * 70


def equal_values() -> str:
    return "True, False, True, True\n" * 60


def coin_tosses() -> str:
    return "H T " * 200


HARMLESS = [
    numbered_code,
    unrolled_assembly,
    padded_byte_array,
    switch_statement,
    markdown_table,
    table_of_equal_rows,
    truth_table,
    matrix_of_zeros,
    list_of_numbers,
    random_digits,
    repeating_decimal,
    long_division,
    sums_digit_by_digit,
    sum_with_one_carry_all_along,
    rules_and_blank_lines,
    board,
    json_records,
    sequence_of_bases,
    algebra,
    cases_one_by_one,
    draft_written_three_times,
    refrain,
    equal_rows_of_html,
    equal_rows_of_csv,
    equal_instructions,
    equal_calls,
    equal_values,
    coin_tosses,
]


@pytest.mark.parametrize("text", HARMLESS, ids=lambda text: text.__name__)
def test_text_that_repeats_for_a_reason_is_no_loop(
    text: Callable[[], str], is_word: Callable[[int], bool]
) -> None:
    written = text()
    assert len(full_tokenizer().encode(written)) > 60
    assert first_alarm(written, is_word) is None


BEFORE = "Okay, let me think about this problem step by step. We need the smallest n. "
FORMULA = "\\frac{a}{b} = \\frac{c}{d} \\implies ad = bc, "
SPANS = {
    "a sentence": "Wait, but the problem says that x must be positive, so that can't be right. ",
    "French": "Attendez, mais le problème dit que x doit être positif, donc c'est impossible. ",
    "Japanese": "しかし、問題文によると x は正の数でなければならないので、これは正しくない。",
    "Arabic": "لكن المسألة تقول إن العدد يجب أن يكون موجبا، لذلك هذا غير صحيح. ",
    "Hindi": "लेकिन प्रश्न कहता है कि संख्या धनात्मक होनी चाहिए, इसलिए यह सही नहीं है। ",
    "lines of code": "for i in range(n):\n    if a[i] == b[i]:\n        count += 1\n",
    "a span that repeats inside": "no, no, no, no, no, no, no, no, no, no, no, no, that is it. ",
}


@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)
def test_a_span_over_and_over_is_a_loop_within_a_few_hundred_tokens(
    span: str, is_word: Callable[[int], bool]
) -> None:
    before, again = (full_tokenizer().encode(text) for text in (BEFORE, span))
    alarm = alarm_after(before + again * 200, is_word)
    assert alarm is not None
    assert alarm - len(before) in range(RULE.tokens, RULE.tokens + 100)


@pytest.mark.parametrize("span", [" Wait, no.", "Hmm, that is wrong. ", "add rax, rbx\n"])
def test_a_short_span_is_a_loop_when_no_table_would_go_on_like_that(
    span: str, is_word: Callable[[int], bool]
) -> None:
    before, again = (full_tokenizer().encode(text) for text in (BEFORE, span))
    alarm = alarm_after(before + again * 500, is_word)
    assert alarm is not None
    assert alarm - len(before) in range(RULE.short_tokens, RULE.short_tokens + 100)


@pytest.mark.parametrize("length", [300, 1000, 1900])
def test_a_long_span_is_a_loop_when_it_has_come_four_times(length: int) -> None:
    rng = np.random.default_rng(length)
    span = rng.integers(1000, 5000, length).tolist()
    assert alarm_after(span * 6) in range(4 * length, 4 * length + 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "span", ["0", "0, ", "--", "3 1 4 1 5 9 ", "\n", " ", "🙂", "⬛⬜", FORMULA]
)
def test_figures_and_rules_over_and_over_are_a_loop_in_the_end(
    span: str, is_word: Callable[[int], bool]
) -> None:
    before, again = (full_tokenizer().encode(text) for text in (BEFORE, span))
    alarm = alarm_after(before + again * 3000, is_word)
    assert alarm is not None
    assert alarm - len(before) in range(RULE.plain_tokens, RULE.plain_tokens + 100)


def test_a_loop_that_starts_late_in_a_long_trace_is_found() -> None:
    rng = np.random.default_rng(3)
    before = rng.integers(1000, 100_000, 30_000).tolist()
    span = rng.integers(1000, 5000, 40).tolist()
    start = len(before)
    assert alarm_after(before + span * 100) in range(start + 256, start + 330)


def test_repetitions_are_those_that_a_search_by_hand_finds() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        span = rng.integers(0, 3, rng.integers(1, 12))
        tokens = np.concatenate([rng.integers(0, 3, 30), np.tile(span, 6)]).astype(np.int32)
        found = dict(repetitions(tokens))
        assert found == {p: n for p, n in by_hand(tokens.tolist()) if n >= p + 8}


def by_hand(tokens: list[int]) -> Iterator[tuple[int, int]]:
    for p in range(1, len(tokens)):
        same = 0
        while same < len(tokens) - p and tokens[-1 - same] == tokens[-1 - same - p]:
            same += 1
        yield p, same + p


def test_a_rule_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(InvalidOption, match="is invalid"):
        LoopRule(repeats=1)
    with pytest.raises(InvalidOption, match="is invalid"):
        LoopRule(tokens=3000)
