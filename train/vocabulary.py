"""The vocabulary of a model: the text of each token id; no weights are read. Knows nothing of how text becomes ids."""

import hashlib
import json
from pathlib import Path

import transformers

from memdec_edge.errors import ModelFileError, OptionError
from memdec_edge.gguf.header import Header
from memdec_edge.gguf.padding import MAX_PADDING

from .models import Source, quiet


def check_vocabulary(source: Source, teacher: Path) -> None:
    """Raise ModelFileError unless `source` speaks the vocabulary of the teacher."""
    advice = "a memory starts from a model of the teacher's family"
    mine, theirs = source.n_vocab, read_vocabulary(teacher)
    if abs(mine - len(theirs)) > MAX_PADDING:
        raise ModelFileError(source.path, f"its vocabulary has {mine} tokens, the teacher's {len(theirs)}; {advice}")
    for text, i in sorted(source.tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if i < len(theirs) and theirs[i] != text and not _is_padding(text, i) and not _is_padding(theirs[i], i):
            difference = f"token {i} is {json.dumps(theirs[i])} there and {json.dumps(text)} here"
            raise ModelFileError(source.path, f"its vocabulary is not the teacher's: {difference}; {advice}")


def read_vocabulary(path: Path) -> list[str | None]:
    """Token texts by id, for each row of the embedding; None where a row has no token."""
    if path.is_file():
        with Header(path) as header:
            return [token.decode("utf-8", "replace") for token in header.strings("tokenizer.ggml.tokens")]
    with quiet():
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        tokens = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True).get_vocab()
    texts: list[str | None] = [None] * max(config.get_text_config().vocab_size, *(i + 1 for i in tokens.values()))
    for text, i in tokens.items():
        texts[i] = text
    return texts


def vocabulary_digest(vocabulary: list[str | None]) -> str:
    """SHA-256 of token texts in their order, padding at the end left out.

    A GGUF and the folder that it was made from have the same digest.
    """
    texts = [None if _is_padding(text, i) else text for i, text in enumerate(vocabulary)]
    while texts and texts[-1] is None:
        texts.pop()
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def template_digest(base: Path) -> str:
    """SHA-256 of what decides the tokens of a chat beside the vocabulary: a GGUF's chat template and special tokens.

    Raises OptionError (chat_base) for a GGUF without a template.
    """
    from memdec_edge.chat.template import own_template  # with llama.cpp, which text alone does not need

    with Header(base) as header:
        found = {key: value for key, value in header.scalars().items() if key.startswith("tokenizer.")}
    if not own_template(found):
        raise OptionError("chat_base", base, "it has no chat template; give an instruct model, or leave it out")
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _is_padding(text: str | None, i: int) -> bool:
    return text is None or text == f"[PAD{i}]"
