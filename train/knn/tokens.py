"""The corpus of a cache as tokens, packed or given, written once all that can refuse the work has been looked at.

Knows of models only how they make tokens of text, and of neighbours only how many there will be.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memdec_edge.documents import Document, split_documents
from memdec_edge.errors import CorpusError, OptionError, TemplateError
from memdec_edge.files import atomic_path, sha256, shown_name, write_text
from memdec_edge.notes import note
from memdec_edge.options import DEFAULT_K, CacheOptions

from ..artifacts import open_stage
from ..corpus import Counted, Encoder, Tokens, pack
from ..forms import pack_forms
from ..loop import LAYOUT
from ..teacher import Teacher, n_blocks
from ..token_files import holds_ids, read_ids, say_ids
from ..vocabulary import read_vocabulary, vocabulary_digest
from .cache import COUNTED, FINETUNED, HELD_OUT, TEACHER, Cache, default_k, shard_blocks


def write_tokens(cache: Cache, teacher: Teacher, retrieve: bool) -> None:
    """Split and pack the corpus, begin the cache, and write the tokens and what is known of the teacher.

    Raises as build_cache() does. What is refused leaves no trace.
    """
    options, stage = cache.options, cache.stage
    packed, counted, held_out = _from_ids(cache) if holds_ids(cache.corpus) else _from_text(cache, teacher)
    _check_blocks(options, teacher.n_ctx, packed["train"])
    if retrieve:
        check_neighbours(options, packed["train"], packed["valid"])
    step = shard_blocks(options, options.k or default_k(packed["train"], options.block), teacher.n_vocab)
    stage.take()
    if not stage.begun and stage.owns(TEACHER):  # it belongs to the cache that is to be redone
        open_stage(stage.folder / TEACHER, FINETUNED, {}, {}, LAYOUT, fresh=True).remove()
    stage.begin()
    arrays: dict[str, npt.NDArray[Any]] = {f"tokens/{split}.npy": tokens for split, tokens in packed.items()}
    if counted is not None:
        stage.claim(COUNTED)
        arrays[COUNTED] = counted
    for name, array in arrays.items():
        with atomic_path(stage.folder / name) as part, part.open("wb") as file:
            np.save(file, array)
    files = list(arrays)
    if held_out:
        files.append(HELD_OUT)
        stage.claim(HELD_OUT)
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in held_out)
        write_text(stage.folder / HELD_OUT, "".join(lines))
    stage.record(
        files={name: sha256(stage.folder / name) for name in files},
        tokens={split: len(tokens) for split, tokens in packed.items()},
        shard_blocks=step,
        teacher=teacher.name,
        width=teacher.width,
        n_vocab=teacher.n_vocab,
    )


def _from_text(cache: Cache, teacher: Teacher) -> tuple[dict[str, Tokens], Counted | None, list[str]]:
    """Training and validation tokens, which of the first count, and test documents where the corpus names no split."""
    options = cache.options
    documents = split_documents(options.corpus, options.valid_fraction, options.test_fraction, options.seed)
    splits = {split: [document.text for document in some] for split, some in documents.items()}
    held_out = [] if "test" in cache.corpus.files else splits["test"]
    counted: Counted | None = None
    if options.chat_base is None:
        train = pack(splits["train"], teacher.encoder, options.max_tokens)
    else:
        train, counted = _in_forms(options, options.chat_base, documents["train"], teacher.encoder)
    return {"train": train, "valid": pack(splits["valid"], teacher.encoder, 0)}, counted, held_out


def _in_forms(
    options: CacheOptions, base: Path, documents: Sequence[Document], encoder: Encoder
) -> tuple[Tokens, Counted]:
    """Training tokens, a share of the text in the chat template of `base`, and which of them count.

    Raises OptionError (chat_base) for a base with another tokenizer than the teacher's, or a template that is broken.
    """
    from memdec_edge.chat import Transcriber  # with llama.cpp, which text alone does not need

    mine, theirs = (vocabulary_digest(read_vocabulary(path)) for path in (base, options.teacher))
    if mine != theirs:
        reason = f"its tokenizer is not that of the teacher, {options.teacher}; give one of the teacher's family"
        raise OptionError("chat_base", base, reason)
    try:
        transcriber = Transcriber(base)
    except TemplateError as error:
        raise OptionError("chat_base", base, f"{error.reason}; leave it out") from error
    with closing(transcriber):
        found = pack_forms(documents, encoder, transcriber, options.chat_share, options.max_tokens)
    if found.chats:
        note(f"text: {found.chats:,} chats in the template of {shown_name(base)}, of which answers are learned")
    else:
        note("text: nothing in it asks for what stands below, so all of it stays text")
    if found.refused:
        note(f"text: {found.refused:,} chats stay text: the template cannot write them")
    return found.tokens, found.counted


def _from_ids(cache: Cache) -> tuple[dict[str, Tokens], None, list[str]]:
    """Training and validation tokens of a corpus that is tokenized already."""
    options = cache.options
    if options.chat_base:
        raise OptionError("chat_base", options.chat_base, "token ids hold no questions; give the text")
    say_ids(cache.corpus)
    train, valid = (cache.corpus.files.get(split) for split in ("train", "valid"))
    assert train
    return (
        {
            "train": read_ids(train[0].path, options.teacher, options.max_tokens),
            "valid": read_ids(valid[0].path, options.teacher) if valid else np.empty(0, np.uint32),
        },
        None,
        [],
    )


def _check_blocks(options: CacheOptions, context: int, train: Tokens) -> None:
    """Raise OptionError (block) and CorpusError unless there is a block that the teacher can read."""
    if options.block > context:
        raise OptionError("block", options.block, f"the teacher's context is {context} tokens")
    if n_blocks(train, options.block) == 0:
        few = f"{len(train)} training tokens are less than one block and a token"
        raise CorpusError(options.corpus, f"{few}; give more text, or a smaller `block` than {options.block}")


def check_neighbours(options: CacheOptions, train: Tokens, valid: Tokens) -> None:
    """Raise OptionError (target, k, knn_temp) unless there are so many neighbours, and text to fit a gate on."""
    keys = n_blocks(train, options.block) * options.block
    if options.k is not None and options.k > keys - 1:
        reason = f"the datastore has {keys} keys, so a key has {keys - 1} neighbours"
        raise OptionError("k", options.k, reason)
    if n_blocks(valid, options.block) == 0:
        reason = f"needs {options.block + 1} tokens of validation text"
        if options.target == "knn-lm":
            raise OptionError("target", "knn-lm", f"{reason}; give more text, or `target` knn and `knn_temp`")
        if options.knn_temp is None:
            raise OptionError("knn_temp", "auto", f"{reason}; give a number, or more text")


def say_k(cache: Cache) -> None:
    """Say on stderr that there are fewer neighbours than k would be by default."""
    if cache.options.k is None and cache.k < DEFAULT_K:
        print(f"the text has {cache.k + 1} keys: k is {cache.k} and not {DEFAULT_K}", file=sys.stderr)
