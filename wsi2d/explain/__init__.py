"""A prediction becomes a map over the slide."""
