"""Messages into a prompt: token ids, pixels, and where the pictures' tokens sit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from magistral_mlx.chat.messages import Message, Tool
from magistral_mlx.chat.picture_tokens import capped
from magistral_mlx.chat.request import build_request, ends_inside_thinking
from magistral_mlx.errors import PromptError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from magistral_mlx.chat.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What the model is fed.

    `tokens` is (L,) int32. `pictures` are float32 arrays (3, H, W), normalised, one for each
    picture in the order of their tokens; H and W are multiples of patch size × merge size.
    `image_token` is the id that stands for one merged patch; None where the tokenizer has none.
    `inside_thinking` tells that the prompt ends inside an open trace.
    """

    tokens: NDArray[np.int32]
    pictures: tuple[NDArray[np.float32], ...] = ()
    image_token: int | None = None
    inside_thinking: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def image_positions(self) -> NDArray[np.intp]:
        """Where the embeddings of the merged patches go, (N,), ascending: all pictures in order."""
        import numpy as np

        if self.image_token is None:
            return np.zeros(0, dtype=np.intp)
        return np.flatnonzero(self.tokens == self.image_token)


def encode(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    tools: Sequence[Tool] | None = None,
    image_tokens: int | None = None,
) -> Prompt:
    """The prompt for `messages`, as mistral-common's `encode_chat_completion` makes it.

    `image_tokens` caps the tokens of each picture; larger ones are scaled down.

    Raises PromptError where the messages or tools are not a valid conversation for this
    tokenizer's version; PictureError for a picture that it has no tokens for.
    """
    import numpy as np
    from mistral_common.exceptions import MistralCommonException

    try:
        request = build_request(
            messages, tools or (), thinking=tokenizer.thinks, pictures=tokenizer.sees
        )
        mistral = (
            tokenizer.mistral if image_tokens is None else capped(tokenizer.mistral, image_tokens)
        )
        tokenized = mistral.encode_chat_completion(request)
    except (MistralCommonException, ValueError, TypeError, AssertionError) as error:
        # mistral-common refuses with its own exceptions, pydantic's and asserts alike.
        raise PromptError(
            f"These messages cannot become a prompt: {' '.join(str(error).split())}"
        ) from error
    tokens = np.asarray(tokenized.tokens, dtype=np.int32)
    tokens.flags.writeable = False
    inside = ends_inside_thinking(messages, thinking=tokenizer.thinks)
    return Prompt(tokens, tuple(tokenized.images), tokenizer.special.image, inside)
