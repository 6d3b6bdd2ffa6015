"""What is said of a round of learning: the plan before it, the figures after it. Knows nothing of how any was found."""

import shlex
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from memdec_edge.files import shown_name
from memdec_edge.gguf import metadata, parts
from memdec_edge.notes import note
from memdec_edge.options import LearnOptions
from memdec_edge.train.metrics import read_curves
from memdec_edge.workflow.gather import Gathered
from memdec_edge.workflow.place import Journal, Place
from memdec_edge.workflow.plan import Plan, plan_of
from memdec_edge.workflow.probe import Machine
from memdec_edge.workflow.recipes import RECIPES, TYPES
from memdec_edge.workflow.report import PAGE

VOICES = {
    "base": "base",
    "memory": "memory alone",
    "mixture": "base + memory, lambda fixed",
    "auto": "base + memory",
    "index": "base + index",
    "both": "base + memory + index",
}


def clock(seconds: float) -> str:
    """Seconds as H:MM:SS, or M:SS below an hour."""
    return str(timedelta(seconds=round(seconds))).removeprefix("0:").removeprefix("0")


def tell_machine(machine: Machine) -> None:
    """Say on stderr how fast this machine is."""
    note(
        f"{'machine':10} {machine.cpus} CPUs ({machine.device}); tokens a second: training {machine.training:,.0f}, "
        f"reading {machine.reading:,.0f}, scoring {machine.scoring:,.0f}, generating {machine.decoding:,.0f}"
    )


def tell_plan(plan: Plan, text: Gathered, machine: Machine, base: Path, teacher: Path) -> None:
    """Say on stderr what was read, what will be done, what it needs and how long each stage takes."""
    tokens, splits = text.tokens, text.divided.splits
    alike = f", {text.divided.alike:,} of them like others" if text.divided.alike else ""
    left_out = f"; {len(text.divided.corpus.left_out):,} files left out" if text.divided.corpus.left_out else ""
    used = "all of them" if plan.tokens >= tokens["train"] else f"{plan.tokens:,} of them; the index holds all"
    recipe = next(each for each in RECIPES if each.name == plan.recipe)
    teachers = f", after {plan.teacher_epochs:g} passes of the teacher" if plan.teacher_epochs else ""
    free = "" if machine.free_memory is None else f" ({machine.free_memory / 1e9:.1f} free)"
    rows = {
        "documents": f"{sum(map(len, splits.values())):,}{alike}{left_out}",
        "tokens": f"{tokens['train']:,} for training, {tokens['valid']:,} for validation, {tokens['test']:,} held out",
        "plan": f"{plan.recipe} (beta {plan.beta:g}), {plan.epochs:.3g} passes over {used}{teachers}",
        "form": form_of(plan),
        "because": recipe.evidence,
        "memory": f"begins as a copy of {shown_name(teacher)}, {machine.parameters / 1e6:,.0f} million weights; "
        f"{' or '.join(kind.upper() for kind in TYPES)}, as validation text decides; at most "
        f"{1.07 * machine.parameters / 1e6:,.0f} MB beside a base of {parts.n_bytes(base) / 1e6:,.0f}",
        "needs": f"{plan.ram / 1e9:.1f} GB of RAM{free}, {plan.disk / 1e9:.1f} GB of disk "
        f"({machine.free_disk / 1e9:.1f} free)",
        "time": ", ".join(f"{name} {clock(plan.seconds_of(name))}" for name in plan.stages if plan.stages[name])
        + f"; together {clock(plan.seconds)}, of which {clock(plan.planning)} are gone",
    }
    for name, row in rows.items():
        note(f"{name:10} {row}")


def form_of(plan: Plan) -> str:
    """The form of the training text, in words."""
    if plan.chat_share is None:
        return "text"
    share = f"{plan.chat_share:.0%}".replace("%", " %")
    return f"text, and up to {share} of it as questions and answers in the base's chat template; dialogues always"


def commands_of(base: Path, place: Place) -> dict[str, str]:
    """Command lines for a person."""
    models = ["-m", str(base)], ["-M", str(place.gguf)], ["-M", str(place.index)]
    chat, run = (["memdec-edge", verb, *models[0]] for verb in ("chat", "run"))
    return {
        "run": shlex.join([*run, *models[1], *models[2], "-n", "128", "-p", "..."]),
        "chat": shlex.join([*chat, *models[1], *models[2], "--sources"]),
        "index": shlex.join([*chat, *models[2], "--sources"]),
    }


