"""What generates text: one file per kind of engine, each streaming one turn. Knows nothing of keys, money or dialects."""
