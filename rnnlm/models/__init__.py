"""Whole models, built from their configuration."""
