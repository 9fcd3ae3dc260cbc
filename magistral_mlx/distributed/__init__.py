"""One model computed by several processes, the ranks, on one machine or several.

rank 0      runs the whole program: queue, scheduling, sampling, prefix cache. Its model and caches
            tell the other ranks whatever they do (`leader`, `model`).
the others  hold their part of the model and of each cache, and do what they are told (`follower`).

Tensors go over MLX's own links (`group`), words over a connection beside them (`link`).
"""

from magistral_mlx.distributed.place import Place, place

__all__ = ["Place", "place"]
