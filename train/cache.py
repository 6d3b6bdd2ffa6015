"""The kNN cache: what a retriever over the training text would answer at each of its positions.

    tokens/{train,valid,test}.npy     the packed splits, uint32
    tokenizer/                        the teacher's
    keys/N.safetensors                the datastore
    validation.safetensors            neighbours of validation positions, their distances, the teacher's log-probs
    targets/N.safetensors             p_kNN of the training positions
    manifest.json                     what all this was made from, and the facts of CacheReport

Each file is made if it is not there, so a killed run is continued by running it again. Under `accelerate launch` the
processes share the shards among them. Knows nothing of memories and training.
"""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from memdec_edge.documents import SPLITS, split_files
from memdec_edge.errors import Cancelled, CorpusError, OptionError
from memdec_edge.files import atomic_path, sha256
from memdec_edge.options import CacheOptions
from memdec_edge.progress import progress

from .corpus import Tokens, pack, split_documents
from .keys import Teacher, gather_blocks, n_blocks
from .neighbours import search
from .source import Source, digests, load_source, quiet, source_files
from .stage import open_stage
from .targets import Targets, aggregate, choose_temperature

SHARD_POSITIONS = 16384  # of keys and of targets; rounded to whole blocks
VALIDATION_POSITIONS = 20_000  # on which tau is chosen
VALIDATION = "validation.safetensors"
AGAIN = "what was finished is kept: run the same command again to go on"


@dataclass(frozen=True)
class CacheReport:
    """What a finished cache holds. Perplexities are on validation positions; None without a validation split."""

    path: Path
    train_tokens: int
    valid_tokens: int
    test_tokens: int
    tau: float
    bytes: int  # on disk
    teacher_perplexity: float | None
    knn_perplexity: float | None  # teacher and p_kNN mixed at DEFAULT_LAMBDA


