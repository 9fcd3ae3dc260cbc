"""From cases to what the model is fed: token ids by mistral-common, images as pixel arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mistral_common.protocol.instruct.chunk import ImageChunk, TextChunk, ThinkChunk
from mistral_common.protocol.instruct.messages import SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from magistral_mlx.demo.cases import Case

# What SYSTEM_PROMPT.txt spells as text, in the chunks that mistral-common wants.
SYSTEM_PROMPT = ("Think first:", "Your draft.", "Then answer.")


@dataclass(frozen=True)
class Example:
    """A case ready for the model: `prompt` and `target` are token ids, `pixels` (3, H, W) each."""

    case: Case
    prompt: list[int]
    target: list[int]
    pixels: list[np.ndarray]


def system_prompt_text() -> str:
    """The content of SYSTEM_PROMPT.txt."""
    before, thinking, after = SYSTEM_PROMPT
    return f"{before}[THINK]{thinking}[/THINK]{after}"


class Prompter:
    """Turns cases into examples with the tokenizer of one `tekken.json`."""

    def __init__(self, tekken: Path) -> None:
        self._tokenizer = MistralTokenizer.from_file(str(tekken))
        self._tekken = self._tokenizer.instruct_tokenizer.tokenizer
        before, thinking, after = SYSTEM_PROMPT
        self._system = SystemMessage(
            content=[
                TextChunk(text=before),
                ThinkChunk(thinking=thinking, closed=True),
                TextChunk(text=after),
            ]
        )
        self.think, self.think_end = (
            self._tekken.get_special_token(name) for name in ("[THINK]", "[/THINK]")
        )
        self.end = self._tekken.eos_id

    def example(self, case: Case, with_system: bool = True) -> Example:
        """The prompt of a case, and the assistant turn that should follow it."""
        chunks: Sequence[ImageChunk | TextChunk] = [
            *(ImageChunk(image=image) for image in case.images),
            TextChunk(text=case.question),
        ]
        messages = [self._system] if with_system else []
        request = ChatCompletionRequest(messages=[*messages, UserMessage(content=list(chunks))])
        encoded = self._tokenizer.encode_chat_completion(request)
        return Example(case, encoded.tokens, self._answer_ids(case), encoded.images)

    def _answer_ids(self, case: Case) -> list[int]:
        trace, answer = (
            self._tekken.encode(text, bos=False, eos=False) for text in (case.trace, case.answer)
        )
        return [self.think, *trace, self.think_end, *answer, self.end]

    def answer_text(self, ids: Sequence[int]) -> str:
        """The text after the thinking of a generated turn; empty if the thinking never ended."""
        ids = list(ids)
        if self.think_end not in ids:
            return ""
        return self._tekken.decode(ids[ids.index(self.think_end) + 1 :])
