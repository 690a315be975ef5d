"""Judging a program on data it was not trained on."""
