"""x_search: posts, users and threads of X, from a local archive of posts or from the official X API v2."""
