"""Checkpoints in llama.cpp's GGUF files: read, checked, and laid out anew for MLX.

The way of the data: `header` reads what a file holds, `files` gathers the files of one model,
`config` tells the model from the metadata, `checkpoint` makes a `Checkpoint` of it all, `blocks`
decodes ggml's block types, and `layout` turns them into MLX's quantized form.
"""
