"""Logits and targets become a number to lower."""