def report_of(options: LearnOptions, place: Place, journal: Journal) -> dict[str, Any]:
    """What report.json holds of a round whose stages are finished."""
    assert journal.plan is not None
    assert options.base is not None
    base, told, plan = options.base, journal.plan, plan_of(journal.plan["plan"])
    file, worth = journal.result("file"), journal.result("measuring")
    seconds = {name: journal.seconds(name) for name in plan.stages}
    straight = all(value is not None for value in seconds.values())
    stages = [
        {"name": name, "estimated_seconds": plan.seconds_of(name), "seconds": value} for name, value in seconds.items()
    ]
    name = metadata.read(base)[0].get("general.name")
    return {
        "out": str(place.out),
        "report": str(place.work / PAGE),
        "domain": options.domain,
        "name": place.name,
        "helps": worth["helps"],
        "documents": told["documents"] | {"tokens": told["documents"]["tokens"] | {"train": plan.tokens}},  # as read
        "plan": told["plan"],
        "machine": told["machine"],
        "stages": [{"name": "planning", "estimated_seconds": None, "seconds": plan.planning}, *stages],
        "estimated_seconds": plan.seconds,
        "seconds": plan.planning + sum(value or 0.0 for value in seconds.values()) if straight else None,
        "models": {
            "base": {"file": str(base), "bytes": parts.n_bytes(base), "name": str(name or shown_name(base))},
            "memory": {"file": str(place.gguf), "bytes": place.gguf.stat().st_size, "type": file["type"]},
            "index": {"file": str(place.index), "bytes": place.index.stat().st_size},
        },
        "types": file["types"],
        **{key: worth[key] for key in ("lambda", "perplexity", "general", "tokens_scored", "text_tokens")},
        "answers": worth.get("answers"),
        "curves": read_curves(place.memory, plan.batch * plan.block),
        **journal.result("continuing"),
        "license": options.license or None,
        "commands": {key: line for key, line in commands_of(base, place).items() if key != "index"},
    }


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `learn --json` prints of a report."""

    def values(text: str, voices: tuple[str, ...]) -> dict[str, float | None]:
        return {voice: ((found[text] or {}).get(voice) or {}).get("perplexity") for voice in voices}

    return {
        "out": found["out"],
        "memory_file": found["models"]["memory"]["file"],
        "index_file": found["models"]["index"]["file"],
        "report": found["report"],
        "tokens": found["plan"]["tokens"],
        "seconds": found["seconds"],
        "estimated_seconds": found["estimated_seconds"],
        "perplexity": values("perplexity", tuple(VOICES)),
        "general": values("general", ("base", "auto")),
    }


def result_lines(found: Mapping[str, Any]) -> list[str]:
    """The figures of a report, for a person: first whether the memory helps."""
    scores, general = found["perplexity"] or {}, found["general"]
    verdict = "The memory helps." if found["helps"] else "The memory does not help"
    if not scores:
        verdict = "There is no held-out text, so nothing says whether the memory helps."
    elif not found["helps"]:
        verdict += ": base and memory predict held-out text no better than the base. The index may."
    lines = [
        verdict,
        f"{'perplexity':30}{'held-out':>18}{'general':>18}   ({found['tokens_scored']:,} of {found['text_tokens']:,} "
        "held-out tokens)",
    ]
    for voice, label in VOICES.items():
        lines.append(f"{label:30}{_score(scores.get(voice)):>18}{_score(general.get(voice)):>18}")
    if answers := found.get("answers"):
        figures = ", ".join(f"{VOICES[voice]} {_score(answers[voice])}" for voice in ("base", "memory", "mixture"))
        lines.append(f"held-out answers in the base's chat template ({answers['tokens']:,} tokens): {figures}")
    models = found["models"]
    types = ", ".join(f"{row['type'].upper()} {row['perplexity']:.3f}" for row in found["types"])
    memory = models["memory"]
    lines.append(f"memory: {memory['type'].upper()}, {memory['bytes'] / 1e6:.0f} MB beside a base of "
                 f"{models['base']['bytes'] / 1e6:.0f} MB; index: {models['index']['bytes'] / 1e6:.1f} MB"
                 + (f"; types on validation text: {types}" if types else ""))  # fmt: skip
    base, auto = found["speed"]["base"], found["speed"]["auto"]
    if base and auto:
        lines.append(f"speed: base {base:.0f} tokens/s, base + memory {auto:.0f}")
    took = "unknown, since the run was stopped in between" if found["seconds"] is None else clock(found["seconds"])
    lines.append(f"time: {took}; planned {clock(found['estimated_seconds'])}")
    return [*lines, f"report: {found['report']}", f"chat: {found['commands']['chat']}"]


def _score(score: Mapping[str, float | None] | None) -> str:
    if not score or score["perplexity"] is None:
        return "-"
    error = score["standard_error"]
    return f"{score['perplexity']:.2f}" + (f" ± {error:.2f}" if error is not None else "")
