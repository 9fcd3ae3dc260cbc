"""Every error that a user can meet.

Each message says what was wrong, what was expected and what to do next, on one line. The command
line prints it and exits with status 2; an app catches `MagistralError` or one of its kinds.
"""


class MagistralError(Exception):
    """The base of every error that this package raises on purpose."""


class InvalidOption(MagistralError):
    """An option or argument outside what it may be."""


class UnsupportedPlatform(MagistralError):
    """This machine, system or Python cannot run MLX."""


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


class PictureError(MagistralError):
    """A picture that cannot be opened, or that this model cannot see."""


class PromptError(MagistralError):
    """Messages that cannot be turned into a prompt."""


class ContextOverflow(PromptError):
    """The prompt is longer than the context."""


class TargetExists(MagistralError):
    """The place to write to is taken."""


class StorageError(MagistralError):
    """No room on the disk, or no permission to read or write there."""
