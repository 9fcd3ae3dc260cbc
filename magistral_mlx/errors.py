"""All errors that this package raises on purpose.

Each message says what was wrong, what was expected and what to do next, on one line. The command
line prints it and exits with status 2; an application catches `MagistralError` or a subclass.
"""


class MagistralError(Exception):
    """Base class of all errors that this package raises on purpose."""


class InvalidOption(MagistralError):
    """An option or argument with an invalid value."""


class LoadAborted(MagistralError):
    """Loading was stopped before its end."""


class StreamInUse(MagistralError):
    """Another thread or task is reading the stream."""


class ToolServerError(MagistralError):
    """An MCP server that cannot be started or reached, or has no such tool."""


class ToolRoundsExceeded(MagistralError):
    """The model goes on to call tools after the allowed number of rounds."""


class AnswerError(MagistralError):
    """An answer that is no instance of the class that was asked for."""


class ModelClosed(MagistralError):
    """The model has been closed and takes no more requests."""


class DeviceError(MagistralError):
    """MLX failed during a computation; the model takes further requests."""


class RankLost(MagistralError):
    """Another of the processes that compute a model together has gone, or cannot be reached."""


class UnsupportedPlatform(MagistralError):
    """This machine, system or Python cannot run MLX."""


class MissingExtra(MagistralError):
    """A command needs packages that were not installed with this one."""


class ModelNotFound(MagistralError):
    """No checkpoint of that name, locally or on the hub."""


class HubError(MagistralError):
    """The hub could not be reached, or refused a request."""


class CheckpointError(MagistralError):
    """A folder that is not a checkpoint, or a damaged or incomplete checkpoint."""


class UnsupportedModel(CheckpointError):
    """A checkpoint of another architecture."""


class TokenizerError(MagistralError):
    """The tokenizer is missing or cannot be read."""


class ImageError(MagistralError):
    """An image that cannot be opened, or images for a text-only model.

    where: the field that holds the image, such as messages[0].content[1].image_url; None for none.
    """

    where: str | None = None


class DocumentError(MagistralError):
    """A file that cannot be read into a prompt."""


class PromptError(MagistralError):
    """Messages that cannot be turned into a prompt."""


class ContextOverflow(PromptError):
    """The prompt is longer than the context.

    prompt_tokens, context: their lengths in tokens. drop_turns: number of oldest turns to remove
    so that the prompt fits; 0 if not even the last turn does.
    """

    def __init__(
        self, message: str, prompt_tokens: int = 0, context: int = 0, drop_turns: int = 0
    ) -> None:
        super().__init__(message)
        self.prompt_tokens = prompt_tokens
        self.context = context
        self.drop_turns = drop_turns


class TargetExists(MagistralError):
    """The target of a write already exists."""


class StorageError(MagistralError):
    """The disk is full, or there is no permission to read or write."""


class OutOfMemory(MagistralError):
    """A request or model that does not fit into this machine's memory."""


class MachineError(MagistralError):
    """A machine of several cannot be reached, differs from the first one, or was lost."""


class BenchmarkError(MagistralError):
    """A benchmarked runtime failed, or computed a different result than ours."""


class EvaluationError(MagistralError):
    """A task of an evaluation whose data, sandbox or log is missing or damaged."""
