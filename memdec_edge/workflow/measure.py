"""What a learned memory is worth: which type its file may have, and how base, memory and index do on held-out text.

Knows nothing of plans and reports.
"""

import math
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from memdec_edge.api import open_model
from memdec_edge.chat import Transcriber
from memdec_edge.convert import convert, quantize
from memdec_edge.documents import GENERAL, Document, parts_of, read_documents
from memdec_edge.engine import Engine
from memdec_edge.engine.blend import Index, Memory, resolve
from memdec_edge.errors import CorpusError
from memdec_edge.evaluation.answers import score_answers
from memdec_edge.evaluation.perplexity import Score, TokenScores, join_documents, perplexity, score_tokens, token_scores
from memdec_edge.evaluation.tune import Rule, Tuning, keep, tune
from memdec_edge.gguf import metadata
from memdec_edge.mixture.weights import Mixture
from memdec_edge.notes import warn
from memdec_edge.options import (
    LAMBDAS,
    ConvertOptions,
    EvalOptions,
    GenerationOptions,
    LoadOptions,
    MemoryOptions,
    MixtureOptions,
    QuantizeOptions,
    QuantTypes,
    SamplingOptions,
)
from memdec_edge.progress import progress
from memdec_edge.workflow.probe import context_of
from memdec_edge.workflow.recipes import TYPES, WORTH

PROMPT, LEAST_PASSAGE = 240, 80  # characters of a passage that a continuation begins with at most, and of a passage
Found = dict[str, Any]


