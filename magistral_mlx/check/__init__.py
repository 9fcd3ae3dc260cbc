"""Checks of this machine with a model's kernels, caches, plans and answers (`doctor --check`)."""
