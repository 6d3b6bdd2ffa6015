"""What is to be done with a text on a machine in a time, and how long each part takes: computed before any work.

The times follow from rates that were measured on this machine (probe.py) and from how much each stage does. Knows
nothing of how a stage does it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from memdec_edge.errors import CorpusError, MemoryLimitError, OptionError, OutputError
from memdec_edge.options import CHAT_SHARE, LearnOptions, TrainOptions
from memdec_edge.workflow.gather import Gathered
from memdec_edge.workflow.probe import Machine
from memdec_edge.workflow.recipes import (
    BATCH,
    EVALUATED,
    LEAST_PASSES,
    LEAST_TOKENS,
    MEASURED,
    PLAIN,
    RECIPES,
    RETRIEVER,
    SCORED,
    TYPES,
    Recipe,
    block_of,
)

GENERAL = 1_500  # tokens of the page of general text, about
CONTINUED, CONTINUATIONS = 40, 3  # tokens of a held-out passage that is continued, and such passages
LEAST_VALID = 512  # tokens of validation text that choose a type and tune
LEAST_POSITIONS, TRIAL = 1_024, 2_048  # of validation text that training scores each time; that a trial scores
TRIALS = 2  # learning rates that are tried: the first, and one that does worse
OF_A_WEIGHT = 24  # bytes of RAM in training: two copies in float32, one in bfloat16, gradient, two moments
ON_DISK = 32  # bytes: checkpoint, the best weights, two states that a stopped run goes on from
PROCESS = 1.5e9  # bytes of RAM beside the weights
MIXED = 0.6  # of the base's speed, that of base and memory together
LOOKED_UP = 3e-5  # seconds of an index for a token that it is asked about
KEY = 1_024  # numbers of a key, about
SEARCHED = 2e-3  # seconds for the neighbours of a position, from which on an index is asked
SORTED = 1e-6  # seconds to sort a token of an index

Parts = list[tuple[str, float]]  # the label of a progress bar, or any other name -> seconds


@dataclass(frozen=True)
class Plan:
    """What will be done. tokens: of the training text that are read; scored: tokens of
    validation text that choose; MEASURED times as many of the test split measure. chat_share: of the training text,
    in the base's chat template; None: text alone."""

    recipe: str
    beta: float
    teacher_epochs: float
    epochs: float
    tokens: int
    block: int
    batch: int
    scored: int
    ram: int  # bytes
    disk: int  # bytes
    planning: float  # seconds that reading and probing took
    stages: dict[str, Parts]
    chat_share: float | None = None

    @property
    def seconds(self) -> float:
        """Of everything, planning included."""
        return self.planning + sum(map(self.seconds_of, self.stages))

    def seconds_of(self, stage: str) -> float:
        """Of one stage."""
        return sum(seconds for _, seconds in self.stages[stage])


def make_plan(options: LearnOptions, out: Path, text: Gathered, machine: Machine, planning: float) -> Plan:
    """The best plan that fits the budget.

    Raises CorpusError for too little text, OptionError for a budget too small for anything, MemoryLimitError, and
    OutputError where the disk has not enough room.
    """
    block = require_text(text, machine.context, out)
    plan = _Planner(options, text, machine, planning, block).best()
    if machine.free_memory is not None and machine.device == "cpu" and plan.ram > machine.free_memory:
        raise MemoryLimitError(
            f"training {machine.parameters / 1e6:,.0f} million weights takes {plan.ram / 1e9:.1f} GB, and "
            f"{machine.free_memory / 1e9:.1f} GB are free",
            "close other programs, or give a smaller model of the same family as `teacher`",
        )
    if plan.disk > machine.free_disk:
        need = f"{plan.disk / 1e9:.1f} GB are needed and {machine.free_disk / 1e9:.1f} GB free"
        raise OutputError(out, f"{need}; make room or choose another `out`")
    return plan


def require_text(text: Gathered, context: int, out: Path) -> int:
    """The block for a text and a model that sees `context` tokens. Raises CorpusError for too little text."""
    block = block_of(text.tokens["train"], context)
    if not block:
        few = f"{text.tokens['train']:,} training tokens are too few to learn from"
        raise CorpusError(out, f"{few}; give more text, or make an index: memdec-edge index")
    return block


