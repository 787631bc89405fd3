"""Patches become embeddings on disk."""
