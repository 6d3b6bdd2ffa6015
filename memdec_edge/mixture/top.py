"""The likeliest tokens of a mixture and of each of its models, for sampled tokens. Knows nothing of how they are shown.

N entries of a row are found by partial selection: nothing is sorted, and nothing is kept but the N.
"""

from collections.abc import Sequence

import numpy as np

from memdec_edge.mixture.mixing import mix, offset
from memdec_edge.mixture.rows import N_CLASSES, Found, Ids, Likely, Row, RowStats, Sampled, Top
from memdec_edge.mixture.weights import Mixture

BLOCK = 64  # logits whose maximum stands for them


def largest(row: Row, count: int) -> Ids:
    """Ids of the `count` largest entries of a row, the largest first and equal ones by rising id; -inf is left out.

    row: float32 [n]; count: 1 or more. The n-th largest maximum of blocks bounds the n-th largest entry from below, so
    few entries are left to sort.
    """
    whole = len(row) // BLOCK * BLOCK
    maxima = row[:whole].reshape(BLOCK, -1).max(axis=0)  # each of every len/BLOCK-th logit: vectors, not loops
    bound = np.partition(maxima, -count)[-count] if count < len(maxima) else -np.inf
    found = np.flatnonzero(row >= bound)
    ids = found[np.lexsort((found, -row[found]))][:count].astype(np.int32)
    kept: Ids = ids[row[ids] > -np.inf]
    return kept


def with_tops(
    samples: Sequence[Sampled],
    base: Row,
    memories: Sequence[Row],
    found: Sequence[Sequence[Found]],
    temperatures: tuple[float, ...],
    count: int,
    out: Row,
) -> list[Sampled]:
    """`samples`, each with the `count` likeliest tokens of its row.

    base: logits float32 [n, n_vocab], row j of sample j; memories: float32 [n, any length] each; found: what each index
    says there, [n, indexes], empty without indexes; out: float32 [n_vocab], overwritten. Raises NumericsError as `mix`.
    """
    given = []
    for index, sample in enumerate(samples):
        rows = [base[index], *(memory[index] for memory in memories)]
        own, said = sample.weights[1:], found[index] if found else []
        mixture = Mixture(own[: len(memories)], temperatures, (own,) * (N_CLASSES - 1) if said else ())
        stats = mix(rows[0], rows[1:], mixture, out, [said] if said else None)
        given.append(sample._replace(top=top_of(out, offset(sample.weights, stats), rows, stats, temperatures, count)))
    return given


def top_of(
    mixed: Row, lifted: float, rows: Sequence[Row], stats: Sequence[RowStats], temperatures: Sequence[float], count: int
) -> Top:
    """The `count` likeliest tokens at one position.

    mixed: float32 [n_vocab], as mix() wrote it; lifted: its offset(); rows, stats: what was mixed there, the base's
    first; temperatures: of the memories.
    """
    models = (
        _likely(row[: len(mixed)], stat, temperature, count)
        for row, stat, temperature in zip(rows, stats, (1.0, *temperatures), strict=True)
    )
    return Top(
        tuple(Likely(int(token), float(mixed[token]) - lifted) for token in largest(mixed, count)), tuple(models)
    )


def _likely(row: Row, stats: RowStats, temperature: float, count: int) -> tuple[Likely, ...]:
    return tuple(Likely(int(token), stats.log_prob(row, int(token), temperature)) for token in largest(row, count))