class _Planner:
    """Plans for one text on one machine."""

    def __init__(self, options: LearnOptions, text: Gathered, machine: Machine, planning: float, block: int) -> None:
        self.options, self.text, self.machine, self.planning, self.block = options, text, machine, planning, block
        self.all = min(text.tokens["train"], options.max_tokens or text.tokens["train"])

    def best(self) -> Plan:
        """The first recipe that fits with the whole text; else plain training with fewer passes, else of less text.

        As many tokens are scored as take EVALUATED of the time at most, fewer only where nothing else fits.
        """
        wanted = {None: RECIPES, True: (RETRIEVER,), False: (PLAIN,)}[self.options.retriever]
        recipes = [recipe for recipe in wanted if self.options.retriever or self.all >= recipe.least]
        for scored in self._scored(recipes[0]):
            if plan := self._fitting(recipes, scored):
                return plan
        least = min(self.all, LEAST_TOKENS)
        need = math.ceil(self.plan(recipes[-1], least, LEAST_PASSES, SCORED[-1]).seconds / 60)
        much = f"{least:,} tokens, " + ("all there are" if least == self.all else "the least that was seen to help")
        raise OptionError("budget", self.options.budget, f"too short for anything: {much}, need {need}m")

    def _scored(self, recipe: Recipe) -> list[int]:
        """How many tokens may be scored, the best number first."""
        budget = self.options.seconds
        for scored in SCORED:
            plan = self.plan(recipe, self.all, recipe.epochs, scored)
            types = sum(seconds for label, seconds in plan.stages["file"] if label == "types")
            measured = types + plan.seconds_of("tuning") + plan.seconds_of("measuring")
            if measured <= EVALUATED * (budget or plan.seconds):
                return [each for each in SCORED if each <= scored]
        return [SCORED[-1]]

    def _fitting(self, recipes: list[Recipe], scored: int) -> Plan | None:
        """The best plan that scores so many tokens and fits the budget."""
        budget = self.options.seconds or math.inf
        for recipe in recipes:
            plan = self.plan(recipe, self.all, recipe.epochs, scored)
            if plan.seconds <= budget:
                return plan
        last, least = recipes[-1], min(self.all, LEAST_TOKENS)
        fewer = self._largest(
            lambda passes: self.plan(last, self.all, passes / 100, scored), 100 * LEAST_PASSES, 100 * last.epochs
        )
        return fewer or self._largest(lambda tokens: self.plan(last, tokens, LEAST_PASSES, scored), least, self.all)

    def _largest(self, plan_of: Callable[[int], Plan], low: float, high: float) -> Plan | None:
        """The plan of the largest whole number within the budget, None where even `low` exceeds it."""
        found: Plan | None = None
        first, last = math.ceil(low), math.floor(high)
        while first <= last:
            middle = (first + last) // 2
            plan = plan_of(middle)
            if plan.seconds <= (self.options.seconds or math.inf):
                found, first = plan, middle + 1
            else:
                last = middle - 1
        return found

    def plan(self, recipe: Recipe, tokens: int, epochs: float, scored: int) -> Plan:
        """The plan of these numbers, with its times."""
        weights, text = self.machine.parameters, self.text.tokens
        n_indexed = sum(text.values())
        plan = Plan(
            recipe=recipe.name, beta=recipe.beta, teacher_epochs=recipe.teacher, epochs=epochs, tokens=tokens,
            block=self.block, batch=BATCH, scored=scored, planning=self.planning,
            ram=int(weights * OF_A_WEIGHT + PROCESS),
            disk=int(weights * (ON_DISK + 16 * bool(recipe.teacher)) + 16 * n_indexed + 2 * self.text.n_characters
                     + 1_500 * tokens * bool(recipe.beta)),
            stages={}, chat_share=CHAT_SHARE if self.options.form == "chat" else None,
        )  # fmt: skip
        stages = {
            "index": self._index(n_indexed),
            "training": self._training(recipe, tokens, epochs, max(scored, LEAST_POSITIONS)),
            "file": self._file(scored),
            "tuning": self._tuning(scored),
            "measuring": self._measuring(scored),
            "continuing": self._continuing(),
        }
        return replace(plan, stages=stages)

    # --- the seconds of each stage ----------------------------------------------------------------------------------

    def _index(self, tokens: int) -> Parts:
        """Documents are read once more, become tokens and are sorted; their trust is measured."""
        read = self.text.seconds + tokens * self.text.seconds_a_token
        return [("reading", read), ("sorting", tokens * SORTED), ("trust", min(0.05 * tokens, 50_000) * LOOKED_UP)]

    def _training(self, recipe: Recipe, tokens: int, epochs: float, positions: int) -> Parts:
        machine, block = self.machine, self.block
        valid = min(self.text.tokens["valid"], positions) // block * block
        blocks = max(1, (tokens - 1) // block)
        steps = math.ceil(epochs * blocks / BATCH)
        trial = min(steps, max(4, min(16, steps // 20)))  # train/rate.py
        scored = 1 + math.ceil(epochs) + steps // TrainOptions.valid_every
        trained = steps * BATCH * block / machine.training
        states = steps // TrainOptions.save_every * 12 * machine.parameters / machine.writing
        weights = 4 * machine.parameters / machine.writing  # of the best so far, and of the checkpoint
        tried = trial * BATCH * block / machine.training + min(valid, TRIAL) / machine.reading
        validation = valid / machine.reading + weights / 2  # every second one is the best so far, and is kept
        parts: Parts = [("starting", machine.starting + self.text.seconds)]
        if recipe.beta:
            parts += self._retriever(recipe, blocks * block)
        return [
            *parts,
            ("validation of the teacher", valid / machine.scoring),
            ("trying learning rates", TRIALS * tried + weights),
            ("training the memory", machine.warming + trained + states + scored * validation),
            ("checkpoint", weights),
        ]

    def _retriever(self, recipe: Recipe, positions: int) -> Parts:
        """What a kNN cache takes: the teacher is trained as the memory is, reads all text, and keys are searched."""
        machine = self.machine
        search = min(4.0 * positions * KEY / machine.products, SEARCHED)
        return [
            ("training the teacher", recipe.teacher * positions / machine.training + machine.starting),
            ("keys", positions / machine.reading),
            ("neighbours", positions * search),
        ]

    def _file(self, scored: int) -> Parts:
        """Conversion, verified; the types, each quantised and scored, if there is text to choose by."""
        weights = self.machine.parameters
        parts = [("converting", self.machine.starting + 3 * weights / self.machine.writing)]
        valid = self.text.tokens["valid"]
        if valid < LEAST_VALID:
            return parts
        quantised = len(TYPES) * (1 + 2e-8 * weights)
        return [
            *parts,
            ("quantising", quantised),
            ("types", (1 + len(TYPES)) * min(scored, valid) / self.machine.scoring),
        ]

    def _tuning(self, scored: int) -> Parts:
        valid = min(scored, self.text.tokens["valid"])
        if valid < LEAST_VALID:
            return []
        return [(f"{name} text", 2 * n / self.machine.scoring) for name, n in (("domain", valid), ("general", GENERAL))]

    def _measuring(self, scored: int) -> Parts:
        test = min(MEASURED * scored, self.text.tokens["test"])
        rebuilt = sum(seconds for _, seconds in self._index(self.text.tokens["train"])) - self.text.seconds
        asked = (test + GENERAL) * LOOKED_UP
        answers = 2 * min(scored, self.text.tokens["test"]) / self.machine.scoring
        return [
            ("perplexity", 2 * test / self.machine.scoring),
            ("perplexity of general text", 2 * GENERAL / self.machine.scoring),
            ("index", max(0.0, rebuilt) + asked),
            *([("answers", answers)] if self.options.form == "chat" else []),
        ]

    def _continuing(self) -> Parts:
        tokens = CONTINUATIONS * CONTINUED
        return [("continuations", tokens / self.machine.decoding * (1 + 1 / MIXED) + 2.0)]


def plan_of(found: Mapping[str, object]) -> Plan:
    """A plan out of plan.json."""
    body = dict(found)
    stages: dict[str, Parts] = {
        name: [(str(label), float(seconds)) for label, seconds in parts]
        for name, parts in body.pop("stages").items()  # type: ignore[attr-defined]
    }
    return Plan(**body, stages=stages)  # type: ignore[arg-type]
