"""Making a kNN cache: tokens, perhaps an adapted teacher, keys, perhaps an index, a temperature, targets.

Each file is made if it is not there, so a killed run is continued by running it again. Under `accelerate launch` the
processes share the shards among them. Knows nothing of memories.
"""

import json
import shutil
import sys

import numpy as np
import torch
from accelerate import PartialState

from memdec_edge.documents import split_files
from memdec_edge.errors import Cancelled, CorpusError, OptionError
from memdec_edge.files import atomic_path, sha256, write_text
from memdec_edge.options import CacheOptions, TrainOptions
from memdec_edge.progress import progress

from . import index
from .cache import HELD_OUT, INDEX, TEACHER, VALIDATION, Cache, CacheReport
from .corpus import Tokens, pack, split_documents
from .loop import Data, accelerator, fit
from .neighbours import Exact
from .source import load_source
from .stage import open_stage
from .targets import aggregate, choose_temperature, join
from .teacher import Teacher, gather_blocks, n_blocks, open_teacher, spread_blocks
from .validation import Validation

VALIDATION_POSITIONS = 20_000  # on which tau is chosen
SEARCHED = 16384  # positions at a time: at k = 1024 their neighbours take 200 MB
RECALL_QUERIES = 200  # validation positions on which an index is compared with exact search
WORTH_SAYING = 1.02  # a temperature of the user's that is so much worse than the best one
AGAIN = "what was finished is kept: run the same command again to go on"


def build_cache(options: CacheOptions) -> CacheReport:
    """Make the cache in options.out, or finish it; a finished one is only checked.

    Where the corpus names no test split, test documents are taken out of it and written to test.jsonl in the cache, so
    that `memdec-edge eval` can score text that no memory has seen.

    Prints to stderr the disk space needed, before work starts, what an index finds of the exact neighbours, and at the
    end the path of such a test.jsonl. Raises CorpusError, OptionError (--k, --block, --knn-temp), MissingFileError,
    ModelFileError, StageError (made from something else, or damaged), ExistingOutputError, OutputError, NumericsError,
    MissingExtraError (faiss), and Cancelled on Ctrl-C. What is refused leaves no trace in options.out.
    """
    cache = Cache(options)
    fill_cache(cache)
    return cache.report()


def fill_cache(cache: Cache, *, retrieve: bool = True) -> None:
    """Make what the cache lacks, or of that only the tokens. As build_cache(), for the training loop."""
    state = PartialState(cpu=not torch.accelerator.is_available())  # else torchrun on CPUs would start strangers
    main = state.is_main_process
    try:
        state.wait_for_everyone()  # nobody writes before everybody has looked
        if main:
            if "tokens" in cache.stage.facts:
                cache.stage.begin()
            else:
                _write_tokens(cache, open_teacher(cache.options.teacher, cache.options.kind, state.device))
        _meet(cache, state)
        if not retrieve:
            return
        works = main and _announce(cache)
        if cache.options.finetune_teacher:
            _finetune_teacher(cache, state)
        _write_keys(cache, state)
        if main:
            _build_index(cache, state.device)
            _choose_tau(cache, state.device)
        _meet(cache, state)
        _write_targets(cache, state)
        state.wait_for_everyone()
        if works and cache.held_out:
            print(f"held-out text, for memdec-edge eval: {cache.held_out}", file=sys.stderr)
    except KeyboardInterrupt:
        raise Cancelled(AGAIN) from None


def _meet(cache: Cache, state: PartialState) -> None:
    state.wait_for_everyone()
    cache.stage.reload()


def _write_tokens(cache: Cache, teacher: Teacher) -> None:
    """Split and pack the corpus, and begin the cache once all that can be wrong with it has been looked at."""
    options, stage = cache.options, cache.stage
    splits = split_documents(options.corpus, options.valid_fraction, options.test_fraction, options.seed)
    limits = {"train": options.max_tokens, "valid": 0}
    packed = {split: pack(splits[split], teacher.encoder, limits[split]) for split in limits}
    _check_sizes(options, teacher.n_ctx, packed)
    stage.begin()
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


