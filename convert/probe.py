"""Texts on which tokenizers differ, and the comparison of llama.cpp's tokens with the checkpoint's own, id for id.

ORDINARY holds what pre-tokenizers treat differently in everyday text. HARD adds what breaks tokenizers: emoji, other
scripts, control characters, long runs of spaces. Both are composed (NFC), since llama.cpp does not normalise text.
Knows nothing of how a tokenizer block is made.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memdec_edge.errors import MissingExtraError, ModelFileError
from memdec_edge.llama.model import Model

from .tokenizer_files import ADVICE, TokenizerFiles, find
from .vocabulary import SPACE, added_tokens, well_formed

ORDINARY = (
    "The heart is a muscle that pumps blood through the body.",
    "I'm sure they'll say it's what we've said; he'd don't, you're. 'tis the dogs' park 'again'",
    "I'M SURE THEY'LL SAY IT'S WHAT WE'VE SAID; HE'D DON'T, YOU'RE. O'Neill",
    "3 33 333 3333 33333 333333 3333333 0123456789 3.14 1,234,567.89 2024-12-31 a1b22c333 v2.0",
    "def area(width, height):\n    return width * height  # m²\n\n\n\tif x == y: {a[0]} += 1;\n",
    "camelCase HTTPServer snake_case kebab-case CONSTANT_CASE XMLHttpRequest iPhone",
    'and/or (see "note") <b>bold</b> $5 = 5 € 100% a+b^2 ~x | `code` @me #1 & co... what?! -- ok -->\n',
    "https://example.org/path/?q=1&r=two#three mail@example.org C:\\dir\\file.txt",
    "two  spaces   three    four\n newline \r\n\r\n windows\n\n\n  indented\t\ttabs \n",
    "Zwölf Boxkämpfer, naïve café, Ærøskøbing, Łódź, señor; нещо на български; ελληνικά",
    "東京は日本の首都です。我想在apple工作1314151天～ 한국어 텍스트 12개",
    "…—–“quoted” ‘single’ «guillemets» • bullet № 5 ½ ² Ⅷ",
    "end of a line ",
)
HARD = (
    "🙂 👩‍🔬👨‍👩‍👧‍👦 🏴‍☠️ 🇩🇪 ✅🚀🚀 ☃️ 😶‍🌫️",
    "العربية نص ١٢٣ עברית हिन्दी में पाठ ภาษาไทย கற்பது ខ្មែរ ქართული",
    "漢字かなカナ㐂𠮷野家 繁體字，標點：「引號」！ 가힣ㄱ",
    "\x01\x02\x07\x08\x0b\x0c\x1b[31m\x7f \u200b\u200d\u2060\ufeff\u00ad\u202e",
    "a\u00a0b\u2003c\u3000d\u2028e\u0085f \u00a0 \u3000\u3000",
    " " * 3 + "x" + " " * 17 + "y" + " " * 130 + "z" + "\n" * 9 + "\t" * 11 + " \n \n  \n\t \n" + " " * 40,
    "=" * 80 + "-" * 70 + "*" * 33 + "...." * 20 + "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" + "hahahahahahaha" + "0" * 50,
    "\U0010ffff\ue000\ufffd𝕳𝖊𝖑𝖑𝖔 ℝ ∀x∈ℝ: ⌈x⌉ ≤ x+1 ⇒ ∑ᵢ αᵢ² ﬁ Å",
    "Zalgo: z\u0334\u0352a\u0335\u0330 q\u0323\u0307",
    "",
    " ",
    "\n",
)
MAX_SPECIALS = 256  # added tokens that are tried as text; most of Gemma's 6,000 are alike
Encode = Callable[[str], list[int]]


class Reference:
    """The checkpoint's own tokenizer: tokenizer.json through `tokenizers`, else tokenizer.model through SentencePiece.

    Raises ModelFileError where the file cannot be read, MissingExtraError without those packages.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self.path = files.path
        self.specials: list[str] = []  # added tokens, which it finds as text
        self.strange: list[str] = []  # added tokens that SentencePiece does not know: it has only those of its model
        if files.body:
            tokenizer = _tokenizers(files)
            added = sorted(tokenizer.get_added_tokens_decoder().items())
            self.specials = [str(token.content) for _, token in added[:MAX_SPECIALS]]
            self._encode: Encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
            self._decode: Callable[[list[int]], str] = lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
        else:
            processor = _sentencepiece(self.path)
            self._encode, self._decode = processor.encode, processor.decode
            with well_formed(files.settings_path):
                self.strange = [str(token["content"]).replace(SPACE, " ") for token in added_tokens(files).values()]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and EOS; added tokens are found in it."""
        with _readable(self.path):
            return list(self._encode(text))

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, with added tokens spelled out."""
        with _readable(self.path):
            return str(self._decode(ids))


def compare_tokenizers(gguf: Model, checkpoint: Path) -> str:
    """The first text that llama.cpp splits into other tokens than the checkpoint's own tokenizer, in a sentence, or "".

    Also "" where the checkpoint has no tokenizer. Compared are ORDINARY, HARD, both in one piece, and the first
    MAX_SPECIALS added tokens, each between words. Where the checkpoint's tokenizer gives a text back, llama.cpp must
    too. Raises as find() and Reference do.
    """
    files = find(checkpoint)
    if files is None:
        return ""
    reference = Reference(files)
    plain = (*ORDINARY, *HARD)
    specials = [f"one {token}two{token} three{token}{token}\n" for token in reference.specials]
    return first_difference(gguf, reference, (*plain, "\n".join(plain), *specials))


def first_difference(gguf: Model, reference: Reference, texts: tuple[str, ...]) -> str:
    """One sentence on the first of `texts` that the two split differently or that llama.cpp does not give back.

    Texts with an added token that `reference` does not know are passed over.
    """
    for text in texts:
        if any(token in text for token in reference.strange):
            continue
        theirs = reference.encode(text)
        ours = gguf.tokenize(text, add_special=False, parse_special=bool(reference.specials))
        if ours != theirs:
            at = next((i for i, (a, b) in enumerate(itertools.zip_longest(ours, theirs)) if a != b), 0)
            return (f"llama.cpp splits {_excerpt(reference.decode(theirs[max(at - 3, 0):]), text)} into tokens "
                    f"{ours[at:at + 4]} and {reference.path} into {theirs[at:at + 4]}")  # fmt: skip
        back = b"".join(gguf.piece(token, special=True) for token in ours).decode("utf-8", "replace")
        # SentencePiece puts a space before a text and takes it away again; llama.cpp's pieces keep it.
        if reference.decode(theirs).lstrip(" ") == text.lstrip(" ") != back.lstrip(" "):
            return f"llama.cpp gives back {_excerpt(back, back)} for {_excerpt(text, text)}"
    return ""


def _excerpt(part: str, text: str) -> str:
    return repr((part or text)[:40])


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what tokenizers raises for a damaged file into one error that names the file."""
    try:
        yield
    except BaseException as error:
        # tokenizers raises nothing narrower than Exception, and on a panic of its Rust code a BaseException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelFileError(path, f"cannot be read ({' '.join(str(error).split()):.200}); {ADVICE}") from error


def _tokenizers(files: TokenizerFiles) -> Any:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "tokenizers", "convert") from error
    with _readable(files.path):
        tokenizer = Tokenizer.from_str(json.dumps(files.body))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _sentencepiece(path: Path) -> Any:
    try:
        from sentencepiece import SentencePieceProcessor
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "sentencepiece", "convert") from error
    with _readable(path):
        return SentencePieceProcessor(model_file=str(path))
