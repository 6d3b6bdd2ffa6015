"""Options of the whole road from documents to a measured memory: learn and the demo.

Knows nothing of where values come from.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from memdec_edge.errors import OptionError
from memdec_edge.options.fields import INT_MAX, Checked, about, option

FORMS = ("text", "chat", "auto")  # of training text
DOMAINS = ("medicine", "licences")  # of the demo; workflow/corpora.py
_TIME = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.IGNORECASE)


@dataclass(frozen=True)
class LearnOptions(Checked):
    """Documents -> a memory and an index, measured. Either `documents` and `base` are given, or `add` and `out`."""

    documents: Path | None = option(
        None, metavar="DOCS", help="Text of any kind that train reads: a file, a zip or a folder of them."
    )
    base: Path | None = field(default=None, metadata=about(help="Base model, GGUF."))
    out: Path | None = option(
        None, "--out", metavar="DIR", unicode=True, help="Folder for everything. Default: one in the user's cache."
    )
    budget: str = option("", "--budget", metavar="TIME", help="Time to take at most, such as 45m. Default: as needed.")
    domain: str = option("", "--domain", metavar="TEXT", help="What the documents are about. Default: their name.")
    license: str = option("", "--license", metavar="TEXT", help="Licence of the documents, such as CC-BY-4.0.")
    teacher: Path | None = option(
        None, "--teacher", metavar="PATH",
        help="Smaller model of the base's family to start from: folder or GGUF. Default: the base.",
    )  # fmt: skip
    max_tokens: int = option(
        0, "--max-tokens", low=0, high=INT_MAX, help="Training tokens to use at most; 0: as many as the budget allows."
    )
    form: str = option(
        "auto", "--form", choices=FORMS,
        help="Form of what is learned: text; chat: a part in the base's chat template; auto: as begun, else text.",
    )  # fmt: skip
    add: Path | None = option(
        None, "--add", metavar="DOCS", help="More documents for the memory that is in `out`, which goes on from there."
    )
    seed: int = option(0, "--seed", low=0, high=INT_MAX, help="Seed of splits and of the order of the text.")
    # None: as the table of recipes says (workflow/recipes.py)
    retriever: bool | None = field(default=None, metadata=about(help="Whether the memory imitates a retriever."))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget and not self.seconds:
            raise OptionError("budget", self.budget, "must be a time such as 90s, 45m or 1h30m")
        if self.add is None:
            missing = [name for name in ("documents", "base") if getattr(self, name) is None]
            if missing:
                raise OptionError(missing[0], "missing", "give it, or `add` with `out` to go on from a memory")
        elif self.out is None:
            raise OptionError("out", "missing", "name the folder of the memory that is to learn more")
        elif self.documents is not None:
            raise OptionError("add", self.add, "given beside `documents`; give one of the two")

    @property
    def seconds(self) -> float | None:
        """The budget in seconds; None: there is none."""
        found = _TIME.fullmatch(self.budget)
        hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
        return float(3600 * hours + 60 * minutes + seconds) or None


@dataclass(frozen=True)
class DemoOptions(Checked):
    """The demo: which text, how much of it, and whether it compares with a control."""

    domain: str = option("medicine", "--domain", choices=DOMAINS, help="Text to learn: medicine or licences.")
    quick: bool = option(False, "--quick", help="Run a smaller version, of a few minutes.")
    control: bool = option(
        False, "--control", help="Imitate a retriever, and train a control without one beside it: three times as long."
    )
