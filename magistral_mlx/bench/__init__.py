"""How fast a runtime is on this machine: ours and its peers, measured alike.

Each runtime runs in a process of its own (`worker`, `ours`) and is asked by `process`; rounds go on
until their spread is small (`rounds`), while `conditions` watches heat and memory.
"""
