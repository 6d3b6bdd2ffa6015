"""The kNN cache on disk: what a retriever over the training text would answer at each of its positions.

    tokens/{train,valid}.npy          the packed splits, uint32
    test.jsonl                        held-out documents, where the corpus names no test split of its own
    teacher/                          a copy of the teacher, fine-tuned on the corpus, where that was asked for
    keys/N.safetensors                the datastore, float16; for target knn-lm what the teacher itself predicts, too
    index.faiss                       what finds neighbours in one too large for exact search
    validation.safetensors            neighbours of validation positions, their distances, the teacher's log-probs
    targets/N.safetensors             what a memory is to predict at the training positions
    manifest.json                     what all this was made from, and the figures of CacheReport

Knows where things are and whether they are there and whole; train/knn/build.py makes them.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdec_edge.documents import SPLITS, split_files
from memdec_edge.errors import OptionError
from memdec_edge.options import CacheOptions

from ..artifacts import open_stage
from ..corpus import Tokens
from ..models import digests, source_files
from ..report import CacheReport
from ..targets import Targets
from ..teacher import n_blocks

SHARD_POSITIONS = 16384  # of keys and of targets, at least; rounded to whole blocks
MAX_SHARDS = 100  # of a kind: each is an open file while it is mapped, and some systems allow 256
TEACHER, INDEX, VALIDATION, HELD_OUT = "teacher", "index.faiss", "validation.safetensors", "test.jsonl"
LAYOUT = ("tokens/*.npy", HELD_OUT, "keys/*.safetensors", INDEX, VALIDATION, "targets/*.safetensors")


class Cache:
    """A cache folder, finished or not. The arrays of one split, the names of the shards, the positions in each."""

    def __init__(self, options: CacheOptions) -> None:
        """Open it; nothing is written before fill_cache()."""
        self.options = options
        chosen = {
            "--finetune-teacher": options.finetune_teacher,
            "--key": options.key,
            "--target": options.target,
            "--k": options.k,
            "--knn-temp": options.knn_temp or "auto",
            "--search": options.search,
            "--top-mass": options.top_mass,
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
            raise OptionError("out", options.out, f"must be outside {root}, whose text files are all taken as corpus")
        inputs = digests(source_files(options.teacher), "teacher")
        inputs |= digests({str(file.relative_to(root)): file for file in texts}, "corpus")
        self.stage = open_stage(options.out, "kNN cache", inputs, chosen, LAYOUT, options.fresh)

    @property
    def texts(self) -> list[str]:
        """SHA-256 of each file of the corpus that is no test split: what a memory has seen of it."""
        inputs = self.stage.made_from["inputs"]
        return sorted(
            {digest for name, digest in inputs.items() if name.startswith("corpus ") and name != "corpus test.jsonl"}
        )

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

    def tokens(self, split: str) -> Tokens:
        """The packed stream of a split, memory-mapped. Raises StageError when it was changed."""
        tokens: Tokens = np.load(self.stage.check(f"tokens/{split}.npy"), mmap_mode="r")
        return tokens

    def shards(self, kind: str) -> dict[str, range]:
        """Names of all shards of a kind ("keys" or "targets"), there or not, with the blocks that each covers."""
        total, block = n_blocks(self.tokens("train"), self.options.block), self.options.block
        step = max(1, SHARD_POSITIONS // block, -(-total // MAX_SHARDS))
        starts = range(0, total, step)
        return {f"{kind}/{i:05}.safetensors": range(b, min(b + step, total)) for i, b in enumerate(starts)}

    def missing(self, kind: str) -> dict[str, range]:
        """The shards that are not there yet."""
        return {name: blocks for name, blocks in self.shards(kind).items() if not (self.stage.folder / name).exists()}

    def datastore(self) -> list[npt.NDArray[np.float16]]:
        """The keys of all training positions, memory-mapped. Raises StageError when a shard was changed."""
        return [self.stage.read(name)["keys"] for name in self.shards("keys")]

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
