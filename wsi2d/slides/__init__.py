"""A slide file becomes a grid of patches."""
