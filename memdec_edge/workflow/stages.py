"""One round of learning, stage by stage:

    plan: read the documents, measure the machine, ask -> corpus/ and plan.json
    index      all documents; it answers at once
    training   the memory's checkpoint, in a process of its own
    file       its GGUF, in the smallest type that is worth it
    tuning     lambda, and how the weight learns, on validation text
    measuring  base, memory and index on held-out documents and general text
    continuing held-out passages, and the speed
    report

Each result is kept when it is there (place.py), and what follows from results is done again without harm. Knows how the
stages are joined, not how any of them works.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from memdec_edge.documents import Document
from memdec_edge.errors import Cancelled
from memdec_edge.files import atomic_path, scratch_path, write_text
from memdec_edge.indexing.build import build_index
from memdec_edge.notes import note, warn
from memdec_edge.options import CHAT_SHARE, CacheOptions, IndexOptions, LearnOptions, TrainOptions
from memdec_edge.progress import scheduled
from memdec_edge.train.lock import FolderLock
from memdec_edge.workflow import measure
from memdec_edge.workflow.gather import gather, read_split, told, write_corpus
from memdec_edge.workflow.place import Journal, Place, Result
from memdec_edge.workflow.plan import (
    CONTINUATIONS,
    CONTINUED,
    LEAST_POSITIONS,
    LEAST_VALID,
    Plan,
    make_plan,
    plan_of,
    require_text,
)
from memdec_edge.workflow.probe import context_of, probe
from memdec_edge.workflow.recipes import BATCH, BLOCK, MEASURED
from memdec_edge.workflow.report import write_report
from memdec_edge.workflow.tell import clock, commands_of, report_of, tell_machine, tell_plan

Agree = Callable[[Plan], bool]


class Round:
    """A round: its options, all of them known, its place, and the journal of what is done."""

    def __init__(self, options: LearnOptions, place: Place, journal: Journal) -> None:
        self.options, self.place, self.journal = options, place, journal
        assert options.base is not None
        self.base: Path = options.base
        self.teacher: Path = options.teacher or options.base
        documents = options.add or options.documents
        assert documents is not None
        self.documents: Path = documents
        self.lock = FolderLock(place.out)  # for prepare() and finish(); the caller releases it

    def prepare(self, agree: Agree) -> None:
        """Read the documents, measure the machine, tell the plan, ask, and begin the folder; once."""
        if self.journal.plan is not None:
            return
        began, place, options = time.monotonic(), self.place, self.options
        earlier = [each.corpus for each in place.earlier]
        share = CHAT_SHARE if options.form == "chat" else None
        text = gather(self.documents, self.base, options.seed, earlier, share)
        require_text(text, context_of(self.base), place.out)  # before the machine is measured
        note("measuring this machine, about half a minute")
        machine = probe(self.base, self.teacher, place.out, BLOCK, BATCH)
        tell_machine(machine)
        plan = make_plan(options, place.out, text, machine, time.monotonic() - began)
        tell_plan(plan, text, machine, self.base, self.teacher)
        if not agree(plan):
            raise Cancelled("nothing was written")
        self.lock.acquire()
        self.journal.begin()
        if self.documents.absolute() != place.corpus.absolute():
            write_corpus(text.divided.splits, place.corpus)
        self.journal.agree(
            {
                "of": {
                    "name": place.name, "domain": options.domain, "license": options.license,
                    "base": str(self.base.absolute()), "teacher": str(self.teacher.absolute()),
                },
                "plan": asdict(plan),
                "documents": told(text.divided, text.tokens),
                "named": text.divided.corpus.named,
                "machine": asdict(machine),
            }
        )  # fmt: skip

    def finish(self, prompts: Sequence[str]) -> None:
        """Do what is not done yet; the report is written last. Raises StageBusyError while another process does it."""
        self.lock.acquire()
        place, plan, seed = self.place, self.plan, self.options.seed
        held_out = read_split(place.corpus, "test")
        valid, test = ([each.text for each in some] for some in (read_split(place.corpus, "valid"), held_out))
        chooses = valid if self.told["documents"]["tokens"]["valid"] >= LEAST_VALID else []
        scored = measure.scoring(self.base, plan.scored)

        self._run("index", self._index)
        place.index_before.unlink(missing_ok=True)
        note(f"the index answers already: {commands_of(self.base, place)['index']}")
        self._run("training", self._train)
        self._run("file", partial(measure.make_file, self.base, place.memory, place.gguf, chooses, scored))
        tuned = self._run("tuning", partial(measure.tuned, self.base, place.gguf, chooses, scored))
        measure.keep_tuned(place.gguf, tuned)
        worth = self._run("measuring", partial(self._measure, held_out))
        measure.state_perplexities(place.gguf, worth)
        passages = [(prompt, None) for prompt in prompts] or measure.passages_of(test, CONTINUATIONS)
        goes_on = partial(measure.continued, self.base, place.gguf, passages, CONTINUED, seed)
        self._run("continuing", goes_on)

        found = report_of(self.options, place, self.journal)
        write_report(found, place.work)
        write_text(place.report, json.dumps(found, indent=1) + "\n")

    def found(self) -> dict[str, Any]:
        """What this run, or an earlier one, wrote into report.json."""
        body: dict[str, Any] = json.loads(self.place.report.read_text(encoding="utf-8"))
        return body

    # --- what is known ----------------------------------------------------------------------------------------------

    @property
    def told(self) -> Result:
        """What was found out before the work."""
        assert self.journal.plan is not None
        return self.journal.plan

    @property
    def plan(self) -> Plan:
        """What was agreed on."""
        return plan_of(self.told["plan"])

    @property
    def training(self) -> TrainOptions:
        """How the memory is trained, which follows from the plan."""
        place, plan, options = self.place, self.plan, self.options
        partly = plan.tokens < self.told["documents"]["tokens"]["train"]
        caching = CacheOptions(
            teacher=self.teacher, corpus=place.corpus, out=place.memory / "cache", seed=options.seed,
            finetune_teacher=plan.teacher_epochs, block=plan.block, batch=plan.batch,
            max_tokens=plan.tokens if partly else 0, chat_base=None if plan.chat_share is None else self.base,
            chat_share=plan.chat_share or 0.0,
        )  # fmt: skip
        return TrainOptions(
            caching, place.memory, init=place.earlier[-1].memory if place.earlier else None, epochs=plan.epochs,
            beta=plan.beta, valid_positions=max(plan.scored, LEAST_POSITIONS),
            domain=options.domain, license=options.license,
        )  # fmt: skip

    # --- stages -----------------------------------------------------------------------------------------------------

    def _run(self, stage: str, work: Callable[[], Result]) -> Result:
        """A stage; its progress bars know how long the others will take."""
        if not self.journal.is_done(stage):
            plan, names = self.plan, list(self.plan.stages)
            later = sum(map(plan.seconds_of, names[names.index(stage) + 1 :]))
            if mine := plan.seconds_of(stage):
                note(f"{stage}: about {clock(mine)}, and {clock(later)} for what follows")
            with scheduled([*plan.stages[stage], ("later", later)]):
                return self.journal.run(stage, work)
        return self.journal.run(stage, work)

    def _index(self) -> Result:
        """The index of all documents but those of a test split by name. A later round adds to that of the earlier."""
        place, grows = self.place, self.place.round > 0
        if grows and not place.index_before.is_file():  # what is added to, whatever a killed run has added already
            with atomic_path(place.index_before) as part:
                shutil.copyfile(place.index, part)
        held_out = (place.corpus / f"{split}.jsonl" for split in ("valid", "test"))
        report = build_index(
            IndexOptions(
                place.index_before if grows else self.documents, self.base, place.index,
                add=(self.documents,) if grows else (),
                copies=() if self.told["named"] else tuple(path for path in held_out if path.is_file()),
                domain=self.options.domain, license=self.options.license, seed=self.options.seed, overwrite=True,
            )
        )  # fmt: skip
        warn(report.warnings)
        return {"bytes": report.n_bytes, "documents": report.n_documents, "tokens": report.n_tokens}

    def _train(self) -> Result:
        from memdec_edge.train import train_apart

        report = train_apart(self.training)
        note(report.notice)
        return {**asdict(report), "path": str(report.path)}

    def _measure(self, held_out: Sequence[Document]) -> Result:
        """What the memory is worth, on answers in chats too where it has learned from some."""
        found = self._measure_text([document.text for document in held_out])
        if self.plan.chat_share is not None:
            found["answers"] = measure.answered(self.base, self.place.gguf, held_out, self.plan.scored)
        return found

    def _measure_text(self, test: Sequence[str]) -> Result:
        """Measured beside an index of the training text alone, since the index holds the held-out documents too."""
        place, options = self.place, measure.scoring(self.base, MEASURED * self.plan.scored)
        if self.told["named"] and not place.round:
            return measure.measured(self.base, place.gguf, place.index, test, options)
        corpora = [*(each.corpus for each in place.earlier), place.corpus]
        with scratch_path(place.work / f"memdec-{place.name}-training-index.gguf") as scratch:
            build_index(IndexOptions(corpora[0], self.base, scratch, add=tuple(corpora[1:]), overwrite=True))
            return measure.measured(self.base, place.gguf, scratch, test, options)
