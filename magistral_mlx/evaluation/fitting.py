"""Whether a model of this machine can take a task: its context, and its eyes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inspect_ai.model import ContentText

from magistral_mlx.errors import InvalidOption

if TYPE_CHECKING:
    from inspect_ai.dataset import Sample

    from magistral_mlx.api.magistral import Magistral
    from magistral_mlx.evaluation.run import Questions

_TEMPLATE = 512  # tokens of a task's instructions and choices, and of a chat's template


def check_fits(questions: Questions, model: Magistral, max_tokens: int | None) -> None:
    """Check that the longest question leaves room for an answer, and that images can be seen.

    Raises:
        InvalidOption: naming what the task needs.
    """
    spec = questions.spec
    if spec.images and not model.supports_images:
        raise InvalidOption(f"{spec.name} shows images, and {model.name} reads text alone.")
    ids = set(questions.ids)
    texts = [_text(sample) for sample in questions.task.dataset if sample.id in ids]
    # The longest by characters is the longest by tokens, or nearly.
    longest = len(model.tokenizer.encode(max(texts, key=len, default="")))
    answer = min(spec.least_answer, max_tokens or spec.least_answer)
    needed = longest + _TEMPLATE + answer
    if needed > model.context:
        raise InvalidOption(
            f"{spec.name} needs a context of {needed:,} tokens: {longest + _TEMPLATE:,} for its "
            f"longest question and {answer:,} for an answer; this model has {model.context:,}. "
            "Give a longer one with --context, or a shorter answer with --max-tokens."
        )


def _text(sample: Sample) -> str:
    if isinstance(sample.input, str):
        return sample.input
    return "\n".join(
        part.text if isinstance(part, ContentText) else ""
        for message in sample.input
        for part in (
            [ContentText(text=message.content)]
            if isinstance(message.content, str)
            else message.content
        )
    )
