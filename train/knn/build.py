"""Making a kNN cache: tokens, perhaps a fine-tuned teacher, keys, perhaps an index, a temperature and a gate, targets.

Each file is made if it is not there, so a killed run is continued by running it again. Under `accelerate launch` the
processes share the shards among them. Knows nothing of memories.
"""

import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress

import torch
from accelerate import Accelerator

from memdec_edge.errors import Cancelled, StageBusyError
from memdec_edge.files import MANIFEST
from memdec_edge.machine import usable_cpus
from memdec_edge.options import CacheOptions, TrainOptions
from memdec_edge.progress import progress

from ..artifacts import open_stage
from ..corpus import Tokens
from ..feed import Data
from ..limits import enough_memory
from ..loop import LAYOUT, Pace, accelerator, fit, settings
from ..models import Source, load_source
from ..report import CacheReport
from ..shards import Array, Arrays
from ..state import STATE
from ..targets import ROW_BYTES, aggregate, blend, join, kernel, learned_only
from ..teacher import Reading, n_blocks
from ..teachers import open_teacher
from ..validation import Validation
from . import approximate
from .cache import FINETUNED, OWN, TEACHER, Cache
from .fit import build_index, fit_retriever, open_searcher, stored_gate, unread_validation
from .tokens import check_neighbours, say_k, write_tokens

SEARCHED = 16384  # positions at a time: their neighbours take 12 bytes each, 200 MB at k = 1024, twice
AGGREGATED = 256  # positions at a time in a thread: what is made of neighbours on the way takes 50 bytes each
USUAL = Pace()
AGAIN = "what was finished is kept: run the same command again to go on"