def scoring(base: Path, most: int) -> EvalOptions:
    """How at most so many tokens are scored beside a base, whatever it was trained to see."""
    window = min(EvalOptions.window, context_of(base))
    return EvalOptions(window=window, stride=max(1, window // 2), max_tokens=most)


def make_file(base: Path, checkpoint: Path, out: Path, valid: Sequence[str], options: EvalOptions) -> Found:
    """Convert a checkpoint into the smallest GGUF of TYPES that costs at most WORTH against the first, on `valid`.

    Without validation text the first of TYPES is taken, and nothing measured. Returns {"type", "types": [{type, bytes,
    perplexity}]}: perplexity of base and memory at the lambda that is best for that file. Raises what converting and
    loading raise.
    """
    if not valid:
        warn(convert(ConvertOptions(checkpoint, out, TYPES[0], base=base, overwrite=True)).warnings)
        return {"type": TYPES[0], "types": []}
    scratch = out.parent / ".unfinished"  # what a killed run left there is made anew
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        whole = scratch / f"{out.stem}-f16.gguf"
        warn(convert(ConvertOptions(checkpoint, whole, "f16", base=base)).warnings)
        files = {kind: scratch / f"{out.stem}-{kind}.gguf" for kind in TYPES}
        for kind, file in files.items():
            quantize(QuantizeOptions(whole, file, QuantTypes(outtype=kind, quality_tokens=0)))
        whole.unlink()
        scores = _scored_types(base, files, valid, options)
        sizes = {kind: file.stat().st_size for kind, file in files.items()}
        worth = [kind for kind in TYPES if scores[kind] <= (1 + WORTH) * scores[TYPES[0]]]
        chosen = min(worth or TYPES[:1], key=lambda kind: sizes[kind])
        files[chosen].replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    types = [{"type": kind, "bytes": sizes[kind], "perplexity": scores[kind]} for kind in TYPES]
    return {"type": chosen, "types": types}


def _scored_types(
    base: Path, files: dict[str, Path], documents: Sequence[str], options: EvalOptions
) -> dict[str, float]:
    """Perplexity of base and memory together, at each file's own best lambda."""
    found = {}
    with closing(Engine(base, [], LoadOptions(n_ctx=options.window))) as engine:
        scores = score_tokens(engine, documents, options)
        tokens = join_documents(engine, documents)
        with progress("types", len(files) * len(scores.base)) as advance:
            for kind, file in files.items():
                memory = engine.add(MemoryOptions(file, 0.0))
                assert isinstance(memory, Memory)
                [logs], _ = token_scores(memory.context, tokens, scores.windows, advance, n_vocab=engine.base.n_vocab)
                engine.remove(memory)
                sweep = replace(scores, memories=[logs]).sweep(Mixture((1.0,), (1.0,)), LAMBDAS)
                found[kind] = min(value for value in sweep.values() if not math.isnan(value))
    return found


def tuned(base: Path, memory: Path, valid: Sequence[str], options: EvalOptions) -> Found:
    """What tune() finds on validation text and general text; {} where there is too little text."""
    if not valid:
        return {}
    with closing(Engine(base, [MemoryOptions(memory)], LoadOptions(n_ctx=options.window))) as engine:
        try:
            return asdict(tune(engine, valid, read_documents(GENERAL), options))
        except CorpusError:
            return {}


def keep_tuned(memory: Path, found: Found) -> None:
    """Write what tuned() found into the memory's file; the same again changes nothing."""
    if found:
        rules = {name: Rule(**found[name]) for name in ("rule", "default")}
        keep(memory, Tuning(**{**found, **rules}))


def measured(base: Path, memory: Path, index: Path, test: Sequence[str], options: EvalOptions) -> Found:
    """Base, memory and index, alone and together, on held-out documents and on general text.

    perplexity, general: by voice, {perplexity, standard_error}; None: not measured. lambda: that of the fixed mixture.
    helps: whether weights that follow the text make the mixture better than the base by more than the error.
    """
    voices = [MemoryOptions(memory), MemoryOptions(index)]
    with closing(Engine(base, voices, LoadOptions(n_ctx=options.window))) as engine:
        warn(engine.warnings)
        memories, indexes = engine.memories, engine.indexes
        domain = score_tokens(engine, test, options) if _is_text(test) else None
        general = score_tokens(engine, read_documents(GENERAL), replace(options, max_tokens=0))
        found: Found = {
            "lambda": sum(resolve(memories).weights),
            "tokens_scored": len(domain.base) if domain else 0,
            "text_tokens": domain.text_tokens if domain else 0,
            "helps": domain is not None and _helps(domain, memories),
        }
        for name, scores in (("perplexity", domain), ("general", general)):
            found[name] = scores and {
                "base": _figures(scores.score_of(scores.base)),
                "memory": _figures(scores.score([1.0])),
                "mixture": _figures(scores.score_of(_part(scores, True, False).held(resolve(memories).mixture))),
                "auto": _figures(_auto(scores, memories, [])),
                "index": _figures(_auto(scores, [], indexes)),
                "both": _figures(_auto(scores, memories, indexes)),
            }
        return found


def answered(base: Path, memory: Path, documents: Sequence[Document], most: int) -> Found | None:
    """How well base, memory and mixture predict the answers in held-out documents, in the base's chat template.

    About `most` tokens are scored. {tokens} and {perplexity, standard_error} by voice; None: no document asks anything.
    """
    with (
        closing(Transcriber(base)) as transcriber,
        closing(Engine(base, [MemoryOptions(memory)], LoadOptions(n_ctx=scoring(base, most).window))) as engine,
    ):
        parts = (part for document in documents for part in parts_of(document) if part.turns)
        scores = score_answers(engine, filter(None, (transcriber.write(part.turns) for part in parts)), most)
        if scores is None:
            return None
        return {
            "tokens": len(scores.base),
            "base": _figures(scores.score_of(scores.base)),
            "memory": _figures(scores.score([1.0])),
            "mixture": _figures(scores.score_of(scores.held(resolve(engine.memories).mixture))),
        }


def state_perplexities(memory: Path, found: Found) -> None:
    """Write what was measured on held-out documents into the memory's file."""
    keys = {metadata.PPL_BASE: "base", metadata.PPL_MEMORY: "memory", metadata.PPL_MIXTURE: "mixture"}
    scores = found["perplexity"] or {}
    values = {key: scores[name]["perplexity"] for key, name in keys.items() if name in scores}
    metadata.patch(memory, {key: value for key, value in values.items() if value and value < 1e38})


def continued(base: Path, memory: Path, passages: Sequence[tuple[str, str | None]], n_tokens: int, seed: int) -> Found:
    """How base and mixture go on with some beginnings, and their speed in tokens a second (medians).

    passages: a beginning, and how it really goes on, if that is known.
    """
    texts: list[dict[str, str | None]] = []
    speeds: dict[str, list[float]] = {"base": [], "auto": []}
    limits = GenerationOptions(n_predict=n_tokens, ignore_eos=True)
    with open_model(base, [memory]) as model, progress("continuations", 2 * len(passages), "texts") as advance:
        for prompt, truth in passages:
            texts.append({"prompt": prompt, "truth": truth})
            for name, mixture in (("base", MixtureOptions(total=0.0)), ("auto", MixtureOptions())):
                done = model.generate(prompt, SamplingOptions(seed=seed), limits, mixture)
                texts[-1]["mixture" if name == "auto" else name] = done.text
                speeds[name].append(done.timings.predicted_per_second)
                advance(1)
    middle = {name: sorted(values)[len(values) // 2] if values else None for name, values in speeds.items()}
    return {"continuations": texts, "speed": middle}


def passages_of(documents: Sequence[str], most: int) -> list[tuple[str, str | None]]:
    """Beginnings of held-out documents, cut at a blank, and as much of what follows."""
    found: list[tuple[str, str | None]] = []
    for text in documents:
        if len(text) >= LEAST_PASSAGE and len(found) < most:
            end = min(PROMPT, len(text) // 2)
            cut = text.rfind(" ", end // 2, end)
            at = cut if cut > 0 else end
            found.append((text[:at], text[at : at + PROMPT]))
    return found


def _is_text(documents: Sequence[str]) -> bool:
    return sum(map(len, documents)) > 1


def _part(scores: TokenScores, memories: bool, indexes: bool) -> TokenScores:
    """The scores without memories, or without indexes."""
    return replace(scores, memories=scores.memories if memories else [], indexes=scores.indexes if indexes else [])


def _auto(scores: TokenScores, memories: list[Memory], indexes: list[Index]) -> Score:
    """The score of weights that follow the text, of some of the voices."""
    rule = resolve(memories, indexes, MixtureOptions()).rule()
    assert rule is not None
    part = _part(scores, bool(memories), bool(indexes))
    return scores.score_of(part.learned(rule).log_probs)


def _helps(scores: TokenScores, memories: list[Memory]) -> bool:
    rule = resolve(memories, [], MixtureOptions()).rule()
    assert rule is not None
    mixed = _part(scores, True, False).learned(rule).log_probs
    ratio, error = perplexity(mixed - scores.base, scores.windows)
    return ratio + (0.0 if math.isnan(error) else error) < 1.0


def _figures(score: Score) -> dict[str, float | None]:
    values = {"perplexity": score.perplexity, "standard_error": score.standard_error}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
