"""Calibrated quantization: scales chosen by what the model's own inputs make of an error.

`text` gives token sequences, `layers` runs them through one layer at a time and gathers the mean
square of each input column, `search` and `gptq` choose codes and scales by those weights, `quality`
compares next-token distributions, and `pipeline` puts it together, resumable at any point.
"""
