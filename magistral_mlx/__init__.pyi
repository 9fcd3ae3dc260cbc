"""The public names, for type checkers and editors; `__init__.py` imports them when used."""

from magistral_mlx.api.async_stream import AsyncStream as AsyncStream
from magistral_mlx.api.conversation import Conversation as Conversation
from magistral_mlx.api.magistral import Magistral as Magistral
from magistral_mlx.api.options import DEFAULT as DEFAULT
from magistral_mlx.api.options import Options as Options
from magistral_mlx.api.stream import Stream as Stream
from magistral_mlx.chat.messages import Assistant as Assistant
from magistral_mlx.chat.messages import Image as Image
from magistral_mlx.chat.messages import Message as Message
from magistral_mlx.chat.messages import RawPrompt as RawPrompt
from magistral_mlx.chat.messages import System as System
from magistral_mlx.chat.messages import Thought as Thought
from magistral_mlx.chat.messages import Tool as Tool
from magistral_mlx.chat.messages import ToolResult as ToolResult
from magistral_mlx.chat.messages import User as User
from magistral_mlx.errors import CheckpointError as CheckpointError
from magistral_mlx.errors import ContextOverflow as ContextOverflow
from magistral_mlx.errors import DeviceError as DeviceError
from magistral_mlx.errors import HubError as HubError
from magistral_mlx.errors import ImageError as ImageError
from magistral_mlx.errors import InvalidOption as InvalidOption
from magistral_mlx.errors import MagistralError as MagistralError
from magistral_mlx.errors import MissingExtra as MissingExtra
from magistral_mlx.errors import ModelClosed as ModelClosed
from magistral_mlx.errors import ModelNotFound as ModelNotFound
from magistral_mlx.errors import OutOfMemory as OutOfMemory
from magistral_mlx.errors import PromptError as PromptError
from magistral_mlx.errors import StorageError as StorageError
from magistral_mlx.errors import TokenizerError as TokenizerError
from magistral_mlx.errors import UnsupportedModel as UnsupportedModel
from magistral_mlx.errors import UnsupportedPlatform as UnsupportedPlatform
from magistral_mlx.events import Event as Event
from magistral_mlx.events import Finished as Finished
from magistral_mlx.events import MalformedCall as MalformedCall
from magistral_mlx.events import Notice as Notice
from magistral_mlx.events import Prefill as Prefill
from magistral_mlx.events import Sample as Sample
from magistral_mlx.events import Stats as Stats
from magistral_mlx.events import Text as Text
from magistral_mlx.events import Thinking as Thinking
from magistral_mlx.events import TokenLogprob as TokenLogprob
from magistral_mlx.events import ToolCall as ToolCall
from magistral_mlx.events import ToolCallPart as ToolCallPart
from magistral_mlx.events import TurnsDropped as TurnsDropped
from magistral_mlx.runtime.progress import LoadProgress as LoadProgress
from magistral_mlx.runtime.result import Result as Result
from magistral_mlx.runtime.result import Timings as Timings
from magistral_mlx.runtime.result import Usage as Usage

__version__: str
__all__: list[str]
