"""What a memory is worth, as files: report.html for its maker, README.md for others (a model card of the Hub).

The page needs no network and no script. The card goes where the memory goes, so it holds no path of this machine and no
line of the documents. Both say first whether the memory helps. Every value is escaped; one that is missing is "not
measured". Knows nothing of how anything was measured.
"""

import math
import re
import shlex
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from memdec_edge.files import write_text
from memdec_edge.options import HUB_ID
from memdec_edge.workflow.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, chart

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE, CARD = "report.html", "README.md"
NOT_MEASURED = "not measured"
VOICES = {
    "base": "Base alone",
    "memory": "Memory alone",
    "mixture": "Base + memory, fixed lambda",
    "auto": "Base + memory, weights follow the text",
    "index": "Base + index",
    "both": "Base + memory + index",
}
FRAME = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
# the Hub takes these SPDX ids as they are; another licence is `other` with a name
HUB_LICENSES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-3.0", "cc-by-sa-3.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0",
    "agpl-3.0", "mpl-2.0", "gfdl", "odbl", "pddl", "unlicense",
}  # fmt: skip


def write_report(found: Mapping[str, Any], out: Path) -> Path:
    """Write report.html and README.md into the folder `out`, and return the path of the page.

    Any key of `found` may be missing, and any value None. Sizes are bytes, times seconds, errors standard errors:

        domain, name, license, helps, lambda, tokens_scored
        documents: files [{path, kind, documents, chars, split}], left_out [{path, reason}], duplicates, documents,
            tokens {train, valid, test}
        stages [{name, estimated_seconds, seconds}]
        models: base {file, bytes, name}, memory {file, bytes, type}, index {file, bytes}
        types [{type, bytes, perplexity}]
        perplexity {base, memory, mixture, auto, index, both}, general {base, memory, mixture, auto}: each
            {perplexity, standard_error}
        answers {base, memory, mixture}: the same of held-out answers in the base's chat template, and {tokens}
        curves: train [[tokens, loss]], valid [[tokens, perplexity]]
        speed {base, auto}: tokens per second
        continuations [{prompt, truth, base, mixture}]
        commands: what to do -> its command line

    Raises OutputError.
    """
    shared = {
        "found": found,
        "voices": _voices(found),
        "answers": _answers(found),
        "verdict": verdict(found),
        "missing": NOT_MEASURED,
    }
    curves = {name: chart(pairs) for name, pairs in (found.get("curves") or {}).items()}
    page = _environment(escape=True).get_template("report.html.jinja").render(shared, curves=curves, frame=FRAME)
    write_text(out / CARD, _card(found, shared))
    write_text(out / PAGE, page)
    return out / PAGE


def verdict(found: Mapping[str, Any]) -> str:
    """Whether the memory helps on held-out documents, and by how much, in a sentence or two."""
    helps = found.get("helps")
    if helps is None:
        return f"Whether the memory helps was {NOT_MEASURED}."
    scores = found.get("perplexity") or {}
    base, mixed = _perplexity(scores, "base"), _perplexity(scores, "auto") or _perplexity(scores, "mixture")
    figures = ""
    if base and mixed:
        figures = f" On held-out documents, base and memory together have a perplexity of {mixed:,.2f}, the base alone "
        figures += f"{base:,.2f} ({_percent(mixed / base - 1)})."
    if helps:
        return f"The memory helps.{figures}"
    return f"The memory does not help.{figures} Use the index alone, or learn from more text."


