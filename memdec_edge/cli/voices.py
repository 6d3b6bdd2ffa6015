"""What commands say on stderr of the voices of a mixture: what they weigh, where that comes from, whether they help.

Knows nothing of commands.
"""

from typing import TYPE_CHECKING

from memdec_edge.cli.output import note

if TYPE_CHECKING:
    from memdec_edge.engine import Memory, MemoryMixture


def tell_voices(mixture: "MemoryMixture", total: float | None, verbose: bool, off: bool = False) -> None:
    """Name each memory and index with its lambda. total: of MixtureOptions. off: none of them takes part."""
    how = "auto, from " if mixture.learning else ""
    for opened, weight in zip(mixture.memories, mixture.weights, strict=True):
        where = f" ({_origin(opened, total)})" if verbose else ""
        note(f"memory {opened.path} at lambda {'off' if off else f'{how}{weight:.3g}{where}'}")
    for index, weight in zip(mixture.indexes, mixture.longest, strict=True):
        note(f"index {index.path} at lambda {'off' if off else f'{how}{weight:.3g} after its longest matches'}")


def explain_weights(
    weights: tuple[float, ...], matched: tuple[tuple[float, ...], ...], helps: bool, verbose: bool, advice: str
) -> None:
    """Say how the voices weighed at the end, if asked, and that a memory does not help here, with `advice`."""
    from memdec_edge.mixture.match import CLASSES

    if verbose and len(weights) > 1:
        voices, when = ("base, memories and indexes", ", without a match") if matched else ("base and memories", "")
        note(f"weights of {voices} at the end{when}: {', '.join(f'{weight:.3f}' for weight in weights)}")
    for (low, _), vector in zip(CLASSES, matched if verbose else (), strict=False):
        note(f"after a match of {low} or more: {', '.join(f'{weight:.3f}' for weight in (1 - sum(vector), *vector))}")
    if not helps:
        note(f"this memory does not help here: it never weighed a tenth; {advice}")


def _origin(opened: "Memory", total: float | None) -> str:
    """Where a memory's weight comes from."""
    if total is not None or opened.options.weight is not None:
        return "as given"
    if opened.metadata.first_weight is not None:
        return "tuned"
    return f"{'' if opened.metadata.weight is not None else 'the default, since '}{opened.metadata.origin}"