class Cache:
    """A cache folder, finished or not. The arrays of one split, the names of the shards, the positions in each."""

    def __init__(self, options: CacheOptions, state: PartialState) -> None:
        self.options = options
        chosen = {
            "k": options.k,
            "knn_temp": options.knn_temp or "auto",
            "block": options.block,
            "valid_fraction": options.valid_fraction,
            "test_fraction": options.test_fraction,
            "max_tokens": options.max_tokens,
            "seed": options.seed,
        }
        texts = [file for files in split_files(options.corpus).values() for file in files]
        root = options.corpus if options.corpus.is_dir() else options.corpus.parent
        inputs = digests(source_files(options.teacher), "teacher")
        inputs |= digests({str(file.relative_to(root)): file for file in texts}, "corpus")
        with state.main_process_first():
            main = state.is_main_process
            self.stage = open_stage(options.out, "kNN cache", inputs, chosen, options.fresh and main, write=main)

    def tokens(self, split: str) -> Tokens:
        """The packed stream of a split, memory-mapped. Raises StageError when it was changed."""
        facts = self.stage.facts["tokens"][split]
        tokens: Tokens = np.load(self.stage.check(f"tokens/{split}.npy", facts["sha256"]), mmap_mode="r")
        return tokens

    def shards(self, kind: str) -> dict[str, range]:
        """Names of all shards of a kind ("keys" or "targets"), there or not, with the blocks that each covers."""
        total, block = n_blocks(self.tokens("train"), self.options.block), self.options.block
        step = max(1, SHARD_POSITIONS // block)
        starts = range(0, total, step)
        return {f"{kind}/{i:05}.safetensors": range(b, min(b + step, total)) for i, b in enumerate(starts)}

    def missing(self, kind: str) -> dict[str, range]:
        """The shards that are not there yet."""
        return {name: blocks for name, blocks in self.shards(kind).items() if not (self.stage.folder / name).exists()}

    def targets(self) -> Targets:
        """p_kNN of all training positions. Raises StageError when a shard is missing, torn or changed."""
        return Targets(self.stage, list(self.shards("targets")))

    def report(self) -> CacheReport:
        """The facts of a finished cache."""
        facts = self.stage.facts
        counts = {split: facts["tokens"][split]["count"] for split in SPLITS}
        size = sum(file.stat().st_size for file in self.stage.folder.rglob("*") if file.is_file())
        return CacheReport(
            self.stage.folder,
            counts["train"],
            counts["valid"],
            counts["test"],
            facts["tau"],
            size,
            facts["teacher_perplexity"],
            facts["knn_perplexity"],
        )


def build_cache(options: CacheOptions) -> CacheReport:
    """Make the cache in options.out, or finish it; a finished one is only checked.

    Prints the disk space needed to stderr before work starts. Raises CorpusError, OptionError (--k, --block,
    --knn-temp), MissingFileError, ModelFileError, StageError (made from something else, or damaged),
    ExistingOutputError, OutputError, NumericsError, and Cancelled on Ctrl-C.
    """
    return open_cache(options).report()


def open_cache(options: CacheOptions) -> Cache:
    """As build_cache(), for the training loop."""
    state = PartialState(cpu=not torch.accelerator.is_available())  # else torchrun on CPUs would start strangers
    cache = Cache(options, state)
    try:
        if state.is_main_process and "tokens" not in cache.stage.facts:
            _write_tokens(cache, load_source(options.teacher))
        _meet(cache, state)
        _check_sizes(cache)
        if state.is_main_process:
            _announce(cache)
        _write_keys(cache, state)
        if state.is_main_process and "tau" not in cache.stage.facts:
            _choose_tau(cache, state.device)
        _meet(cache, state)
        _write_targets(cache, state)
        state.wait_for_everyone()
    except KeyboardInterrupt:
        raise Cancelled(AGAIN) from None
    return cache


def _meet(cache: Cache, state: PartialState) -> None:
    state.wait_for_everyone()
    cache.stage.reload()


def _write_tokens(cache: Cache, source: Source) -> None:
    options = cache.options
    splits = split_documents(options.corpus, options.valid_fraction, options.test_fraction, options.seed)
    facts = {}
    for split in SPLITS:
        limit = options.max_tokens if split == "train" else 0
        tokens = pack(splits[split], source.encode, source.bos, source.eos, limit)
        path = cache.stage.folder / "tokens" / f"{split}.npy"
        with atomic_path(path) as part, part.open("wb") as file:
            np.save(file, tokens)
        facts[split] = {"count": len(tokens), "sha256": sha256(path)}
    with quiet():
        source.tokenizer.save_pretrained(cache.stage.folder / "tokenizer")
    config = source.model.config
    shape = {"teacher": source.name, "hidden": config.hidden_size, "context": config.max_position_embeddings}
    cache.stage.record(tokens=facts, n_vocab=source.n_vocab, **shape)


def _check_sizes(cache: Cache) -> None:
    """Raise the errors that only the number of tokens can tell."""
    options, facts = cache.options, cache.stage.facts
    tokens = facts["tokens"]["train"]["count"]
    blocks = n_blocks(cache.tokens("train"), options.block)
    if options.block > facts["context"]:
        raise OptionError("--block", options.block, f"the teacher's context is {facts['context']} tokens")
    if blocks == 0:
        advice = f"give more text, or a smaller --block than {options.block}"
        raise CorpusError(options.corpus, f"{tokens} training tokens are less than one block and a token; {advice}")
    if options.k > blocks * options.block - 1:
        keys = blocks * options.block
        raise OptionError("--k", options.k, f"the datastore has {keys} keys, so a key has {keys - 1} neighbours")
    if options.knn_temp is None and n_blocks(cache.tokens("valid"), options.block) == 0:
        reason = "needs a block of validation text; raise --valid-fraction, or give a number"
        raise OptionError("--knn-temp", "auto", reason)


def _announce(cache: Cache) -> None:
    """Print the disk space that the shards still to be made need."""
    options, facts = cache.options, cache.stage.facts
    positions = {kind: sum(map(len, cache.missing(kind).values())) * options.block for kind in ("keys", "targets")}
    if not any(positions.values()):
        return
    keys = positions["keys"] * facts["hidden"] * 2
    targets = positions["targets"] * (8 + options.k * 6)
    free = shutil.disk_usage(cache.stage.folder).free
    print(
        f"the kNN cache needs {keys / 1e6:,.0f} MB for keys and at most {targets / 1e6:,.0f} MB for targets "
        f"in {cache.stage.folder} ({free / 1e6:,.0f} MB free)",
        file=sys.stderr,
    )


def _write_keys(cache: Cache, state: PartialState) -> None:
    options, tokens = cache.options, cache.tokens("train")
    mine = list(cache.missing("keys").items())
    state.wait_for_everyone()  # nobody writes before everybody has looked
    mine = mine[state.process_index :: state.num_processes]
    if mine:
        teacher = Teacher(load_source(options.teacher), state.device)
        with progress("keys", sum(len(blocks) for _, blocks in mine) * options.block) as done:
            for name, blocks in mine:
                keys = teacher.keys(tokens, blocks, options.block, options.batch, done)
                cache.stage.write(name, {"keys": keys})
    state.wait_for_everyone()


def _datastore(cache: Cache) -> Iterator[torch.Tensor]:
    for name in cache.shards("keys"):
        yield torch.from_numpy(cache.stage.read(name)["keys"])


def _choose_tau(cache: Cache, device: torch.device) -> None:
    options, valid = cache.options, cache.tokens("valid")
    total = n_blocks(valid, options.block)
    if total == 0:
        cache.stage.record(tau=options.knn_temp, teacher_perplexity=None, knn_perplexity=None)
        return
    if not (cache.stage.folder / VALIDATION).exists():
        wanted = min(total, max(1, VALIDATION_POSITIONS // options.block))
        blocks = [i * total // wanted for i in range(wanted)]  # evenly spaced over the split
        teacher = Teacher(load_source(options.teacher), device)
        with progress("validation keys", wanted * options.block) as done:
            keys, logprobs = teacher.keys_and_logprobs(valid, blocks, options.block, options.batch, done)
        distances, indices = search(torch.from_numpy(keys).to(device), _datastore(cache), options.k)
        labels = gather_blocks(valid, blocks, options.block)[:, 1:].reshape(-1).numpy().astype(np.uint32)
        values = cache.tokens("train")[indices.cpu().numpy() + 1]
        arrays = {"distances": distances.cpu().numpy(), "values": values, "labels": labels, "teacher": logprobs}
        cache.stage.write(VALIDATION, arrays)
    found = cache.stage.read(VALIDATION)
    hits = found["values"] == found["labels"][:, None]
    best = choose_temperature(found["distances"], hits, found["teacher"], options.knn_temp)
    cache.stage.record(tau=best.tau, teacher_perplexity=best.teacher, knn_perplexity=best.knn)


def _write_targets(cache: Cache, state: PartialState) -> None:
    options, tokens = cache.options, cache.tokens("train")
    mine = list(cache.missing("targets").items())
    state.wait_for_everyone()  # nobody writes before everybody has looked
    mine = mine[state.process_index :: state.num_processes]
    with progress("neighbours", sum(len(blocks) for _, blocks in mine) * options.block) as done:
        for name, blocks in mine:
            keys = cache.stage.read(name.replace("targets", "keys"))["keys"]  # a shard of each kind covers the same
            queries = torch.from_numpy(keys).to(state.device)
            found = search(queries, _datastore(cache), options.k, first_position=blocks[0] * options.block)
            distances, indices = (part.cpu().numpy() for part in found)
            cache.stage.write(name, aggregate(distances, tokens[indices + 1], cache.stage.facts["tau"]))
            done(len(queries))
