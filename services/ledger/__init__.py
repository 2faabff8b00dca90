"""The ledger: one row per request, changed only by compare-and-set, is what a request's state *is*."""
