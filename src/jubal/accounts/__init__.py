"""Teams, keys, what they may do, and what they used. Knows nothing of HTTP or of dialects."""
