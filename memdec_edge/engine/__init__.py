"""Base and memories as one model.

engine.py    Engine: contexts, memories, admission; decodes for many sessions at a time
session.py  Session: one timeline with its weights, sampler and place in the contexts
rounds.py    one round: draft with the memories, verify with the base, roll back
drafting.py  how many tokens to draft
registry.py  memories added, re-weighted and removed while the engine runs

Knows nothing of text, HTTP or terminals.
"""

from memdec_edge.engine.engine import Counters, Engine
from memdec_edge.engine.registry import Memory
from memdec_edge.engine.session import Sample, Session

__all__ = ["Counters", "Engine", "Memory", "Sample", "Session"]
