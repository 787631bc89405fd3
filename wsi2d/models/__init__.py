"""Bags become predictions."""
