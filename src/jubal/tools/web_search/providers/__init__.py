"""Where search results come from: each behind the promise in base.py, asked in turn by chain.py."""
