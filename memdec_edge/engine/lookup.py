"""What the indexes of a session say along its tokens: matches, drafts, sources.

A match depends on the tokens before it alone, so nothing here has to be saved. Knows nothing of models and weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from memdec_edge.engine.blend import Index
from memdec_edge.mixture.match import Match, Matcher, class_of
from memdec_edge.mixture.rows import SILENT, Found

LEAST_SOURCE = 8  # tokens of a match that are worth naming their document; shorter ones are common phrases


@dataclass(frozen=True, slots=True)
class Source:
    """Where the tokens that end with one token stand in an indexed document, word for word."""

    index: Path
    document: str
    start: int  # tokens of the document: the match is [start, end), and the token is its last
    end: int
    after: int  # position in the index's tokens of the one that follows there


class Lookup:
    """The matchers of one session, one for each index.

    The session's tokens are given with each call. Those that were read before are the same, up to rewind().
    """

    def __init__(self, indexes: Sequence[Index] = ()) -> None:
        self.indexes = tuple(indexes)
        self._matchers = [Matcher(index.file) for index in indexes]

    def matches(self, tokens: Sequence[int], length: int) -> list[Match]:
        """Of each index, after tokens[:length]. Raises ModelFileError for a file that was cut short meanwhile."""
        for matcher in self._matchers:
            if len(matcher) > length:
                matcher.rewind(length)
            matcher.extend(tokens[len(matcher) : length])
        return [matcher.match() for matcher in self._matchers]

    def found(self, tokens: Sequence[int], length: int) -> list[Found]:
        """The same as a mixture takes it."""
        return [_found(match) for match in self.matches(tokens, length)]

    def draft(self, tokens: Sequence[int], most: int) -> tuple[list[int], list[list[Found]]]:
        """The likeliest continuation of the longest match, token by token, at most `most` of them.

        Beside them what the indexes say after `tokens` and after each drafted one. No token without a match.
        """
        drafted, matches = list[int](), self.matches(tokens, len(tokens))
        found = [[_found(match) for match in matches]]
        while len(drafted) < most and (longest := max(matches, key=lambda match: match.length)).length:
            drafted.append(int(longest.ids[np.argmax(longest.probs)]))
            for matcher in self._matchers:
                matcher.extend(drafted[-1:])
            matches = [matcher.match() for matcher in self._matchers]
            found.append([_found(match) for match in matches])
        return drafted, found

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        for matcher in self._matchers:
            matcher.rewind(min(length, len(matcher)))

    def source(self, tokens: Sequence[int], length: int, before: Source | None = None) -> Source | None:
        """Where tokens[length - 1] and those before it stand, if LEAST_SOURCE or more of them do.

        before: the source of the token before it; the same document is named as long as it goes on there.
        """
        if not self.indexes:
            return None
        pairs = list(zip(self.indexes, self.matches(tokens, length), strict=True))
        index, match = max(pairs, key=lambda pair: pair[1].length)
        if match.length < LEAST_SOURCE:
            return None
        for other in self.indexes:
            if before and other.path == before.index and int(other.file.tokens[before.after]) == tokens[length - 1]:
                return replace(before, end=before.end + 1, after=before.after + 1)
        document, offset = index.file.place(match.where - 1)
        return Source(index.path, document, offset + 1 - match.length, offset + 1, match.where)


def passages(found: list[Source], source: Source | None) -> list[Source]:
    """The passages so far with that of one more token, which may lengthen the last."""
    if source is None:
        return found
    last = found[-1] if found else None
    if last and (last.index, last.document, last.start) == (source.index, source.document, source.start):
        return [*found[:-1], source]
    return [*found, source]


def _found(match: Match) -> Found:
    return Found(class_of(match.length), match.ids, match.probs) if match.length else SILENT
