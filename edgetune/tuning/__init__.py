"""Searches a recipe's settings for those that do best on the validation split."""
