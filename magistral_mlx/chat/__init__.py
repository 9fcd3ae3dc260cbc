"""From messages and images to token ids and pixels, and from token ids back to events.

messages -> request (mistral-common's types) -> prompt; parser turns generated ids into events.
Nothing here knows of MLX: ids are Python ints or numpy arrays, pixels are numpy arrays.
"""
