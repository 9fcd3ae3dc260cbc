"""The demo checkpoint's own problems as a task: sums, one image, two images."""

from __future__ import annotations

import base64
import io
from typing import get_args

import PIL.Image
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText
from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState, generate

from magistral_mlx.demo.cases import Case, Kind, cases

COUNT = 100  # of each kind


@task
def demo(count: int = COUNT) -> Task:
    """Return the demo's held-out problems, `count` of each kind."""
    samples = [_sample(case) for kind in get_args(Kind) for case in cases(kind, "held_out", count)]
    return Task(dataset=samples, solver=generate(), scorer=exact())


@scorer(metrics=[accuracy(), stderr()])
def exact() -> Scorer:
    """Score an answer that must be the target, white space aside."""

    async def score(state: TaskState, target: Target) -> Score:
        answer = " ".join(state.output.completion.split())
        return Score(value=CORRECT if answer == target.text else INCORRECT, answer=answer)

    return score


def _sample(case: Case) -> Sample:
    images = [ContentImage(image=_data_url(image)) for image in case.images]
    message = ChatMessageUser(content=[*images, ContentText(text=case.question)])
    return Sample(
        id=f"{case.kind}-{case.seed}",
        input=[message],
        target=case.answer,
        metadata={"kind": case.kind},
    )


def _data_url(image: PIL.Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
