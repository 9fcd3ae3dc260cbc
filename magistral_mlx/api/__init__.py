"""The Python API: load a model, ask it, read events.

with Magistral.load("demo") as magistral:
    print(magistral.generate("What is 37 + 85?").text)

`magistral_mlx` itself offers these names and more; this package is how they are made.
"""

from magistral_mlx.api.conversation import Conversation
from magistral_mlx.api.magistral import Magistral
from magistral_mlx.api.options import DEFAULT, Options
from magistral_mlx.api.progress import LoadProgress
from magistral_mlx.api.result import Result, Timings, Usage
from magistral_mlx.api.stream import Stream

__all__ = [
    "DEFAULT",
    "Conversation",
    "LoadProgress",
    "Magistral",
    "Options",
    "Result",
    "Stream",
    "Timings",
    "Usage",
]
