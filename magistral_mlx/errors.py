"""Every error that a user can meet.

Each message says what was wrong, what was expected and what to do next, on one line. The command
line prints it and exits with status 2; an app catches `MagistralError` or one of its kinds.
"""


class MagistralError(Exception):
    """The base of every error that this package raises on purpose."""


class InvalidOption(MagistralError):
    """An option or argument outside what it may be."""


class ModelClosed(MagistralError):
    """The model has been closed, so it cannot be asked any more."""


class DeviceError(MagistralError):
    """MLX failed while it computed; the model can be asked again."""


class UnsupportedPlatform(MagistralError):
    """This machine, system or Python cannot run MLX."""


class MissingExtra(MagistralError):
    """A command needs packages that were not installed with this one."""


class ModelNotFound(MagistralError):
    """No checkpoint goes by that name, here or on the hub."""


class HubError(MagistralError):
    """The hub could not be reached, or refused."""


class CheckpointError(MagistralError):
    """A folder that is no checkpoint, or one that is damaged or incomplete."""


class UnsupportedModel(CheckpointError):
    """A checkpoint of another architecture."""


class TokenizerError(MagistralError):
    """The tokenizer is missing or cannot be read."""


class ImageError(MagistralError):
    """An image that cannot be opened, or that this model cannot see."""


class PromptError(MagistralError):
    """Messages that cannot be turned into a prompt."""


class ContextOverflow(PromptError):
    """The prompt is longer than the context.

    `prompt_tokens` and `context` are the figures. `drop_turns` is the number of oldest turns
    without which it would fit; 0 if not even the last turn does.
    """

    def __init__(
        self, message: str, prompt_tokens: int = 0, context: int = 0, drop_turns: int = 0
    ) -> None:
        super().__init__(message)
        self.prompt_tokens = prompt_tokens
        self.context = context
        self.drop_turns = drop_turns


class TargetExists(MagistralError):
    """The place to write to is taken."""


class StorageError(MagistralError):
    """No room on the disk, or no permission to read or write there."""


class OutOfMemory(MagistralError):
    """What was asked for does not fit into this machine's memory."""


class BenchmarkError(MagistralError):
    """A runtime that is being measured failed, or computed something else than ours."""
