"""Figures, baselines, gate, tables and pictures."""