def _check_sizes(options: CacheOptions, context: int, packed: dict[str, Tokens]) -> None:
    """Raise the errors that only the number of tokens can tell."""
    blocks = n_blocks(packed["train"], options.block)
    if options.block > context:
        raise OptionError("--block", options.block, f"the teacher's context is {context} tokens")
    if blocks == 0:
        few = f"{len(packed['train'])} training tokens are less than one block and a token"
        raise CorpusError(options.corpus, f"{few}; give more text, or a smaller --block than {options.block}")
    if options.k > blocks * options.block - 1:
        keys = blocks * options.block
        raise OptionError("--k", options.k, f"the datastore has {keys} keys, so a key has {keys - 1} neighbours")
    if options.knn_temp is None and n_blocks(packed["valid"], options.block) == 0:
        reason = f"needs {options.block + 1} tokens of validation text; give a number, or more text"
        raise OptionError("--knn-temp", "auto", reason)


def _announce(cache: Cache) -> bool:
    """Print the disk space that the shards still to be made need; False when there are none."""
    options, facts = cache.options, cache.stage.facts
    positions = {kind: sum(map(len, cache.missing(kind).values())) * options.block for kind in ("keys", "targets")}
    if not any(positions.values()):
        return False
    keys = positions["keys"] * facts["width"] * 2
    targets = positions["targets"] * (4 + options.k * (4 if facts["n_vocab"] <= 1 << 16 else 6))
    free = shutil.disk_usage(cache.stage.folder).free
    print(
        f"the kNN cache needs {keys / 1e6:,.0f} MB for keys (float16) and at most {targets / 1e6:,.0f} MB for targets "
        f"in {cache.stage.folder} ({free / 1e6:,.0f} MB free)",
        file=sys.stderr,
    )
    return True


def _finetune_teacher(cache: Cache, state: PartialState) -> None:
    """A copy of the teacher, trained on the corpus as a memory without a retriever would be (beta 0)."""
    options = cache.options
    training = TrainOptions(
        options, cache.stage.folder / TEACHER, steps=options.finetune_teacher, beta=0.0, seed=options.seed
    )
    stage = open_stage(
        training.out, "adapted teacher", {"the kNN cache": cache.stage.identity}, {}, (), fresh=options.fresh
    )
    data = Data(cache.tokens("train"), None, Validation(cache.tokens("valid"), options.block), options.block)
    fit(training, load_source(options.teacher), data, stage, accelerator())
    stage.reload()
    for name in stage.facts["files"]:
        stage.check(name)


def _write_keys(cache: Cache, state: PartialState) -> None:
    options, tokens = cache.options, cache.tokens("train")
    mine = list(cache.missing("keys").items())
    state.wait_for_everyone()  # nobody writes before everybody has looked
    mine = mine[state.process_index :: state.num_processes]
    if mine:
        teacher = open_teacher(cache.teacher, options.kind, state.device)
        with progress("keys", sum(len(blocks) for _, blocks in mine) * options.block) as done:
            for name, blocks in mine:
                keys = teacher.keys(tokens, blocks, options.block, options.batch, done)
                cache.stage.write(name, {"keys": keys})
    state.wait_for_everyone()


def _build_index(cache: Cache, device: torch.device) -> None:
    """Decide how neighbours are found, and make the index that this needs."""
    stage, options = cache.stage, cache.options
    if "search" in stage.facts:
        return
    keys = cache.datastore()
    search = index.choose(sum(map(len, keys)), device.type) if options.search == "auto" else options.search
    files = stage.facts["files"]
    if search != "exact":
        path = stage.folder / INDEX
        index.build(search, keys, path)
        files = {**files, INDEX: sha256(path)}
    stage.record(search=search, files=files)


def _searcher(cache: Cache, device: torch.device) -> Exact | index.Index:
    """What finds neighbours: searcher.search(queries, k, first_position=None) -> distances, indices."""
    keys = cache.datastore()
    if cache.stage.facts["search"] == "exact":
        return Exact(keys, device)
    return index.Index(cache.stage.check(INDEX), keys)


