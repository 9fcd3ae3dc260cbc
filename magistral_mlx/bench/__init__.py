"""Benchmarks of this runtime and its peers on this machine, measured alike.

Each runtime runs in a process of its own (`worker`, `ours`), controlled by `process`. Rounds are
repeated until their spread is small (`rounds`), and `conditions` watches heat and memory.
"""
