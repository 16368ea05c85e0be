"""Strings to ids and back, without tensors."""
