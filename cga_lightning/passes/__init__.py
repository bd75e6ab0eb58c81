"""Passes of the user's module: at the own model and at those of neighbors, for one agent or many."""
