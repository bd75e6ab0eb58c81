"""Decentralized algorithms: one method, one file, one readable step."""
