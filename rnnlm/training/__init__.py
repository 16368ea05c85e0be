"""The training loop, without Ray."""