def _voices(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each voice and mixture: its scores on both texts, their change against the base, the width of a bar."""
    texts = {name: found.get(name) or {} for name in ("perplexity", "general")}
    largest = max((_perplexity(texts["perplexity"], voice) or 0.0 for voice in VOICES), default=0.0)
    rows = []
    for voice, label in VOICES.items():
        row: dict[str, Any] = {"voice": voice, "label": label}
        for text, scores in texts.items():
            value, base = _perplexity(scores, voice), _perplexity(scores, "base")
            change = _percent(value / base - 1) if value and base and voice != "base" else ""
            row[text] = {**(scores.get(voice) or {}), "change": change}
        value = _perplexity(texts["perplexity"], voice)
        row["width"] = round(100 * value / largest) if value and value > 0 else None
        rows.append(row)
    return rows


def _answers(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each voice that was scored on answers; none where no memory learned from any."""
    scores = found.get("answers") or {}
    base, rows = _perplexity(scores, "base"), []
    for voice in ("base", "memory", "mixture"):
        value = _perplexity(scores, voice)
        change = _percent(value / base - 1) if value and base and voice != "base" else ""
        rows.append({"label": VOICES[voice], "score": {**(scores.get(voice) or {}), "change": change}})
    return rows if scores else []


def _perplexity(scores: Mapping[str, Any], voice: str) -> float | None:
    return _number((scores.get(voice) or {}).get("perplexity"))


def _card(found: Mapping[str, Any], shared: Mapping[str, Any]) -> str:
    """The model card. The Hub's library writes its front matter; a licence that the Hub does not know gets a name."""
    from huggingface_hub import ModelCardData
    from markupsafe import Markup

    models, license = found.get("models") or {}, found.get("license")
    base, memory = ((models.get(role) or {}).get(key) for role, key in (("base", "name"), ("memory", "file")))
    known = isinstance(license, str) and license.lower() in HUB_LICENSES
    data = ModelCardData(
        base_model=base if isinstance(base, str) and HUB_ID.fullmatch(base) else None,
        library_name="memdec-edge",
        license=str(license).lower() if known else "other" if license else None,
        license_name=re.sub(r"[^a-z0-9.]+", "-", str(license).lower()).strip("-.") if license and not known else None,
        pipeline_tag="text-generation",
        tags=["memory-decoder", "memdec-edge", "gguf"],
    )
    command = shlex.join(["memdec-edge", "chat", "-m", "BASE.gguf", "-M", PurePath(memory or "MEMORY.gguf").name])
    template = _environment(escape=False).get_template("card.md.jinja")
    return template.render(shared, front_matter=Markup(data.to_yaml()), command=Markup(_fenced(command)))


@cache
def _environment(escape: bool) -> "Environment":
    """Jinja for the page (`escape`: HTML is escaped) or for the card, where Markdown is.

    No expression reaches either before finalize() has seen it: it names what is missing, and cleans what is text.
    """
    from jinja2 import ChainableUndefined, Environment, PackageLoader
    from markupsafe import Markup

    def finalize(value: object) -> object:
        if isinstance(value, Markup):
            return value
        missing = (
            value is None or isinstance(value, ChainableUndefined) or (isinstance(value, float) and value != value)
        )
        text = NOT_MEASURED if missing else _clean(str(value))
        return text if escape else _markdown(text)

    environment = Environment(
        loader=PackageLoader("memdec_edge.workflow", "."),
        autoescape=escape,
        undefined=ChainableUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": _measured(lambda value: f"{value:,.2f}"),
        "error": _measured(lambda value: f"\N{PLUS-MINUS SIGN} {value:,.2f}"),
        "rate": _measured(lambda value: f"{value:,.1f}"),
        "count": _measured(lambda value: f"{value:,.0f}"),
        "megabytes": _measured(lambda value: f"{value / 1e6:,.1f} MB"),
        "duration": _measured(_duration),
        "name": lambda path: PurePath(str(path)).name if path else path,
    }
    return environment


def _measured(show: Callable[[float], str]) -> Callable[[object], object]:
    """A filter that shows numbers; of other values finalize() decides."""

    def shown(value: object) -> object:
        number = _number(value)
        return value if number is None else show(number)

    return shown


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _percent(share: float) -> str:
    return f"{share:+.1%}".replace("-", "\N{MINUS SIGN}").replace("%", " %")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _clean(text: str) -> str:
    """`text` without what neither HTML nor UTF-8 can hold: control characters and lone surrogates become U+FFFD."""
    return re.sub(r"[^\n\t\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def _markdown(text: str) -> str:
    """`text` as one line that Markdown and the HTML in it leave as it is."""
    return re.sub(r"([\\`*_{}\[\]<>&#|~$!])", r"\\\1", " ".join(text.split()))


def _fenced(code: str) -> str:
    """`code` between fences that are longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}sh\n{_clean(code)}\n{fence}"