def build_cache(options: CacheOptions) -> CacheReport:
    """Make the cache in options.out, or finish it; a finished one is only checked.

    Where the corpus names no test split, test documents are taken out of it and written to test.jsonl in the cache, so
    that `memdec-edge eval` can score text that no memory has seen.

    Prints to stderr the disk space needed, before work starts, what an index finds of the exact neighbours, and at the
    end the path of such a test.jsonl. Raises CorpusError, OptionError (target, k, block, knn_temp, out, top_mass),
    MissingFileError, ModelFileError, StageError (made from something else, or damaged), StageBusyError,
    ExistingOutputError, OutputError, NumericsError, MissingExtraError (faiss), and Cancelled on Ctrl-C. What is refused
    leaves no trace in options.out.
    """
    with enough_memory(options), interruptible():
        cache, processes = Cache(options), accelerator()
        fill_cache(cache, processes)
        if processes.is_main_process:
            cache.check()
    return cache.report()


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends the work with Cancelled; what was finished is kept."""
    try:
        yield
    except KeyboardInterrupt:
        raise Cancelled(AGAIN) from None


def fill_cache(
    cache: Cache, state: Accelerator, source: Source | None = None, *, retrieve: bool = True, pace: Pace = USUAL
) -> None:
    """Make what the cache lacks; without `retrieve` only the tokens.

    source  the teacher as PyTorch sees it, where it is loaded already
    pace    that of the fine-tuning of the teacher

    Raises as build_cache() does.
    """
    with closing(cache.stage):
        _fill(cache, state, source, retrieve, pace)


def _fill(cache: Cache, state: Accelerator, source: Source | None, retrieve: bool, pace: Pace) -> None:
    options, main = cache.options, state.is_main_process
    state.wait_for_everyone()  # no process writes before all have looked
    if main:
        _take(cache, retrieve)
        if "tokens" not in cache.stage.manifest:
            if source is None and (options.finetune_teacher or options.teacher.is_dir()):
                source = load_source(options.teacher)
            write_tokens(cache, open_teacher(options.teacher, options.key, state.device, source), retrieve)
    _meet(cache, state)
    if not retrieve:
        return
    check_neighbours(options, *(cache.tokens(split) for split in ("train", "valid")))
    keys = n_blocks(cache.tokens("train"), options.block) * options.block
    approximate.choose(options.search, keys, state.device.type)  # refused now and not after hours of work
    works = main and _announce(cache)
    if options.finetune_teacher and not cache.finetuned:
        source = source or load_source(options.teacher)
        _finetune_teacher(cache, state, source, pace)
    validation = _read_text(cache, state, None if cache.finetuned else source)
    if main:
        build_index(cache, state.device)
        fit_retriever(cache, state.device, validation)
    _meet(cache, state)
    _write_targets(cache, state)
    state.wait_for_everyone()
    if works and cache.held_out:
        print(f"held-out text, for memdec-edge eval: {cache.held_out}", file=sys.stderr)


def _take(cache: Cache, retrieve: bool) -> None:
    """Keep other processes out of a cache that is to be filled. A finished one may be shared with others."""
    if cache.is_finished(retrieve):
        with suppress(StageBusyError):
            cache.stage.begin()  # removes what killed processes left
    elif "tokens" in cache.stage.manifest:
        cache.stage.begin()
    elif cache.stage.folder.exists():
        cache.stage.take()  # before a teacher is loaded; a folder that is not there is made when nothing is refused


def _meet(cache: Cache, state: Accelerator) -> None:
    state.wait_for_everyone()
    cache.stage.reload()


def _announce(cache: Cache) -> bool:
    """Say on stderr what disk space the shards still to be made need; False when there are none."""
    options, manifest = cache.options, cache.stage.manifest
    positions = {kind: sum(map(len, cache.missing(kind).values())) * options.block for kind in ("keys", "targets")}
    if not any(positions.values()):
        return False
    say_k(cache)
    own = OWN * 6 if options.target == "knn-lm" else 0  # an id and a probability
    keys = positions["keys"] * (manifest["width"] * 2 + own)
    row = cache.k * (4 if manifest["n_vocab"] <= 1 << 16 else 6)
    targets = positions["targets"] * (4 + (row if options.top_mass == 1 else min(row, ROW_BYTES)))
    free = shutil.disk_usage(cache.stage.folder).free
    print(
        f"the kNN cache needs {keys / 1e6:,.0f} MB for keys and at most {targets / 1e6:,.0f} MB for targets "
        f"in {cache.stage.folder} ({free / 1e6:,.0f} MB free)",
        file=sys.stderr,
    )
    return True


def _finetune_teacher(cache: Cache, state: Accelerator, source: Source, pace: Pace) -> None:
    """Train a copy of the teacher on the corpus, as a memory without a retriever would be (beta 0)."""
    options, out = cache.options, cache.stage.folder / TEACHER
    training = TrainOptions(options, out, epochs=options.finetune_teacher, beta=0.0, **pace._asdict())
    chosen, inputs = settings(training, state.num_processes), {"the kNN cache": cache.stage.identity}
    anew = options.fresh or not (out / STATE).exists()  # without a state nothing is lost, whatever the options were
    stage = open_stage(out, FINETUNED, inputs, chosen, LAYOUT, anew)
    validation = Validation(cache.tokens("valid"), options.block)
    data = Data(cache.tokens("train"), None, validation, options.block, cache.counted())
    with closing(stage):
        if state.is_main_process:
            cache.stage.claim(f"{TEACHER}/{MANIFEST}")
            stage.begin()
        fit(training, source, data, stage, state, "teacher")
    stage.reload()
    if state.is_main_process:  # from here on its files are the cache's: keys of two teachers never meet
        made = {f"{TEACHER}/{name}": digest for name, digest in stage.manifest["files"].items()}
        cache.stage.record(files={**cache.stage.manifest["files"], **made})
    _meet(cache, state)


def _read_text(cache: Cache, state: Accelerator, source: Source | None) -> Reading | None:
    """Write the shards of keys that are missing; return what the teacher makes of the validation positions.

    None where the cache has that already, or has no such positions, and in all processes but the first.
    """
    options, tokens, valid = cache.options, cache.tokens("train"), cache.tokens("valid")
    mine = list(cache.missing("keys").items())
    state.wait_for_everyone()  # no process writes before all have looked
    mine = mine[state.process_index :: state.num_processes]
    blocks, validation = unread_validation(cache) if state.is_main_process else [], None
    if mine or blocks:
        teacher = open_teacher(cache.teacher, options.key, state.device, source)
        most = OWN if options.target == "knn-lm" else 0
        with progress("keys", (sum(len(part) for _, part in mine) + len(blocks)) * options.block) as advance:
            for name, part in mine:
                found = teacher.read(tokens, part, options.block, options.batch, advance, most=most)
                own = {"ids": found.ids, "probs": found.probs} if most else {}
                cache.stage.write(name, {"keys": found.keys, **own})
            if blocks:
                validation = teacher.read(valid, blocks, options.block, options.batch, advance, scored=True)
    state.wait_for_everyone()
    return validation


def _write_targets(cache: Cache, state: Accelerator) -> None:
    """Search the neighbours of all training positions, and write the shards of targets that are missing."""
    options, k = cache.options, cache.k
    mine = list(cache.missing("targets").items())
    state.wait_for_everyone()  # no process writes before all have looked
    mine = mine[state.process_index :: state.num_processes]
    if not mine:
        return
    searcher, tokens, counted = open_searcher(cache, state.device), cache.tokens("train"), cache.counted()
    label, total = "neighbours", sum(len(blocks) for _, blocks in mine) * options.block
    with ThreadPoolExecutor(usable_cpus()) as threads, progress(label, total) as advance:
        made: list[tuple[str, list[Future[dict[str, Array]]]]] = []  # shards, by threads, beside the next one's search
        for name, blocks in mine:
            read = cache.stage.read(name.replace("targets", "keys"))  # a shard of each kind covers the same positions
            made.append((name, []))
            for low in range(0, len(read["keys"]), SEARCHED):
                some = {each: array[low : low + SEARCHED] for each, array in read.items()}
                queries = torch.from_numpy(some["keys"]).to(state.device)
                found = searcher.search(queries, k, first_position=blocks[0] * options.block + low)
                distances, indices = (part.cpu().numpy() for part in found)
                for start in range(0, len(queries), AGGREGATED):
                    rows = slice(start, start + AGGREGATED)
                    own = {each: array[rows] for each, array in some.items()}
                    near = learned_only(distances[rows], indices[rows], counted)
                    made[-1][1].append(threads.submit(_targets, cache, tokens, own, *near))
                advance(len(queries))
            if len(made) > 1:
                _write_shard(cache, *made.pop(0))
        _write_shard(cache, *made.pop())


def _write_shard(cache: Cache, name: str, parts: list[Future[dict[str, Array]]]) -> None:
    cache.stage.write(name, join([part.result() for part in parts]))


def _targets(cache: Cache, tokens: Tokens, read: Arrays, distances: Array, indices: Array) -> dict[str, Array]:
    """Targets of some positions, CSR.

    tokens  of the training split; read  what the shard of keys has of these positions
    distances, indices  [n, k], of their neighbours
    """
    options, manifest = cache.options, cache.stage.manifest
    weights, values = kernel(distances, manifest["tau"]), tokens[indices + 1]
    if options.target == "knn-lm":
        gate = stored_gate(cache).at(distances[:, 0])
        weights, values = blend(weights, values, read["ids"], read["probs"], gate)
    return aggregate(weights, values, options.top_mass, manifest["n_vocab"])
