"""LoRA and DoRA adapters on the disk, as PEFT and mlx-lm write them.

`config` reads their adapter_config.json, `stored` checks their tensors against the model, and
`load` brings them into memory.
"""
