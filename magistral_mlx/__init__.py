"""Magistral Small 1.2 on MLX."""

__version__ = "0.1.0"
