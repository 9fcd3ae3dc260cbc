"""Next-token distributions of models compared on the same text, without a data set.

The first model's last hidden states are kept on disk, and its output matrix is loaded beside each
of the other models: the first one's logits are computed from both, as they were in its own pass.
A token takes `hidden_size` values on disk, a 25th of its logits in 16 bits, and nothing is
approximated. Two decoders are never in memory together.
"""
