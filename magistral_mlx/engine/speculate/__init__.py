"""More than one token for each pass over the weights, with the same tokens as plain decoding.

A proposer guesses what comes next; one pass over the pending token and the guesses gives the
logits of all of them, and each position is drawn as ever. A draw is a function of its logits, so
a guess is right exactly where it equals the draw, and the tokens up to the first wrong one are
those of plain decoding (arXiv 2211.17192 for the scheme; the draws here need no correction).
"""