def _choose_tau(cache: Cache, device: torch.device) -> None:
    stage, options, valid = cache.stage, cache.options, cache.tokens("valid")
    if "tau" in stage.facts:
        return
    if n_blocks(valid, options.block) == 0:
        nothing = ("teacher_perplexity", "knn_perplexity", "nearest_distance", "kth_distance", "recall")
        stage.record(tau=options.knn_temp, **dict.fromkeys(nothing))
        return
    if not (stage.folder / VALIDATION).exists():
        _search_validation(cache, device)
    found = stage.read(VALIDATION)
    distances, teacher = found["distances"], found["teacher"]
    hits = found["values"] == found["labels"][:, None]
    best = used = choose_temperature(distances, hits, teacher, None)
    if options.knn_temp is not None:
        used = choose_temperature(distances, hits, teacher, options.knn_temp)
    if used.knn > WORTH_SAYING * best.knn:
        print(
            f"--knn-temp {used.tau:g} gives the retriever a validation perplexity of {used.knn:.2f}; "
            f"{best.tau:g}, which --knn-temp auto would choose, {best.knn:.2f}",
            file=sys.stderr,
        )
    recall = None if stage.facts["search"] == "exact" else _recall(cache, found["queries"], used.tau, device)
    nearest, kth = (float(np.median(distances[:, i])) for i in (0, -1))
    stage.record(
        tau=used.tau,
        teacher_perplexity=used.teacher,
        knn_perplexity=used.knn,
        nearest_distance=nearest,
        kth_distance=kth,
        recall=recall,
    )


def _search_validation(cache: Cache, device: torch.device) -> None:
    """Neighbours of validation positions, and the teacher's own log-probs there."""
    options, valid = cache.options, cache.tokens("valid")
    blocks = spread_blocks(valid, options.block, VALIDATION_POSITIONS)
    teacher = open_teacher(cache.teacher, options.kind, device)
    with progress("validation keys", len(blocks) * options.block) as done:
        keys, logprobs = teacher.keys_and_logprobs(valid, blocks, options.block, options.batch, done)
    distances, indices = _searcher(cache, device).search(torch.from_numpy(keys).to(device), options.k)
    labels = gather_blocks(valid, blocks, options.block)[:, 1:].reshape(-1).numpy().astype(np.uint32)
    arrays = {
        "distances": distances.cpu().numpy(),
        "values": cache.tokens("train")[indices.cpu().numpy() + 1],
        "labels": labels,
        "teacher": logprobs,
        "queries": keys[:: max(1, len(keys) // RECALL_QUERIES)],
    }
    cache.stage.write(VALIDATION, arrays)


def _recall(cache: Cache, queries: np.ndarray, tau: float, device: torch.device) -> float:
    """Share of the exact kNN mass that the index finds; said to the user."""
    rows = torch.from_numpy(queries).to(device)
    k = cache.options.k
    exact = Exact(cache.datastore(), device).search(rows, k)
    share = index.share_of_mass(exact, _searcher(cache, device).search(rows, k), tau)
    kind = cache.stage.facts["search"]
    print(f"{kind} finds {share:.1%} of the exact kNN mass of {len(rows)} validation positions", file=sys.stderr)
    return share


def _write_targets(cache: Cache, state: PartialState) -> None:
    options, tokens, facts = cache.options, cache.tokens("train"), cache.stage.facts
    mine = list(cache.missing("targets").items())
    state.wait_for_everyone()  # nobody writes before everybody has looked
    mine = mine[state.process_index :: state.num_processes]
    if not mine:
        return
    searcher = _searcher(cache, state.device)
    with progress("neighbours", sum(len(blocks) for _, blocks in mine) * options.block) as done:
        for name, blocks in mine:
            keys = cache.stage.read(name.replace("targets", "keys"))["keys"]  # a shard of each kind covers the same
            first, parts = blocks[0] * options.block, []
            for low in range(0, len(keys), SEARCHED):
                queries = torch.from_numpy(keys[low : low + SEARCHED]).to(state.device)
                found = searcher.search(queries, options.k, first_position=first + low)
                distances, indices = (part.cpu().numpy() for part in found)
                values = tokens[indices + 1]
                parts.append(aggregate(distances, values, facts["tau"], options.top_mass, facts["n_vocab"]))
                done(len(queries))
            cache.stage.write(name, join(parts))
