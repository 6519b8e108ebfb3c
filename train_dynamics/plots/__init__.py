"""Figures: results in, pictures out."""
