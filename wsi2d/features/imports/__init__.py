"""Features that other tools extracted: recognised, snapped to the grid, imported or read where they lie."""
