"""Making a kNN cache: tokens, perhaps a fine-tuned teacher, keys, perhaps an index, a temperature, targets.

Each file is made if it is not there, so a killed run is continued by running it again. Under `accelerate launch` the
processes share the shards among them. Knows nothing of memories.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator

from memdec_edge.documents import split_files
from memdec_edge.errors import Cancelled, CorpusError, MemoryLimitError, OptionError
from memdec_edge.files import MANIFEST, atomic_path, sha256, write_text
from memdec_edge.options import CacheOptions, TrainOptions
from memdec_edge.progress import progress

from ..artifacts import open_stage
from ..corpus import Tokens, pack, split_documents
from ..loop import LAYOUT, accelerator, fit, settings
from ..models import load_source
from ..report import CacheReport
from ..step import Data
from ..targets import ROW_BYTES, aggregate, blend, join, kernel
from ..teacher import Teacher, n_blocks, open_teacher
from ..validation import Validation
from .cache import HELD_OUT, TEACHER, Cache
from .fit import build_index, fit_retriever, open_searcher, stored_gate

FINETUNED = "adapted teacher"  # its kind of stage, as manifests on disk have it
OWN = 24  # likeliest tokens of a teacher that stand for its prediction
SEARCHED = 16384  # positions at a time: at k = 1024 their neighbours take 200 MB
AGAIN = "what was finished is kept: run the same command again to go on"


def build_cache(options: CacheOptions) -> CacheReport:
    """Make the cache in options.out, or finish it; a finished one is only checked.

    Where the corpus names no test split, test documents are taken out of it and written to test.jsonl in the cache, so
    that `memdec-edge eval` can score text that no memory has seen.

    Prints to stderr the disk space needed, before work starts, what an index finds of the exact neighbours, and at the
    end the path of such a test.jsonl. Raises CorpusError, OptionError (target, k, block, knn_temp),
    MissingFileError, ModelFileError, StageError (made from something else, or damaged), ExistingOutputError,
    OutputError, NumericsError, MissingExtraError (faiss), and Cancelled on Ctrl-C. What is refused leaves no trace in
    options.out.
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


