"""Trains and scores the demo checkpoint. Not part of the wheel; needs the `parity` extra."""
