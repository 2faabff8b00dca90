"""Substations: claim requests, charge them under a shared power limit, and tell the load."""
