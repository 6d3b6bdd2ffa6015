"""The Python API.

    results        what it returns: chunks of a stream, whole completions, timings
    streams        sessions of an engine as streams of text
    asynchronous   a stream as a whole, and for asyncio
    model          LanguageModel: a base with memories, opened by open_model()
    conversation   a chat that goes on

Knows nothing of terminals and HTTP.
"""

from memdec_edge.api.conversation import Conversation
from memdec_edge.api.model import LanguageModel, open_model

__all__ = ["Conversation", "LanguageModel", "open_model"]
