"""Speculative decoding: several tokens per pass, with the same tokens as plain decoding.

Draft tokens come from earlier text (n-grams) or from a draft model. One pass over the pending token
and the draft tokens gives the logits of all of them, and each position is sampled as usual. A draw
is a function of its logits, so a draft token is accepted exactly if it equals the draw, and the
tokens up to the first mismatch are those of plain decoding (arXiv 2211.17192 for the scheme; the
draws here need no correction).
"""
