"""The mathematics of the mixture: one next-token distribution from those of a base, its memories and indexes.

rows.py       what the shelf's functions take and give
weights.py    Mixture: the weights of memories and indexes; SoftBayes: how weights learn
mixing.py     mix, row_stats: the mixed row and what is known of its parts
sampling.py   sample, draft, verify: the seeded next token
online.py     learn: weights that follow a text
match.py      Matcher: the longest match of a text in documents, and what follows it there
reference.py  all of them but match.py in float64, the specification
kernels.py    which implementation runs: the C extension, else fallback.py

Knows nothing of models.
"""
