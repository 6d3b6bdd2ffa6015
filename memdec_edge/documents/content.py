"""A document as its file has it: the text, and what is known of it beside. Knows nothing of files and of kinds."""

from dataclasses import dataclass, replace

from memdec_edge.documents.plain import mended

Turn = tuple[str, str]  # role, as a paragraph of a dialogue begins with it; text


@dataclass(frozen=True, slots=True)
class Content:
    """A text. title: "" where none is known beside it, None where nothing asks for it, as for a program.

    turns: those of a dialogue, of which `text` is made
    """

    text: str
    title: str | None = ""
    turns: tuple[Turn, ...] = ()

    @staticmethod
    def of(turns: list[Turn]) -> "Content":
        """A dialogue: its text has a paragraph for each turn."""
        return Content("\n\n".join(f"{role}: {text}" for role, text in turns), "", tuple(turns))

    @property
    def mended(self) -> "Content":
        """The same with a question mark for each half of a surrogate pair, which is no character."""
        turns = tuple((role, mended(text)) for role, text in self.turns)
        return replace(self, text=mended(self.text), title=self.title and mended(self.title), turns=turns)
