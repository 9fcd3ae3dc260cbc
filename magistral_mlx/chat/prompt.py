"""Encoding of messages into a prompt: token ids and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from magistral_mlx.chat.image_tokens import with_image_token_limit
from magistral_mlx.chat.messages import Message, RawPrompt, Tool
from magistral_mlx.chat.mistral_request import build_mistral_request, ends_inside_thinking
from magistral_mlx.chat.normalize import normalized
from magistral_mlx.errors import PromptError
from magistral_mlx.option_spec import half_pair

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from magistral_mlx.chat.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """The input of the model.

    `tokens` is (L,) int32. `images` are float32 arrays (3, H, W), normalised, one for each
    image in the order of their tokens; H and W are multiples of patch size × merge size.
    `inside_thinking` tells that the prompt ends inside an open trace.
    """

    tokens: NDArray[np.int32]
    images: tuple[NDArray[np.float32], ...] = ()
    inside_thinking: bool = False

    def __len__(self) -> int:
        return len(self.tokens)


def encode(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    tools: Sequence[Tool] | None = None,
    image_tokens: int | None = None,
) -> Prompt:
    """Encode `messages`, normalized, with mistral-common's `encode_chat_completion`.

    `image_tokens` caps the tokens of each image; larger ones are scaled down.

    Raises PromptError where the messages or tools are not a valid conversation for this
    tokenizer's version; ImageError for an image that it has no tokens for.
    """
    import numpy as np
    from mistral_common.exceptions import MistralCommonException

    messages = normalized(messages)
    try:
        request = build_mistral_request(
            messages,
            tools or (),
            thinking=tokenizer.has_thinking_tokens,
            images=tokenizer.has_image_tokens,
        )
        mistral = (
            tokenizer.mistral
            if image_tokens is None
            else with_image_token_limit(tokenizer.mistral, image_tokens)
        )
        tokenized = mistral.encode_chat_completion(request)
    except (MistralCommonException, ValueError, TypeError, AssertionError) as error:
        # mistral-common refuses with its own exceptions, pydantic's and asserts alike.
        raise PromptError(
            f"these messages cannot become a prompt: {' '.join(str(error).split())}"
        ) from error
    tokens = np.asarray(tokenized.tokens, dtype=np.int32)
    tokens.flags.writeable = False
    inside = ends_inside_thinking(messages, thinking=tokenizer.has_thinking_tokens)
    return Prompt(tokens, tuple(tokenized.images), inside)


def encode_raw(raw: RawPrompt, tokenizer: Tokenizer) -> Prompt:
    """Encode `raw` without a chat template.

    Raises PromptError for no tokens, ids that the vocabulary lacks, the tokens of an image, or
    text that is not Unicode.
    """
    import numpy as np

    special = tokenizer.special
    if isinstance(raw.content, str):
        if problem := half_pair(raw.content):
            raise PromptError(f"the prompt is not Unicode text: {problem}.")
        ids = [special.bos, *tokenizer.encode(raw.content)]
    else:
        ids = list(raw.content)
        _check_ids(ids, tokenizer)
    opened = [n for n, id in enumerate(ids) if id == special.think]
    closed = [n for n, id in enumerate(ids) if id == special.end_think]
    inside = bool(opened) and opened[-1] > (closed[-1] if closed else -1)
    tokens = np.asarray(ids, dtype=np.int32)
    tokens.flags.writeable = False
    return Prompt(tokens, (), inside)


def _check_ids(ids: Sequence[int], tokenizer: Tokenizer) -> None:
    if not ids:
        raise PromptError("the prompt has no tokens: give one or more.")
    special = tokenizer.special
    for id in ids:
        if not 0 <= id < tokenizer.vocab_size:
            raise PromptError(
                f"the prompt holds token {id}, but this model's tokens go from 0 to "
                f"{tokenizer.vocab_size - 1}."
            )
        if id in (special.image, special.image_break, special.image_end):
            raise PromptError(
                f"the prompt holds token {id}, which stands for an image. Show images in a "
                "message instead."
            )
