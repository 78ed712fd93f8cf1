"""What is kept for callers between their requests: in the same store as the accounts."""
