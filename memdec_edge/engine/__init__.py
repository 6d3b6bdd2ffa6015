"""Base, memories and indexes as one model.

engine.py    Engine: opens the models, owns the contexts, makes sessions and steps them
cells.py     admission: which session may hold how many tokens, and in which slot
session.py   Session: one timeline with its mixture, its sampler and its place in the contexts
reading.py   how prompts are read: pieces of several in one batch
round.py     one round of all sessions: draft with the memories, verify with the base, roll back
turn.py      what one session does in a round
drafting.py  how many tokens to draft
scoring.py   what the mixture says of the tokens of a prompt
registry.py  memories and indexes added, re-weighted and removed while the engine runs
blend.py     what they weigh
lookup.py    what the indexes of a session say: matches, drafts, sources

Knows nothing of text, HTTP or terminals.
"""

from memdec_edge.engine.blend import Index, Memory, MemoryMixture
from memdec_edge.engine.engine import Engine
from memdec_edge.engine.lookup import Source
from memdec_edge.engine.round import Counters
from memdec_edge.engine.session import Session
from memdec_edge.mixture.rows import Sampled

__all__ = ["Counters", "Engine", "Index", "Memory", "MemoryMixture", "Sampled", "Session", "Source"]
