"""Which of its settings make llama.cpp split text as the checkpoint's own tokenizer does: found by trying them.

Names in a tokenizer's files say little, and one definition can be written in many ways. So the ids of a probe text
decide. Each candidate becomes a GGUF of the vocabulary alone, which llama.cpp opens. Knows nothing of the files that
vocabularies come from.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from memdec_edge.errors import ModelFileError
from memdec_edge.gguf.writer import GgufFile, Value
from memdec_edge.llama.model import Model

from .probe import ORDINARY, Reference, first_difference
from .tokenizer_files import ADVICE
from .vocabulary import BYTE_LEVEL, UNIGRAM, Vocabulary

MAX_TELLING = 512  # tokens that _telling() builds texts of
SPACES = str.maketrans("ĠĊĉč", " \n\t\r")  # how byte-level vocabularies spell them


def recognise(
    vocabulary: Vocabulary, entries: dict[str, bytes], reference: Reference
) -> tuple[Mapping[str, Value], list[str]]:
    """The first of `vocabulary.variants` with which llama.cpp gives `reference`'s ids on ORDINARY, and warnings.

    `entries` are the other keys of the tokenizer block. Raises ModelFileError, which names the first difference, where
    no variant gives those ids.
    """
    texts = (*ORDINARY, *_telling(vocabulary))
    difference = ""
    for variant, model in _candidates(vocabulary, entries):
        found = first_difference(model, reference, texts)
        if not found:
            return variant, _limits(model, reference)
        difference = difference or found
        if vocabulary.model == UNIGRAM and not first_difference(model, reference, _within(texts, model, reference)):
            return variant, ["llama.cpp has no byte fallback for Unigram: characters outside the vocabulary become one "
                             "unknown token"]  # fmt: skip
    what = "no pre-tokenizer of llama.cpp fits" if vocabulary.model == BYTE_LEVEL else "llama.cpp lacks its normaliser"
    raise ModelFileError(vocabulary.path, f"{what} ({difference}); {ADVICE}")


def _candidates(vocabulary: Vocabulary, entries: dict[str, bytes]) -> Iterator[tuple[Mapping[str, Value], Model]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        for variant in vocabulary.variants:
            file = GgufFile()
            file.add("general.architecture", "llama")
            file.entries |= entries
            for key, value in variant.items():
                file.add(key, value)
            file.write(path, [], lambda count: None)
            try:
                model = Model(path, vocab_only=True)
            except ModelFileError as error:  # it names the temporary file, which the user does not know
                reason = f"llama.cpp cannot use this vocabulary: {error.reason}"
                raise ModelFileError(vocabulary.path, reason) from error
            with closing(model):
                yield variant, model


def _telling(vocabulary: Vocabulary) -> list[str]:
    """Texts around tokens that tell pre-tokenizers apart, for a vocabulary that ORDINARY says little about.

    Such are tokens that a pre-tokenizer may cut, and words that no merge makes. Only ASCII ones are taken, and at most
    MAX_TELLING, evenly spaced.
    """
    if vocabulary.model != BYTE_LEVEL:
        return []
    made = {merge.replace(" ", "") for merge in vocabulary.merges}
    texts = (text for number, text in vocabulary.texts.items() if number not in vocabulary.added)
    found = [
        plain
        for text in texts
        if (plain := text.translate(SPACES)).isascii() and len(plain) > 1
        if not plain.removeprefix(" ").isalpha() or text not in made
    ]
    return [f"{text} a{text}b" for text in found[:: len(found) // MAX_TELLING + 1]]


def _within(texts: tuple[str, ...], model: Model, reference: Reference) -> tuple[str, ...]:
    """`texts` without the characters for which the checkpoint's tokenizer has only byte tokens."""
    known = {
        character
        for character in set("".join(texts))
        if not any(model.token_text(token).startswith(b"<0x") for token in reference.encode(character))
    }
    return tuple("".join(character for character in text if character in known) for text in texts)


def _limits(model: Model, reference: Reference) -> list[str]:
    """Warnings of what the probe, which is composed (NFC), cannot show."""
    composed, decomposed = "é", "e\u0301"
    if reference.encode(composed) == reference.encode(decomposed) != model.tokenize(decomposed, add_special=False):
        return [
            "the checkpoint's tokenizer composes characters (NFC) and llama.cpp does not: decomposed text gets other "
            "tokens"
        ]
    return []
