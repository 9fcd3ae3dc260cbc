"""What an error keeps alive once nothing but a description of it is wanted."""

from __future__ import annotations

import traceback
from typing import TypeVar

from magistral_mlx.errors import MagistralError

_Error = TypeVar("_Error", bound=BaseException)


def without_frames(error: _Error) -> _Error:
    """Take the tracebacks off an error and off what it came from -> the same error.

    The frames of a traceback hold all that their functions had: caches, or a whole model. What was
    not raised on purpose keeps the text of its traceback as a note, which is printed with it.
    """
    if error.__traceback__ is not None and not isinstance(error, MagistralError):
        error.add_note("".join(traceback.format_exception(error)).rstrip())
    rest: list[BaseException | None] = [error]
    seen: set[int] = set()
    while rest:
        one = rest.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            rest += [one.__cause__, one.__context__]
    return error
