"""An index as the retriever that a memory imitates: does it pay, with no teacher, no keys and no search?

    python benchmarks/ngram_target.py --teacher DIR --corpus DIR --out DIR [--tokens 24576] [--epochs 4]
                                      [--betas 0 1 .5]

At each training position the longest match of its context in the other documents gives p_match, the distribution of
what follows there. The target is t * p_match + (1 - t) * the true token. t is the trust in the match's length: the mean
probability that such matches give to the right token, measured on validation text. A memory is trained for each beta
(0: no target, the control), all by the same steps. Figures are of validation text after each epoch: perplexity alone,
and mixed with the teacher at the best lambda. Run again, it goes on. The last line is one JSON object.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from provenance import metrics, write_rows

from memdec_edge.gguf.index_file import Positions
from memdec_edge.indexing.sort import sorted_prefixes
from memdec_edge.indexing.trust import Part
from memdec_edge.mixture.match import CLASSES, Match, Matcher, class_of
from memdec_edge.options import CacheOptions, TrainOptions
from memdec_edge.progress import progress
from memdec_edge.train.artifacts import open_stage
from memdec_edge.train.corpus import Tokens
from memdec_edge.train.feed import Data
from memdec_edge.train.knn.build import fill_cache
from memdec_edge.train.knn.cache import Cache
from memdec_edge.train.loop import LAYOUT, accelerator, fit, settings
from memdec_edge.train.models import load_source
from memdec_edge.train.targets import Support, Targets
from memdec_edge.train.teacher import n_blocks
from memdec_edge.train.teachers import open_teacher
from memdec_edge.train.validation import Validation

END = 65_535
FOLDS = 64  # documents of one fold are looked up without that fold
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "corpus", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=24_576)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.0, 1.0, 0.5])
    args = parser.parse_args()
    options = CacheOptions(args.teacher, args.corpus, args.out / "cache", block=256, max_tokens=args.tokens + 1)
    cache, processes, source = Cache(options), accelerator(), load_source(args.teacher)
    fill_cache(cache, processes, source, retrieve=False)
    train, valid = cache.tokens("train"), cache.tokens("valid")
    validation = Validation(valid, options.block)
    read = open_teacher(args.teacher, "hidden", CPU, source).read(
        valid, validation.blocks, options.block, 4, lambda count: None, scored=True
    )
    validation = Validation(valid, options.block, torch.from_numpy(-read.logprobs))
    targets = Ngrams(train, valid, source.encoder.eos, n_blocks(train, options.block) * options.block)
    print(f"trust by class of match length: {np.round(targets.trust, 3).tolist()}", flush=True)
    rows = []
    for beta in args.betas:
        training = TrainOptions(
            options, args.out / f"beta-{beta:g}", epochs=args.epochs, beta=beta, lr=2e-4, valid_every=len(train)
        )
        chosen = settings(training, 1) | {"imitates": "match"}
        stage = open_stage(training.out, "memory", {"the tokens": cache.stage.identity}, chosen, LAYOUT)
        data = Data(train, targets if beta else None, validation, options.block)
        fit(training, load_source(args.teacher), data, stage, processes)
        for line in metrics(training.out):
            if "valid_perplexity" in line:
                rows.append({"beta": beta} | {key: line[key] for key in ("step", "ce", "kl", "valid_perplexity",
                            "mixture_perplexity", "mixture_lambda")})  # fmt: skip
        stage.close()
    write_rows(args.out / "ngram.csv", rows)
    print((args.out / "ngram.csv").read_text(encoding="utf-8"))
    print(json.dumps({"benchmark": "ngram_target", "trust": targets.trust.tolist(), "rows": rows}))


class Ngrams(Targets):  # type: ignore[misc, unused-ignore]
    """Targets of all training positions, in memory."""

    def __init__(self, train: Tokens, valid: Tokens, eos: int, positions: int) -> None:
        stream, self.trust = marked(train, eos), np.zeros(1 + len(CLASSES))
        prefixes = sorted_prefixes(stream, END - 1, lambda count: None)
        counts = np.zeros(1 + len(CLASSES))
        known = marked(valid, eos)
        for match, label in matches(Part(stream, prefixes, END - 1), known, range(len(known) - 1)):
            kind = class_of(match.length)
            counts[kind] += 1
            self.trust[kind] += match.probs[match.ids == label].sum()
        self.trust = np.where(np.arange(len(counts)) > 0, self.trust / np.maximum(counts, 1), 0)
        self.rows_: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = []
        self._fill(stream, prefixes, positions, eos)

    def _fill(self, stream: npt.NDArray[np.uint16], prefixes: Positions, positions: int, eos: int) -> None:
        document = np.concatenate([[0], np.cumsum(stream[:-1] == END)])
        parts = {fold: prefixes[document[prefixes] % FOLDS != fold] for fold in range(FOLDS)}
        found: dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = {}
        bounds = np.searchsorted(document, np.arange(document[-1] + 2))
        with progress("matches", len(stream)) as advance:
            for number in range(document[-1] + 1):
                span = range(int(bounds[number]), int(bounds[number + 1]) - 1)
                part = Part(stream, parts[number % FOLDS], END - 1)
                for at, (match, label) in zip(span, matches(part, stream, span), strict=True):
                    trust = self.trust[class_of(match.length)]
                    ids, place = np.unique(np.append(match.ids, eos if label == END else label), return_inverse=True)
                    probs = np.bincount(place, np.append(trust * match.probs, 1 - trust))
                    found[at] = ids.astype(np.int64), probs.astype(np.float32)
                advance(len(span) + 1)
        nothing = np.empty(0, np.int64), np.empty(0, np.float32)
        self.rows_ = [found.get(at, nothing) for at in range(positions)]

    def rows(self, starts: list[int], length: int) -> Support:
        """As Targets.rows(); no target after an EOS, where another document begins."""
        chosen = [self.rows_[at] for start in starts for at in range(start, start + length)]
        offsets = np.cumsum([0, *(len(ids) for ids, _ in chosen)])
        ids, probs = (np.concatenate(part) for part in zip(*chosen, strict=True))
        return Support(torch.from_numpy(offsets), torch.from_numpy(ids), torch.from_numpy(probs))


def marked(tokens: Tokens, eos: int) -> npt.NDArray[np.uint16]:
    """The stream as an index has it: END after each document."""
    stream = np.where(tokens == eos, END, tokens).astype(np.uint16)
    stream[-1] = END
    return stream


def matches(part: Part, stream: npt.NDArray[np.uint16], span: range) -> Iterator[tuple[Match, int]]:
    """The match after each position of `span`, and the token that follows."""
    matcher = Matcher(part)
    for at in span:
        matcher = Matcher(part) if stream[at] == END else matcher
        if stream[at] != END:
            matcher.extend([int(stream[at])])
        yield matcher.match(), int(stream[at + 1])


if __name__ == "__main__":
    main()
