"""Decentralized learning by Cross-Gradient Aggregation, as a PyTorch Lightning strategy."""
