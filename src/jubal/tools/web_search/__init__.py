"""Searching the web and reading pages of it: the family (family.py), providers of results, pages, and an index of one's own."""
