"""Log-probs of answers in chats, as base and memories see them: each chat by itself, from its beginning.

Questions and what a template adds are read and not scored. Knows nothing of templates and documents.
"""

from collections.abc import Iterable

import numpy as np

from memdec_edge.chat import Transcript
from memdec_edge.engine import Engine
from memdec_edge.evaluation.perplexity import LogProbs, TokenScores, token_scores
from memdec_edge.evaluation.windows import Window
from memdec_edge.progress import progress


def score_answers(engine: Engine, chats: Iterable[Transcript], most: int) -> TokenScores | None:
    """One pass of each model over chats, the first ones, until about `most` tokens of answers are scored.

    A chat longer than the context is read as far as that goes. Each chat is a window of its own for the standard error.
    None where there is no answer. Raises BusyError while a session is open.
    """
    engine.cells.require_idle()
    chosen: list[tuple[list[int], Window, list[bool]]] = []
    left = most
    for chat in chats:
        answers = [False, *chat.answers[1 : engine.longest()]]
        if left <= 0:
            break
        if any(answers):
            first, end = answers.index(True), len(answers) - answers[::-1].index(True)
            chosen.append((chat.tokens[:end], Window(0, first, end), answers[first:end]))
            left -= sum(answers)
    if not chosen:
        return None
    columns: list[list[LogProbs]] = [[] for _ in range(1 + len(engine.memories))]
    with progress("answers", sum(len(scored) for _, _, scored in chosen) * len(columns)) as advance:
        for tokens, window, scored in chosen:
            [base], _ = token_scores(engine.context, tokens, [window], advance)
            columns[0].append(base[scored])
            for memory, column in zip(engine.memories, columns[1:], strict=True):
                warmth = (memory.metadata.temperature,)
                [found], _ = token_scores(memory.context, tokens, [window], advance, warmth, engine.base.n_vocab)
                column.append(found[scored])
    base, *memories = (np.concatenate(column) for column in columns)
    windows = [Window(0, 0, sum(scored)) for _, _, scored in chosen]
    n_bytes = sum(
        len(engine.base.piece(token))
        for tokens, window, scored in chosen
        for token, counts in zip(tokens[window.scored :], scored, strict=True)
        if counts
    )
    return TokenScores(windows, base, memories, n_bytes, len(base))
