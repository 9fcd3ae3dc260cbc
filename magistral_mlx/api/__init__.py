"""The Python API: load a model, ask it, read events.

Its public names are those of `magistral_mlx` itself, which imports them when they are first used.
"""
