"""Memory as a contract: what this machine offers, what will fit, and a refusal of what will not."""