@contextmanager
def enough_memory(options: CacheOptions) -> Iterator[None]:
    """Name what makes PyTorch run out of memory, for which it has one type of error on a GPU and none on a CPU."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        work = f"{options.batch} blocks of {options.block} tokens in a pass, {options.k} neighbours"
        raise MemoryLimitError(
            work, "a smaller `batch` (with `accumulate`), `block`, `k` or model needs less"
        ) from error


def fill_cache(cache: Cache, state: Accelerator, *, retrieve: bool = True) -> None:
    """Make what the cache lacks, or of that only the tokens. As build_cache(), for the training loop."""
    main = state.is_main_process
    state.wait_for_everyone()  # nobody writes before everybody has looked
    if main:
        if "tokens" in cache.stage.manifest:
            cache.stage.begin()
        else:
            _write_tokens(cache, open_teacher(cache.options.teacher, cache.options.key, state.device), retrieve)
    _meet(cache, state)
    if not retrieve:
        return
    _check_neighbours(cache.options, *(cache.tokens(split) for split in ("train", "valid")))
    works = main and _announce(cache)
    if cache.options.finetune_teacher:
        _finetune_teacher(cache, state)
    _write_keys(cache, state)
    if main:
        build_index(cache, state.device)
        fit_retriever(cache, state.device)
    _meet(cache, state)
    _write_targets(cache, state)
    state.wait_for_everyone()
    if works and cache.held_out:
        print(f"held-out text, for memdec-edge eval: {cache.held_out}", file=sys.stderr)


def _meet(cache: Cache, state: Accelerator) -> None:
    state.wait_for_everyone()
    cache.stage.reload()


def _write_tokens(cache: Cache, teacher: Teacher, retrieve: bool) -> None:
    """Split and pack the corpus, and begin the cache once all that can be wrong with it has been looked at."""
    options, stage = cache.options, cache.stage
    splits = split_documents(options.corpus, options.valid_fraction, options.test_fraction, options.seed)
    limits = {"train": options.max_tokens, "valid": 0}
    packed = {split: pack(splits[split], teacher.encoder, limits[split]) for split in limits}
    _check_blocks(options, teacher.n_ctx, packed["train"])
    if retrieve:
        _check_neighbours(options, packed["train"], packed["valid"])
    stage.begin()
    if (stage.folder / TEACHER / MANIFEST).is_file():  # of an earlier cache
        shutil.rmtree(stage.folder / TEACHER)
    files = []
    for split, tokens in packed.items():
        files.append(f"tokens/{split}.npy")
        with atomic_path(stage.folder / files[-1]) as part, part.open("wb") as file:
            np.save(file, tokens)
    if splits["test"] and "test" not in split_files(options.corpus):
        files.append(HELD_OUT)
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in splits["test"])
        write_text(stage.folder / HELD_OUT, "".join(lines))
    stage.record(
        files={name: sha256(stage.folder / name) for name in files},
        tokens={split: len(tokens) for split, tokens in packed.items()},
        teacher=teacher.name,
        width=teacher.width,
        n_vocab=teacher.n_vocab,
    )


def _check_blocks(options: CacheOptions, context: int, train: Tokens) -> None:
    """Raise OptionError (block) and CorpusError unless there is a block that the teacher can read."""
    if options.block > context:
        raise OptionError("block", options.block, f"the teacher's context is {context} tokens")
    if n_blocks(train, options.block) == 0:
        few = f"{len(train)} training tokens are less than one block and a token"
        raise CorpusError(options.corpus, f"{few}; give more text, or a smaller `block` than {options.block}")


def _check_neighbours(options: CacheOptions, train: Tokens, valid: Tokens) -> None:
    """Raise OptionError (target, k, knn_temp) unless there are so many neighbours, and text to fit a gate on."""
    keys = n_blocks(train, options.block) * options.block
    if options.k > keys - 1:
        raise OptionError("k", options.k, f"the datastore has {keys} keys, so a key has {keys - 1} neighbours")
    if n_blocks(valid, options.block) == 0:
        reason = f"needs {options.block + 1} tokens of validation text"
        if options.target == "knn-lm":
            raise OptionError("target", "knn-lm", f"{reason}; give more text, or `target` knn and `knn_temp`")
        if options.knn_temp is None:
            raise OptionError("knn_temp", "auto", f"{reason}; give a number, or more text")


def _announce(cache: Cache) -> bool:
    """Print the disk space that the shards still to be made need; False when there are none."""
    options, manifest = cache.options, cache.stage.manifest
    positions = {kind: sum(map(len, cache.missing(kind).values())) * options.block for kind in ("keys", "targets")}
    if not any(positions.values()):
        return False
    own = OWN * 6 if options.target == "knn-lm" else 0  # an id and a probability
    keys = positions["keys"] * (manifest["width"] * 2 + own)
    row = options.k * (4 if manifest["n_vocab"] <= 1 << 16 else 6)
    targets = positions["targets"] * (4 + (row if options.top_mass == 1 else min(row, ROW_BYTES)))
    free = shutil.disk_usage(cache.stage.folder).free
    print(
        f"the kNN cache needs {keys / 1e6:,.0f} MB for keys and at most {targets / 1e6:,.0f} MB for targets "
        f"in {cache.stage.folder} ({free / 1e6:,.0f} MB free)",
        file=sys.stderr,
    )
    return True


def _finetune_teacher(cache: Cache, state: Accelerator) -> None:
    """A copy of the teacher, trained on the corpus as a memory without a retriever would be (beta 0)."""
    if cache.finetuned:
        return
    options, out = cache.options, cache.stage.folder / TEACHER
    training = TrainOptions(options, out, epochs=options.finetune_teacher, beta=0.0)
    chosen, inputs = settings(training, state.num_processes), {"the kNN cache": cache.stage.identity}
    stage = open_stage(out, FINETUNED, inputs, chosen, LAYOUT, options.fresh)
    data = Data(cache.tokens("train"), None, Validation(cache.tokens("valid"), options.block), options.block)
    fit(training, load_source(options.teacher), data, stage, state, "teacher")
    stage.reload()
    if state.is_main_process:  # from here on its files are the cache's: keys of two teachers never meet
        made = {f"{TEACHER}/{name}": digest for name, digest in stage.manifest["files"].items()}
        cache.stage.record(files={**cache.stage.manifest["files"], **made})
    _meet(cache, state)


def _write_keys(cache: Cache, state: Accelerator) -> None:
    options, tokens = cache.options, cache.tokens("train")
    mine = list(cache.missing("keys").items())
    state.wait_for_everyone()  # nobody writes before everybody has looked
    mine = mine[state.process_index :: state.num_processes]
    if mine:
        teacher = open_teacher(cache.teacher, options.key, state.device)
        most = OWN if options.target == "knn-lm" else 0
        with progress("keys", sum(len(blocks) for _, blocks in mine) * options.block) as advance:
            for name, blocks in mine:
                found = teacher.read(tokens, blocks, options.block, options.batch, advance, most=most)
                own = {"ids": found.ids, "probs": found.probs} if most else {}
                cache.stage.write(name, {"keys": found.keys, **own})
    state.wait_for_everyone()


def _write_targets(cache: Cache, state: Accelerator) -> None:
    options, tokens, manifest = cache.options, cache.tokens("train"), cache.stage.manifest
    mine = list(cache.missing("targets").items())
    state.wait_for_everyone()  # nobody writes before everybody has looked
    mine = mine[state.process_index :: state.num_processes]
    if not mine:
        return
    searcher = open_searcher(cache, state.device)
    with progress("neighbours", sum(len(blocks) for _, blocks in mine) * options.block) as advance:
        for name, blocks in mine:
            read = cache.stage.read(name.replace("targets", "keys"))  # a shard of each kind covers the same
            keys, first, parts = read["keys"], blocks[0] * options.block, []
            for low in range(0, len(keys), SEARCHED):
                queries = torch.from_numpy(keys[low : low + SEARCHED]).to(state.device)
                found = searcher.search(queries, options.k, first_position=first + low)
                distances, indices = (part.cpu().numpy() for part in found)
                weights, values = kernel(distances, manifest["tau"]), tokens[indices + 1]
                if options.target == "knn-lm":
                    ids, probs = (read[name][low : low + len(queries)] for name in ("ids", "probs"))
                    weights, values = blend(weights, values, ids, probs, stored_gate(cache).at(distances[:, 0]))
                parts.append(aggregate(weights, values, options.top_mass, manifest["n_vocab"]))
                advance(len(queries))
            cache.stage.write(name, join(parts))
