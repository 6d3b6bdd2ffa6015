"""The kNN cache on disk: what a retriever over the training text would answer at each of its positions.

    tokens/{train,valid}.npy          the packed splits, uint32
    tokens/counted.npy                bool, for each token of train.npy whether it is learned; none where all are
    test.jsonl                        held-out documents, where the corpus names no test split of its own
    teacher/                          a copy of the teacher, fine-tuned on the corpus, where that was asked for
    keys/N.safetensors                the datastore, float16; for the target knn-lm also what the teacher predicts
    index.faiss                       what finds neighbours in one too large for exact search
    validation.safetensors            neighbours of validation positions, their distances, the teacher's log-probs
    targets/N.safetensors             what a memory is to predict at the training positions
    manifest.json                     what all this was made from, and the figures of CacheReport

Knows where things are, and whether they are there and whole; train/knn/build.py makes them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from memdec_edge.documents import file_digests
from memdec_edge.errors import ExistingOutputError, OptionError
from memdec_edge.options import DEFAULT_K, CacheOptions

from ..artifacts import Stage, open_stage
from ..corpus import Counted, Tokens
from ..model_files import digests, model_files, unread_files
from ..report import CacheReport
from ..targets import MAX_PAIRS, ROW_PAIRS, Targets
from ..teacher import n_blocks
from ..token_files import find_corpus
from ..vocabulary import template_digest

SHARD_POSITIONS = 16384  # of keys and of targets, rounded to whole blocks
OWN = 24  # likeliest tokens of a teacher that stand for its prediction
TEACHER, INDEX, VALIDATION, HELD_OUT = "teacher", "index.faiss", "validation.safetensors", "test.jsonl"
COUNTED = "tokens/counted.npy"
FINETUNED = "adapted teacher"  # the kind of the stage in `teacher/`, as manifests on disk have it
LAYOUT = ("tokens/train.npy", "tokens/valid.npy", VALIDATION, "keys/*.safetensors", "targets/*.safetensors")
Keys = npt.NDArray[np.float16]


class Datastore(Sequence[Keys]):
    """The shards of keys, float16 [n_i, width], one after the other: each is mapped into memory only while it is used.

    A map holds its file open, and systems allow a few hundred open files. Raises StageError for a shard that is
    missing, torn or changed, when this is made.
    """

    def __init__(self, stage: Stage, names: list[str]) -> None:
        self._stage, self._names = stage, names
        self.n = sum(map(len, self))  # keys

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, i: int) -> Keys: ...
    @overload
    def __getitem__(self, i: slice) -> list[Keys]: ...
    def __getitem__(self, i: int | slice) -> Any:
        if isinstance(i, slice):
            return [self._stage.read(name)["keys"] for name in self._names[i]]
        return self._stage.read(self._names[i])["keys"]


class Cache:
    """A cache folder, finished or not. The arrays of one split, the names of the shards, the positions in each."""

    def __init__(self, options: CacheOptions) -> None:
        """Open it; nothing is written before fill_cache(). Raises what open_stage() and model_files() raise."""
        self.options = options
        chosen = {
            "finetune_teacher": options.finetune_teacher,
            "key": options.key,
            "target": options.target,
            "k": options.k or DEFAULT_K,
            "knn_temp": options.knn_temp or "auto",
            "search": options.search,
            "top_mass": options.top_mass,
            "block": options.block,
            "valid_fraction": options.valid_fraction,
            "test_fraction": options.test_fraction,
            "max_tokens": options.max_tokens,
            "seed": options.seed,
            **({"chat_share": options.chat_share} if options.chat_base else {}),  # earlier versions had none
        }
        corpus = self.corpus = find_corpus(options.corpus)
        root = options.corpus if options.corpus.is_dir() else options.corpus.parent
        if not corpus.named and options.corpus.is_dir() and options.out.resolve().is_relative_to(root.resolve()):
            raise OptionError("out", options.out, f"must be outside {root}, whose files are all taken as corpus")
        texts = {split: {f"corpus {file.inside}" for file in files} for split, files in corpus.files.items()}
        self._seen = {name for split, names in texts.items() if split != "test" for name in names}
        inputs = digests(model_files(options.teacher), "teacher")
        inputs |= {f"corpus {file.inside}": digest for file, digest in file_digests(corpus.all).items()}
        if options.chat_base:
            inputs["chat template"] = template_digest(options.chat_base)
        unread = {f"teacher {name}" for name in unread_files(options.teacher)}
        self.stage = open_stage(options.out, "kNN cache", inputs, chosen, LAYOUT, options.fresh, unread=unread)
        teacher = options.out / TEACHER
        if options.finetune_teacher and teacher.exists() and not self.stage.owns(TEACHER):
            raise ExistingOutputError(teacher)

    @property
    def texts(self) -> list[str]:
        """SHA-256 of each file of the corpus that is no test split: what a memory has seen of it."""
        return sorted({digest for name, digest in self.stage.inputs.items() if name in self._seen})

    @property
    def teacher(self) -> Path:
        """The model whose keys these are. Raises StageError where it was fine-tuned and has changed since."""
        for name in self.finetuned:
            self.stage.check(name)
        return self.stage.folder / TEACHER if self.finetuned else self.options.teacher

    @property
    def finetuned(self) -> list[str]:
        """The files of the fine-tuned teacher; none before it is made, or where none was asked for."""
        return [name for name in self.stage.manifest["files"] if name.startswith(f"{TEACHER}/")]

    @property
    def held_out(self) -> Path | None:
        """The file of test documents that were taken out of the corpus."""
        return self.stage.folder / HELD_OUT if HELD_OUT in self.stage.manifest["files"] else None

    @property
    def k(self) -> int:
        """Neighbours of a position: as many as were asked for, else DEFAULT_K or all other keys."""
        return self.options.k or default_k(self.tokens("train"), self.options.block)

    def tokens(self, split: str) -> Tokens:
        """The packed stream of a split, memory-mapped. Raises StageError when it was changed."""
        tokens: Tokens = np.load(self.stage.check(f"tokens/{split}.npy"), mmap_mode="r")
        return tokens

    def counted(self) -> Counted | None:
        """For each token of the training stream whether it is learned, memory-mapped; None: all are.

        Raises StageError when it was changed.
        """
        if COUNTED not in self.stage.manifest["files"]:
            return None
        counted: Counted = np.load(self.stage.check(COUNTED), mmap_mode="r")
        return counted

    def shards(self, kind: str) -> dict[str, range]:
        """Names of all shards of a kind ("keys" or "targets"), there or not, with the blocks that each covers."""
        total, block = n_blocks(self.tokens("train"), self.options.block), self.options.block
        before = max(1, SHARD_POSITIONS // block, -(-total // 100))  # an earlier version made at most 100 shards
        step = self.stage.manifest.get("shard_blocks", before)
        return {
            f"{kind}/{i:05}.safetensors": range(b, min(b + step, total)) for i, b in enumerate(range(0, total, step))
        }

    def missing(self, kind: str) -> dict[str, range]:
        """The shards that are not there yet."""
        return {name: blocks for name, blocks in self.shards(kind).items() if not (self.stage.folder / name).exists()}

    def is_finished(self, retrieve: bool) -> bool:
        """Whether nothing is missing; without `retrieve`, whether the tokens are there."""
        if "tokens" not in self.stage.manifest or not retrieve:
            return "tokens" in self.stage.manifest
        return "tau" in self.stage.manifest and not any(self.missing(kind) for kind in ("keys", "targets"))

    def datastore(self) -> Datastore:
        """The keys of all training positions. Raises StageError when a shard is missing, torn or changed."""
        return Datastore(self.stage, list(self.shards("keys")))

    def targets(self) -> Targets:
        """Targets of all training positions. Raises StageError when a shard is missing, torn or changed."""
        return Targets(self.stage, list(self.shards("targets")))

    def check(self) -> None:
        """Raise StageError unless every file of a finished cache is there and unchanged."""
        self.stage.check_recorded()
        shards = [*self.shards("keys"), *self.shards("targets")]
        for name in [VALIDATION, *shards] if (self.stage.folder / VALIDATION).exists() else shards:
            self.stage.read(name)

    def report(self) -> CacheReport:
        """The figures of a finished cache."""
        manifest = self.stage.manifest
        return CacheReport(
            path=self.stage.folder,
            train_tokens=manifest["tokens"]["train"],
            valid_tokens=manifest["tokens"]["valid"],
            held_out=self.held_out,
            key=self.options.key,
            k=self.k,
            tau=manifest["tau"],
            nearest_distance=manifest["nearest_distance"],
            kth_distance=manifest["kth_distance"],
            teacher_perplexity=manifest["teacher_perplexity"],
            knn_perplexity=manifest["knn_perplexity"],
            gate=manifest["weight"],
            search=manifest["search"],
            recall=manifest["recall"],
            bytes=sum(file.stat().st_size for file in self.stage.folder.rglob("*") if file.is_file()),
        )


def default_k(train: Tokens, block: int) -> int:
    """DEFAULT_K, or as many neighbours as a key has."""
    return min(DEFAULT_K, n_blocks(train, block) * block - 1)


def shard_blocks(options: CacheOptions, k: int, n_vocab: int) -> int:
    """Blocks of a shard: SHARD_POSITIONS, fewer where the pairs of its targets might not fit their uint32 offsets.

    Raises OptionError (top_mass) when those of a single block might not.
    """
    pairs = min(k + OWN, n_vocab) if options.top_mass == 1 else ROW_PAIRS  # of a position, at most
    fitting = MAX_PAIRS // (pairs * options.block)
    if fitting == 0:
        reason = f"a block of {options.block} positions may have over {MAX_PAIRS} pairs; lower it, `block` or `k`"
        raise OptionError("top_mass", options.top_mass, reason)
    return min(max(1, SHARD_POSITIONS // options.block), fitting)
