"""A synthetic cohort from real stained tissue texture, and the whole pipeline on it."""
