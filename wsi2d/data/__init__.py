"""Tables and embeddings become cohorts, folds and bags."""
