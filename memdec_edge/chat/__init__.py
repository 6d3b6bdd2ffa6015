"""Chat: messages become the tokens of a prompt, and an answer is divided into reasoning and content.

    marked       text of which each character knows where it comes from
    sandbox      a chat template's own Jinja: templates of strangers run, within limits
    messages     what a caller may give as messages
    template     the template of a GGUF, and messages rendered with it
    prompt       a rendered text as tokens, and how much each counts for the weights
    transcript   a whole chat as tokens, and which of them are answers
    reasoning    the part of an answer between <think> and </think>

Knows nothing of engines, terminals and HTTP.
"""

from memdec_edge.chat.messages import Message, Messages
from memdec_edge.chat.prompt import ChatPrompt, Tokenizer
from memdec_edge.chat.template import ChatTemplate, Rendered, Segment
from memdec_edge.chat.transcript import Transcriber, Transcript

__all__ = [
    "ChatPrompt",
    "ChatTemplate",
    "Message",
    "Messages",
    "Rendered",
    "Segment",
    "Tokenizer",
    "Transcriber",
    "Transcript",
]
