"""The kNN cache: what a retriever over the training text would answer at each of its positions.

    tokens/{train,valid}.npy          the packed splits, uint32
    test.jsonl                        held-out documents, where the corpus names no test split of its own
    keys/N.safetensors                the datastore
    validation.safetensors            neighbours of validation positions, their distances, the teacher's log-probs
    targets/N.safetensors             p_kNN of the training positions
    manifest.json                     what all this was made from, and the facts of CacheReport

Each file is made if it is not there, so a killed run is continued by running it again. Under `accelerate launch` the
processes share the shards among them. Knows nothing of memories and training.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from memdec_edge.documents import SPLITS, split_files
from memdec_edge.errors import Cancelled, CorpusError, OptionError
from memdec_edge.files import atomic_path, sha256, write_text
from memdec_edge.options import CacheOptions
from memdec_edge.progress import progress

from .corpus import Tokens, pack, split_documents
from .keys import KIND, Teacher, gather_blocks, n_blocks
from .neighbours import Exact
from .source import Source, digests, load_source, source_files
from .stage import open_stage
from .targets import Targets, aggregate, choose_temperature

SHARD_POSITIONS = 16384  # of keys and of targets; rounded to whole blocks
VALIDATION_POSITIONS = 20_000  # on which tau is chosen
VALIDATION = "validation.safetensors"
HELD_OUT = "test.jsonl"
LAYOUT = ("tokens/*.npy", HELD_OUT, "keys/*.safetensors", VALIDATION, "targets/*.safetensors")
AGAIN = "what was finished is kept: run the same command again to go on"


@dataclass(frozen=True)
class CacheReport:
    """What a finished cache holds.

    Perplexities and distances (medians, squared L2) are of validation positions; None without a validation split.
    """

    path: Path
    train_tokens: int
    valid_tokens: int
    held_out: Path | None  # test documents for memdec-edge eval; None where the corpus names its own
    key: str  # what a key is: "mlp_input"
    tau: float
    nearest_distance: float | None
    kth_distance: float | None
    teacher_perplexity: float | None
    knn_perplexity: float | None  # teacher and p_kNN mixed at DEFAULT_LAMBDA
    bytes: int  # on disk


class Cache:
    """A cache folder, finished or not. The arrays of one split, the names of the shards, the positions in each."""

    def __init__(self, options: CacheOptions) -> None:
        """Open it; nothing is written before fill_cache()."""
        self.options = options
        chosen = {
            "--k": options.k,
            "--knn-temp": options.knn_temp or "auto",
            "--block": options.block,
            "a validation share of": options.valid_fraction,
            "a test share of": options.test_fraction,
            "--max-tokens": options.max_tokens,
            "--seed": options.seed,
        }
        texts = [file for files in split_files(options.corpus).values() for file in files]
        root = options.corpus if options.corpus.is_dir() else options.corpus.parent
        named = {root / f"{split}.jsonl" for split in SPLITS}
        if (
            root == options.corpus
            and not named.issuperset(texts)
            and options.out.resolve().is_relative_to(root.resolve())
        ):
            raise OptionError("--out", options.out, f"must be outside {root}, whose text files are all taken as corpus")
        inputs = digests(source_files(options.teacher), "teacher")
        inputs |= digests({str(file.relative_to(root)): file for file in texts}, "corpus")
        self.stage = open_stage(options.out, "kNN cache", inputs, chosen, LAYOUT, options.fresh)

    @property
    def held_out(self) -> Path | None:
        """The file of test documents that were taken out of the corpus."""
        return self.stage.folder / HELD_OUT if HELD_OUT in self.stage.facts["files"] else None

    def tokens(self, split: str) -> Tokens:
        """The packed stream of a split, memory-mapped. Raises StageError when it was changed."""
        tokens: Tokens = np.load(self.stage.check(f"tokens/{split}.npy"), mmap_mode="r")
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
        return CacheReport(
            path=self.stage.folder,
            train_tokens=facts["tokens"]["train"],
            valid_tokens=facts["tokens"]["valid"],
            held_out=self.held_out,
            key=facts["key"],
            tau=facts["tau"],
            nearest_distance=facts["nearest_distance"],
            kth_distance=facts["kth_distance"],
            teacher_perplexity=facts["teacher_perplexity"],
            knn_perplexity=facts["knn_perplexity"],
            bytes=sum(file.stat().st_size for file in self.stage.folder.rglob("*") if file.is_file()),
        )


def build_cache(options: CacheOptions) -> CacheReport:
    """Make the cache in options.out, or finish it; a finished one is only checked.

    Where the corpus names no test split, test documents are taken out of it and written to test.jsonl in the cache, so
    that `memdec-edge eval` can score text that no memory has seen.

    Prints the disk space needed to stderr before work starts, and at its end the path of such a test.jsonl. Raises
    CorpusError, OptionError (--k, --block, --knn-temp), MissingFileError, ModelFileError, StageError (made from
    something else, or damaged), ExistingOutputError, OutputError, NumericsError, and Cancelled on Ctrl-C. What is
    refused leaves no trace in options.out.
    """
    cache = Cache(options)
    fill_cache(cache)
    return cache.report()


def fill_cache(cache: Cache, *, neighbours: bool = True) -> None:
    """Make what the cache lacks, or of that only the tokens. As build_cache(), for the training loop."""
    state = PartialState(cpu=not torch.accelerator.is_available())  # else torchrun on CPUs would start strangers
    main = state.is_main_process
    try:
        state.wait_for_everyone()  # nobody writes before everybody has looked
        if main:
            if "tokens" in cache.stage.facts:
                cache.stage.begin()
            else:
                _write_tokens(cache, load_source(cache.options.teacher))
        _meet(cache, state)
        if not neighbours:
            return
        works = main and _announce(cache)
        _write_keys(cache, state)
        if main and "tau" not in cache.stage.facts:
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


def _write_tokens(cache: Cache, source: Source) -> None:
    """Split and pack the corpus, and begin the cache once all that can be wrong with it has been looked at."""
    options, stage = cache.options, cache.stage
    splits = split_documents(options.corpus, options.valid_fraction, options.test_fraction, options.seed)
    limits = {"train": options.max_tokens, "valid": 0}
    packed = {split: pack(splits[split], source.encode, source.bos, source.eos, limits[split]) for split in limits}
    _check_sizes(options, source, packed)
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
        key=KIND,
        teacher=source.name,
        hidden=source.model.config.hidden_size,
    )


def _check_sizes(options: CacheOptions, source: Source, packed: dict[str, Tokens]) -> None:
    """Raise the errors that only the number of tokens can tell."""
    context, blocks = source.model.config.max_position_embeddings, n_blocks(packed["train"], options.block)
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
    keys = positions["keys"] * facts["hidden"] * 2
    targets = positions["targets"] * (8 + options.k * 6)
    free = shutil.disk_usage(cache.stage.folder).free
    print(
        f"the kNN cache needs {keys / 1e6:,.0f} MB for keys and at most {targets / 1e6:,.0f} MB for targets "
        f"in {cache.stage.folder} ({free / 1e6:,.0f} MB free)",
        file=sys.stderr,
    )
    return True


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


def _datastore(cache: Cache) -> list[np.ndarray]:
    return [cache.stage.read(name)["keys"] for name in cache.shards("keys")]


def _choose_tau(cache: Cache, device: torch.device) -> None:
    options, valid = cache.options, cache.tokens("valid")
    total = n_blocks(valid, options.block)
    if total == 0:
        nothing = dict.fromkeys(("teacher_perplexity", "knn_perplexity", "nearest_distance", "kth_distance"))
        cache.stage.record(tau=options.knn_temp, **nothing)
        return
    if not (cache.stage.folder / VALIDATION).exists():
        wanted = min(total, max(1, VALIDATION_POSITIONS // options.block))
        blocks = [i * total // wanted for i in range(wanted)]  # evenly spaced over the split
        teacher = Teacher(load_source(options.teacher), device)
        with progress("validation keys", wanted * options.block) as done:
            keys, logprobs = teacher.keys_and_logprobs(valid, blocks, options.block, options.batch, done)
        distances, indices = Exact(_datastore(cache), device).search(torch.from_numpy(keys), options.k)
        labels = gather_blocks(valid, blocks, options.block)[:, 1:].reshape(-1).numpy().astype(np.uint32)
        values = cache.tokens("train")[indices.cpu().numpy() + 1]
        arrays = {"distances": distances.cpu().numpy(), "values": values, "labels": labels, "teacher": logprobs}
        cache.stage.write(VALIDATION, arrays)
    found = cache.stage.read(VALIDATION)
    hits = found["values"] == found["labels"][:, None]
    best = choose_temperature(found["distances"], hits, found["teacher"], options.knn_temp)
    nearest, kth = (float(np.median(found["distances"][:, i])) for i in (0, -1))
    cache.stage.record(
        tau=best.tau,
        teacher_perplexity=best.teacher,
        knn_perplexity=best.knn,
        nearest_distance=nearest,
        kth_distance=kth,
    )


def _write_targets(cache: Cache, state: PartialState) -> None:
    options, tokens = cache.options, cache.tokens("train")
    mine = list(cache.missing("targets").items())
    state.wait_for_everyone()  # nobody writes before everybody has looked
    mine = mine[state.process_index :: state.num_processes]
    if not mine:
        return
    exact = Exact(_datastore(cache), state.device)
    with progress("neighbours", sum(len(blocks) for _, blocks in mine) * options.block) as done:
        for name, blocks in mine:
            keys = cache.stage.read(name.replace("targets", "keys"))["keys"]  # a shard of each kind covers the same
            found = exact.search(torch.from_numpy(keys), options.k, first_position=blocks[0] * options.block)
            distances, indices = (part.cpu().numpy() for part in found)
            cache.stage.write(name, aggregate(distances, tokens[indices + 1], cache.stage.facts["tau"]))
            done(len(keys))
