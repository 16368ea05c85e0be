"""Corpora that come with the project."""
