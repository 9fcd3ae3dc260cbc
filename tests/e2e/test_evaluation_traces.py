"""`magistral-mlx traces` of Inspect's logs: languages, first statements, right and wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalSample,
    EvalSpec,
    write_eval_log,
)
from inspect_ai.model import ChatCompletionChoice as Choice
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageUser,
    ContentReasoning,
    ContentText,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.scorer import Score

from magistral_mlx.evaluation.languages import language_use
from magistral_mlx.evaluation.reached import share_before
from tests.command_line import run
from tests.languages import SENTENCES

ENGLISH = (
    "Let me think about this one step at a time. First we count the ways to choose a pair, and "
    "then we divide by two, because the order does not matter here. "
)
GERMAN = (
    "Moment, das stimmt so nicht ganz. Wir müssen zuerst die Anzahl der Paare zählen und danach "
    "durch zwei teilen, weil die Reihenfolge hier keine Rolle spielt. "
)
CHINESE = "等等,这里需要先计算配对的数量,然后除以二,因为顺序并不重要。"


# Languages


@pytest.mark.parametrize(
    ("text", "languages", "switches"),
    [
        (ENGLISH * 3, {"en"}, 0),
        (GERMAN * 2, {"de"}, 0),
        (ENGLISH * 3 + GERMAN * 3, {"en", "de"}, 1),
        (ENGLISH * 3 + CHINESE + ENGLISH * 3, {"en", "zh"}, 2),
        ("", set(), 0),
        ("x = 3, y = 4; f(x) = 25", set(), 0),
    ],
)
def test_switches_between_languages_are_counted(text: str, languages: set[str], switches: int):
    use = language_use(text)
    assert set(use.letters) == languages and use.switches == switches


def test_formulas_code_and_greek_letters_are_no_language():
    text = ENGLISH + r"So $\alpha\beta\gamma + \text{Größe}$ with π and λ: \[ \sum_{i=1}^n x_i \] "
    code = "```python\nfür_alle = [größe for größe in werte if größe]\nprint('мир')\n```\n"
    use = language_use((text + code + ENGLISH) * 3)
    assert set(use.letters) == {"en"} and use.switches == 0


@pytest.mark.parametrize("code", sorted(set(SENTENCES) - {"ms", "id", "ne", "hi"}))
def test_each_of_magistrals_languages_is_known(code: str):
    use = language_use(SENTENCES[code] * 3)
    assert set(use.letters) == {code}


# Where an answer is reached


@pytest.mark.parametrize(
    ("thinking", "answer", "share"),
    [
        ("There are 7 boxes. 3 + 4 = 7. Let me verify.....", "7", 0.6),
        ("x is 12, no: 120. So the answer is 120. Yes.", "120", 0.35),
        (r"We get \boxed{1,024} at once, and that is it.", "1024", 0.3),
        (r"Hmm, so $x = \frac{3}{4}$ then.", r"\frac{3}{4}", 0.8),
        ("A or B? Option B: no. Hmm. The answer is (B). Fine.", "B", 0.88),
        ("Ich rechne: das Ergebnis ist 42.", "42", 0.95),
        ("所以答案是 42。我再检查一遍。", "42", 0.5),
        ("The capital must have been Ouagadougou, I think.", "Ouagadougou", 0.8),
    ],
)
def test_the_first_statement_of_the_answer_is_found(thinking: str, answer: str, share: float):
    found = share_before(thinking, answer)
    assert found == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize(
    ("thinking", "answer"),
    [
        ("There are 7 boxes and 12 pens.", "7"),
        ("It is 12.5 or 112, not 1200.", "12"),
        ("Option B: a cat. Option C: a dog.", "B"),
        ("", "7"),
        ("It is 7.", ""),
        ("def f(): return 1\n" * 9, "def f(): return 1\n" * 9),
    ],
)
def test_what_is_no_statement_of_the_answer_is_not_found(thinking: str, answer: str):
    assert share_before(thinking, answer) is None


# Logs


def sample(
    number: int,
    thinking: str,
    answer: str,
    score: Any,
    *,
    stop: Any = "stop",
    tokens: int | None = 40,
    epoch: int = 1,
) -> EvalSample:
    parts = [ContentReasoning(reasoning=thinking), ContentText(text=f"It is {answer}.")]
    message = ChatMessageAssistant(content=parts, source="generate")
    output = ModelOutput(
        model="any",
        choices=[Choice(message=message, stop_reason=stop)],
        usage=ModelUsage(
            input_tokens=9, output_tokens=50, total_tokens=59, reasoning_tokens=tokens
        ),
    )
    return EvalSample(
        id=number,
        epoch=epoch,
        input="How many?",
        target="7",
        messages=[ChatMessageUser(content="How many?"), message],
        output=output,
        scores={"match": Score(value=score, answer=answer)},
    )


SAMPLES = [
    sample(1, ENGLISH + "So it is 7. " + ENGLISH, "7", "C"),
    sample(2, ENGLISH * 3 + "That gives 7.", "7", "C", tokens=30),
    sample(3, GERMAN * 3 + ENGLISH * 3 + "So 9?", "9", "I", tokens=45),
    sample(4, "We go on and on, and never come to an end. " * 99, "", "I", stop="max_tokens"),
]


def write_log(file: Path, samples: list[EvalSample], task: str = "sums") -> Path:
    spec = EvalSpec(
        created="2026-11-28T20:00:00+00:00",
        task=task,
        dataset=EvalDataset(name="sums"),
        model="magistral-mlx/demo",
        config=EvalConfig(),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    log = EvalLog(status="success", eval=spec, samples=samples)
    write_eval_log(log, str(file), "eval" if file.suffix == ".eval" else "json")
    return file


@pytest.mark.parametrize("suffix", [".eval", ".json"])
@pytest.mark.parametrize("as_folder", [True, False])
def test_right_and_wrong_answers_are_told_apart(suffix: str, as_folder: bool, tmp_path: Path):
    log = write_log(tmp_path / "logs" / f"2026-11-28T20-00-00_sums{suffix}", SAMPLES)
    done = run("traces", str(log.parent if as_folder else log), "--json")
    assert done.status == 0, done.stderr
    [facts] = json.loads(done.stdout)["evaluations"]
    assert (facts["task"], facts["model"]) == ("sums", "magistral-mlx/demo")
    groups = facts["answers"]
    assert [groups[name]["count"] for name in ("all", "right", "wrong")] == [4, 2, 2]
    assert groups["right"]["thinking_tokens"]["p50"] == 35
    assert groups["right"]["answer_tokens"]["p50"] == 15
    assert groups["right"]["stated_while_thinking"] == 2
    assert groups["right"]["reached"]["p50"] == pytest.approx(0.76, abs=0.05)
    wrong = groups["wrong"]
    assert (wrong["looped"], wrong["truncated"], wrong["switched"]) == (1, 1, 1)
    assert groups["right"]["switched"] == 0 and set(groups["right"]["languages"]) == {"en"}
    assert [each["question"] for each in facts["traces"]] == ["1", "2", "3", "4"]


def test_a_table_and_a_plot_are_drawn(tmp_path: Path):
    write_log(tmp_path / "one" / "a.eval", SAMPLES)
    write_log(tmp_path / "two" / "b.json", [sample(5, ENGLISH * 2, "7", 1, tokens=None)], "more")
    listing = {"a.eval": {"version": 2, "status": "success", "eval": {}}}
    (tmp_path / "one" / "logs.json").write_text(json.dumps(listing))  # Inspect's index
    (tmp_path / "one" / "._a.eval").write_bytes(b"\0\5\26\7")  # as macOS writes
    done = run("traces", str(tmp_path), "--plot", str(tmp_path / "plot.svg"))
    assert done.status == 0 and done.stderr == f"drawn into {tmp_path / 'plot.svg'}.\n"
    shown = done.stdout.decode()
    assert "sums, magistral-mlx/demo: 4 answers" in shown and "more, magistral" in shown
    assert "tokens of thinking are a share by characters" in shown
    row = next(line for line in shown.splitlines() if line.startswith("looping"))
    assert row.split() == ["looping", "1", "(25%)", "0", "(0%)", "1", "(50%)"]
    assert (tmp_path / "plot.svg").stat().st_size > 1000


def test_the_newest_log_of_an_evaluation_that_went_on_counts(tmp_path: Path):
    write_log(tmp_path / "2026-11-28T20-00-00_sums.eval", SAMPLES[:1])
    write_log(tmp_path / "2026-11-28T21-00-00_sums.eval", SAMPLES)
    [facts] = json.loads(run("traces", str(tmp_path), "--json").stdout)["evaluations"]
    assert facts["answers"]["all"]["count"] == 4


def test_what_is_no_log_is_refused_in_a_line(tmp_path: Path):
    broken = tmp_path / "broken.eval"
    broken.write_bytes(b"no archive")
    assert "broken.eval is no log of an evaluation" in run("traces", str(broken)).refusal
    assert "broken.eval is no log of an evaluation" in run("traces", str(tmp_path)).refusal
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty holds no traces" in run("traces", str(empty)).refusal
    assert "cannot be read: No such file" in run("traces", str(tmp_path / "none")).refusal
