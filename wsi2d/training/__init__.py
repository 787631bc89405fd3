"""One fold, all folds, and what is kept of them."""
