"""The Python API: load a model, ask it, read events.

with Magistral.load("demo") as magistral:
    print(magistral.generate("What is 37 + 85?").text)
"""

from magistral_mlx.api.magistral import Magistral, Options, Result, Stream

__all__ = ["Magistral", "Options", "Result", "Stream"]
