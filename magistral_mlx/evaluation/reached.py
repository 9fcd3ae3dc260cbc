"""Where a chain of thought first states the answer that it ends with."""

from __future__ import annotations

import re

_LONGEST = 64  # characters of an answer that is searched for
_PHRASE = 8  # an answer from this length on needs no words before it
_NUMBER_MARKS = re.compile(r"(?<=\d)[,\u202f\u00a0 ](?=\d{3}(?!\d))|\\[,!;]")
_WRAPPERS = re.compile(r"\\(?:boxed|text|mathrm|mathbf)\s*\{([^{}]*)\}|\*\*|\$")
# What stands before a result: a sign, or a word in one of the larger languages.
_RESULT = (
    r"(?:[=≈≡→:⇒]|\b(?:is|equals?|gives?|gets?|get|yields?|answer|result|est|ist|es|são|è|é"
    r"|ответ|равно)\b|答案[是为]?|是|为)"
)
_CHOICE = r"(?:\b(?:answer|choose|pick|choice is|option is|réponse|antwort|respuesta)\b|答案)"


def share_before(thinking: str, answer: str) -> float | None:
    """Return the share of the thinking before it first states an answer; None if it never does.

    A number or a short word counts where it is stated as a result, after a sign such as = or a
    word such as "is"; a single letter, the choice among several, after "answer" or "choose".
    Written marks do not matter: 1,024 is 1024, and \\boxed{7} is 7.
    """
    answer = _plain(answer).strip(" .()")
    thinking = _plain(thinking)
    if not answer or len(answer) > _LONGEST or not thinking:
        return None
    stated = rf"(?<![\w.]){re.escape(answer)}(?![\w]|\.\d)"
    if len(answer) == 1 and answer.isalpha():
        pattern = rf"{_CHOICE}\W{{0,4}}(?:is\W{{0,4}}|must be\W{{0,4}}|should be\W{{0,4}})?{stated}"
        found = re.search(pattern, thinking, re.IGNORECASE)
    elif len(answer) >= _PHRASE:
        found = re.search(stated, thinking, re.IGNORECASE)
    else:
        pattern = rf"{_RESULT}\s*(?:[:=({{]\s*)?{stated}"
        found = re.search(pattern, thinking, re.IGNORECASE)
    return None if found is None else found.end() / len(thinking)


def _plain(text: str) -> str:
    """Return text without marks that numbers and results are set in."""
    text = _NUMBER_MARKS.sub("", text)
    before = None
    while before != text:
        before, text = text, _WRAPPERS.sub(lambda match: match[1] or "", text)
    return text
