"""Magistral Small 1.2 on MLX.

from magistral_mlx import Magistral

with Magistral.load("demo") as magistral:
    for event in magistral.stream("What is 37 + 85?"):
        print(event)

The names below are imported when they are first used, so `import magistral_mlx` costs nothing.
Type checkers and editors read the stub beside this file.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOMES = {
    "magistral_mlx.api.async_stream": ("AsyncStream",),
    "magistral_mlx.api.conversation": ("Conversation",),
    "magistral_mlx.api.deletion": ("delete_model",),
    "magistral_mlx.api.load_options": ("LoadOptions",),
    "magistral_mlx.api.magistral": ("Magistral",),
    "magistral_mlx.api.models": ("download_model", "list_models", "plan_model"),
    "magistral_mlx.api.options": ("DEFAULT", "Options"),
    "magistral_mlx.api.stream": ("Stream",),
    "magistral_mlx.library": ("FoundModel",),
    "magistral_mlx.memory.plan": ("Plan",),
    "magistral_mlx.runtime.activity": ("Activity", "MemoryUse"),
    "magistral_mlx.runtime.progress": ("LoadProgress",),
    "magistral_mlx.runtime.request": ("Request", "RequestEnd", "RequestStatus", "RequestTimes"),
    "magistral_mlx.runtime.result": ("Result", "Timings", "Usage"),
    "magistral_mlx.chat.documents": ("read_document",),
    "magistral_mlx.chat.prompt": ("Prompt",),
    "magistral_mlx.chat.tokenizer": ("Tokenizer",),
    "magistral_mlx.chat.messages": (
        "Assistant",
        "Message",
        "Image",
        "RawPrompt",
        "System",
        "Thought",
        "Tool",
        "ToolResult",
        "User",
    ),
    "magistral_mlx.errors": (
        "AnswerError",
        "BenchmarkError",
        "CheckpointError",
        "ContextOverflow",
        "DeviceError",
        "DocumentError",
        "EvaluationError",
        "HubError",
        "InvalidOption",
        "LoadAborted",
        "MachineError",
        "MagistralError",
        "MissingExtra",
        "ModelClosed",
        "ModelNotFound",
        "OutOfMemory",
        "ImageError",
        "PromptError",
        "RankLost",
        "StorageError",
        "StreamInUse",
        "TargetExists",
        "TokenizerError",
        "ToolRoundsExceeded",
        "ToolServerError",
        "UnsupportedModel",
        "UnsupportedPlatform",
    ),
    "magistral_mlx.events": (
        "Event",
        "Finished",
        "MalformedCall",
        "Notice",
        "Prefill",
        "PromptLogprobs",
        "PromptToken",
        "Sample",
        "Stats",
        "Text",
        "Thinking",
        "TokenLogprob",
        "ToolCall",
        "ToolCallPart",
        "TurnsDropped",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
