"""Documents become a memory and an index that are measured, by one call, in the time that was promised.

One folder keeps every stage: a run that was stopped goes on, a finished one is shown again. Knows which round of
learning is meant and where it stands; stages.py knows what is done in it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memdec_edge.chat import ChatTemplate
from memdec_edge.errors import Cancelled, ExistingOutputError, MissingFileError, OptionError, TemplateError
from memdec_edge.files import cache_home, shown_name
from memdec_edge.gguf import metadata
from memdec_edge.gguf.fingerprint import fingerprint
from memdec_edge.options import ChatOptions, LearnOptions, TrainOptions
from memdec_edge.workflow.gather import digests_of
from memdec_edge.workflow.place import PLAN, Journal, Place, read_plan, slug
from memdec_edge.workflow.stages import Agree, Round

AGAIN = "what was finished is kept: run the same command again to go on"


def learn(options: LearnOptions, agree: Agree = lambda plan: True, prompts: Sequence[str] = ()) -> dict[str, Any]:
    """Learn from documents, or finish it, and return what report.json holds.

    agree: is asked once, after the plan was told on stderr; False raises Cancelled, and nothing was written. prompts:
    beginnings to continue, instead of held-out passages. Raises what the stages raise, StageError for a folder that
    was made from something else, and Cancelled on Ctrl-C, after which all that is finished is kept.
    """
    try:
        work = _opened(options)
        if not work.place.is_finished:
            try:
                work.prepare(agree)
                work.finish(prompts)
            finally:
                work.lock.release()
        return work.found()
    except KeyboardInterrupt:
        raise Cancelled(AGAIN) from None


def training_of(options: LearnOptions) -> TrainOptions:
    """How the memory of a finished or unfinished run was trained. Raises as learn()."""
    return _opened(options).training


def _opened(options: LearnOptions) -> Round:
    """The round that is meant, begun or not; nothing is written."""
    options, place = _place(options)
    options = replace(options, form=_form(options, place))
    made_from = _made_from(options)
    place = _round(place, made_from) if options.add else place
    if not place.plan.exists():
        _refuse_what_is_not_ours(place, options)
    return Round(options, place, Journal(place.plan, made_from))


def _place(options: LearnOptions) -> tuple[LearnOptions, Place]:
    """The options with what was left out, and the first round's place."""
    if options.add is not None:
        assert options.out is not None
        if not (options.out / PLAN).is_file():
            advice = "make it with memdec-edge learn DOCS -m base.gguf, or name the folder of one"
            raise MissingFileError(options.out, "folder of a learned memory", advice)
        first = (read_plan(options.out / PLAN)["plan"] or {}).get("of")
        if first is None or not Place(options.out, first["name"]).is_finished:
            raise OptionError("out", options.out, "its memory is not finished; run the command that began it again")
        known = replace(
            options, base=Path(first["base"]), teacher=Path(first["teacher"]), domain=first["domain"],
            license=options.license or first["license"],
        )  # fmt: skip
        return known, Place(options.out, first["name"])
    assert options.documents is not None
    domain = options.domain or Path(shown_name(options.documents.absolute())).stem.replace("_", " ").replace("-", " ")
    out = options.out or cache_home() / "learn" / slug(domain)
    return replace(options, domain=domain, out=out), Place(out, slug(domain))


def _form(options: LearnOptions, first: Place) -> str:
    """The form of the training text: as was asked, else that of the folder, else text.

    Chats cost plain text more than 2 % (benchmarks/results/chat_form.txt), so they are learned where asked for.
    Raises OptionError (form) where the base has no template, or a broken one.
    """
    if options.form == "auto":
        return str(read_plan(first.plan)["made_from"].get("form", "text")) if first.plan.is_file() else "text"
    if options.form == "text":
        return options.form
    assert options.base is not None
    try:
        ChatTemplate.of(options.base, metadata.read(options.base)[0], ChatOptions(), {})
    except TemplateError as error:
        raise OptionError("form", options.form, f"{error.name}: {error.reason}; give text") from error
    return "chat"


def _round(first: Place, made_from: dict[str, Any]) -> Place:
    """The round that these added documents belong to: one that is not finished, the same again, or a new one."""
    place = replace(first, round=1)
    while place.is_finished and read_plan(place.plan)["made_from"] != made_from:
        place = replace(place, round=place.round + 1)
    return place


def _made_from(options: LearnOptions) -> dict[str, Any]:
    """What decides the result."""
    documents = options.add or options.documents
    assert documents is not None
    assert options.base is not None
    digests = json.dumps(sorted(digests_of(documents).items()))
    teacher = options.teacher or options.base
    return {
        "documents": hashlib.sha256(digests.encode()).hexdigest(),
        "base": fingerprint(options.base),
        "teacher": fingerprint(teacher) if teacher.is_file() else str(teacher.absolute()),
        "domain": options.domain,
        "budget": options.budget,
        "max_tokens": options.max_tokens,
        "seed": options.seed,
        "retriever": options.retriever,
        **({"form": options.form} if options.form != "text" else {}),  # earlier versions had no other
    }


def _refuse_what_is_not_ours(place: Place, options: LearnOptions) -> None:
    """Raise ExistingOutputError for a folder with other content; the documents themselves may stand in `corpus`."""
    for path in sorted(place.work.iterdir()) if place.work.is_dir() else ():
        ours = (
            path == place.corpus and options.documents is not None and options.documents.absolute() == path.absolute()
        )
        if not ours and not path.name.startswith("."):
            raise ExistingOutputError(path, "the folder holds something else; choose another `out`")
    documents = options.add or options.documents
    if documents is not None and documents.is_dir() and place.out.resolve().is_relative_to(documents.resolve()):
        raise OptionError("out", place.out, f"must be outside {documents}, whose files are all taken as documents")
