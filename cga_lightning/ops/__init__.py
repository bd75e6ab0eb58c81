"""Operators on flat gradients."""
