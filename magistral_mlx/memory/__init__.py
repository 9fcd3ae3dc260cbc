"""Memory planning: limits of the machine, predicted peaks, and refusals of what does not fit."""
