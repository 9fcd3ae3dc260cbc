"""The provider `magistral-mlx` of Inspect: a model of this machine, in this process."""

from __future__ import annotations

from dataclasses import fields
from typing import Any
from weakref import WeakValueDictionary

from inspect_ai._util.error import PrerequisiteError
from inspect_ai.log._samples import sample_active
from inspect_ai.model import (
    ChatMessage,
    ContentAudio,
    ContentDocument,
    ContentImage,
    ContentVideo,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolFunction, ToolInfo

from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.api.magistral import Magistral
from magistral_mlx.api.options import Options, nth_seed
from magistral_mlx.errors import ContextOverflow, InvalidOption, MagistralError
from magistral_mlx.evaluation.messages import json_schema, to_message, to_output, to_tool
from magistral_mlx.option_spec import with_changes

# Options of ours that Inspect's configuration has under another name, or under the same.
_NAMES = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "logit_bias": "logit_bias",
    "stop_seqs": "stop",
    "num_choices": "n",
    "logprobs": "logprobs",
    "top_logprobs": "top_logprobs",
    "parallel_tool_calls": "parallel_tool_calls",
    "reasoning_tokens": "thinking",
}


# Models that a caller has loaded, by name: Inspect makes another provider of the same name while it
# prepares an evaluation, which shall not load the weights once more.
_lent: WeakValueDictionary[str, Magistral] = WeakValueDictionary()


class MagistralProvider(ModelAPI):
    """`magistral-mlx/NAME_OR_DIR`: answers of a model that is loaded into this process.

    What Inspect leaves open is as on the model card: the system prompt, temperature 0.7, top-p
    0.95, and as many tokens as the context leaves.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  (as in the base class)
        loaded: Magistral | None = None,
        **model_args: Any,
    ) -> None:
        """Load the model.

        Args:
            loaded: a model that is used, and left open, instead of loading one.
            model_args: fields of `LoadOptions`, and of `Options` for every answer.

        Raises:
            PrerequisiteError: it cannot be loaded, or an argument is none of these.
        """
        super().__init__(model_name, base_url, api_key, [], config)
        known = {field.name for field in fields(LoadOptions)}
        answers = {name: value for name, value in model_args.items() if name not in known}
        loading = {name: value for name, value in model_args.items() if name in known}
        if loaded is not None:
            _lent[model_name] = loaded
        elif (lent := _lent.get(model_name)) is not None and not lent.closed:
            loaded = lent
        self._owned = loaded is None
        try:
            self._options = Options.of(None, answers)
            self._loading = with_changes(LoadOptions, None, loading)
            self.model = loaded or Magistral.load(model_name, options=self._loading)
        except MagistralError as error:
            raise PrerequisiteError(f"magistral-mlx: {error}") from error

    async def aclose(self) -> None:
        """Give the model's memory back, unless the caller had loaded it."""
        if self._owned:
            await self.model.aclose()

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer a conversation. Cancelling the task stops the answer within a token.

        A prompt longer than the context gives an output with the stop reason `model_length`.

        Raises:
            MagistralError: the prompt or an option is invalid, or the model failed.
        """
        messages = [to_message(message) for message in input]
        changes = _changes(config) | _tool_changes(tools, tool_choice)
        options = Options.of(self._options, changes)
        try:
            result = await self.model.agenerate(messages, options=options)
        except ContextOverflow as error:
            return ModelOutput.from_content(
                self.model_name, str(error), stop_reason="model_length", error=str(error)
            )
        return to_output(result, self.model_name)

    def max_connections(self) -> int:
        """Requests at once. Those that do not fit into the memory plan wait in the session."""
        return self._loading.parallel

    def collapse_user_messages(self) -> bool:
        """Whether neighbouring messages of the user become one, as the template needs."""
        return True

    def collapse_assistant_messages(self) -> bool:
        """Whether neighbouring messages of the model become one, as the template needs."""
        return True

    async def count_text_tokens(self, text: str) -> int:
        """Tokens of a text by the model's own tokenizer."""
        return len(self.model.tokenizer.encode(text))

    async def count_media_tokens(
        self, media: ContentImage | ContentAudio | ContentVideo | ContentDocument
    ) -> int:
        """Tokens of an image by the model's own rule; Inspect's estimate of other media."""
        if not isinstance(media, ContentImage):
            return await super().count_media_tokens(media)
        from magistral_mlx.api.image_inputs import open_image

        empty, shown = (
            len(self.model.prompt("", images, system=None))
            for images in ((), [open_image(media.image)])
        )
        return shown - empty


def _changes(config: GenerateConfig) -> dict[str, Any]:
    """Options of ours that Inspect's configuration sets.

    Raises:
        InvalidOption: a reasoning effort that is none.
    """
    given = config.model_dump(include=set(_NAMES), exclude_none=True)
    changes = {_NAMES[name]: value for name, value in given.items()}
    if config.reasoning_effort == "none":
        changes["thinking"] = "off"
    if config.reasoning_history == "none":
        changes["keep_thinking"] = False
    if config.response_schema is not None:
        changes["json_schema"] = json_schema(config.response_schema)
    if config.top_k == -1:  # off, as some servers spell it
        changes["top_k"] = 0
    if config.seed is not None:
        changes["seed"] = epoch_seed(config.seed)
    return changes


def epoch_seed(seed: int) -> int:
    """The seed of an answer in the epoch that runs: `seed` in the first one, then the next."""
    active = sample_active()
    return nth_seed(seed, active.epoch - 1 if active else 0)


def _tool_changes(tools: list[ToolInfo], choice: ToolChoice) -> dict[str, Any]:
    """Options that offer the tools.

    Raises:
        InvalidOption: a tool is to be called that is not among them.
    """
    if not tools:
        return {}
    if isinstance(choice, ToolFunction):
        tools = [tool for tool in tools if tool.name == choice.name]
        if not tools:
            raise InvalidOption(f"tool_choice names {choice.name!r}, which is none of the tools.")
    named = "required" if isinstance(choice, ToolFunction) or choice == "any" else choice
    return {"tools": [to_tool(tool) for tool in tools], "tool_choice": named}


@modelapi(name="magistral-mlx")
def magistral_mlx() -> type[ModelAPI]:
    """Register the provider. Called with the provider's arguments, it makes one."""
    return MagistralProvider
