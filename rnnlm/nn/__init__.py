"""Layers, in torch alone."""
