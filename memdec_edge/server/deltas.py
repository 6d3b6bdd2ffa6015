"""The text of an answer as it comes, divided into reasoning, content and tool calls. Knows nothing of HTTP."""

from dataclasses import dataclass, field

from memdec_edge.chat.reasoning import Reasoning
from memdec_edge.server.tools import Call, CallReader, Toolbox, joined


@dataclass
class Delta:
    """What may be told now. calls: new ones, and pieces of those that began before."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)


class Parts:
    """Divides one answer. whole: all that was told so far; thinks: the prompt began the reasoning already."""

    def __init__(self, thinks: bool, box: Toolbox) -> None:
        self.whole = Delta()
        self._reasoning, self._calls = Reasoning(thinks), CallReader(box)

    def push(self, text: str) -> Delta:
        """What a piece of text adds."""
        reasoning, rest = self._reasoning.push(text)
        content, calls = self._calls.push(rest)
        return self._told(Delta(content, reasoning, calls))

    def end(self, text: str) -> Delta:
        """What the last piece adds, and what was held back."""
        first = self.push(text)
        reasoning, rest = self._reasoning.flush()
        content, calls = self._calls.push(rest)
        more, others = self._calls.flush()
        last = self._told(Delta(content + more, reasoning, calls + others))
        return Delta(first.content + last.content, first.reasoning + last.reasoning, first.calls + last.calls)

    def _told(self, delta: Delta) -> Delta:
        self.whole.content += delta.content
        self.whole.reasoning += delta.reasoning
        self.whole.calls = joined([*self.whole.calls, *delta.calls])
        return delta

    def finish_reason(self, reason: str | None) -> str | None:
        """Why the answer ended, as OpenAI says it."""
        return "tool_calls" if self.whole.calls and reason == "stop" else reason
