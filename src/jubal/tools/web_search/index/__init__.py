"""An index of one's own: what is in it (store.py), and what fills it: a crawler (crawler.py, robots.py), folders (folder.py)."""
