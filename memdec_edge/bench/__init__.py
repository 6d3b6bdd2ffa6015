"""Speed of base, memories and mixture, with drafts and without, side by side on one text.

measure.py    bench(): lets the systems take turns and makes a report
systems.py    one run of an engine or of llama-cpp-python, the cost of a number of rows
figures.py    tokens per second, time split, prediction
bandwidth.py  what the machine's memory gives, what a model reads

Knows nothing of terminals.
"""

from memdec_edge.bench.measure import LEARNING, Report, bench

__all__ = ["LEARNING", "Report", "bench"]
