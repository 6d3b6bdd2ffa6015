"""Tasks of lm-eval with local data, written by tests, and what models say in them. No network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

Rows = list[dict[str, Any]]

HEAD = """task: {name}
dataset_path: json
dataset_kwargs:
  cache_dir: {folder}/cache
  data_files: {{train: {folder}/{name}.jsonl, test: {folder}/{name}.jsonl}}
test_split: test
metadata: {{version: 1.0}}
"""
CHOICES = """output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: choices
doc_to_target: answer
"""
CLOZE = """output_type: loglikelihood
doc_to_text: text
doc_to_target: word
"""
ROLLING = """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
"""
ANSWERS = """output_type: generate_until
doc_to_text: text
doc_to_target: word
generation_kwargs: {until: ["."], max_gen_toks: 8, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


def write_task(folder: Path, name: str, body: str, rows: Rows) -> None:
    """A task of that name with these rows."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    head = HEAD.format(name=name, folder=folder)
    (folder / f"{name}.yaml").write_text(head + body, encoding="utf-8")


def write_tasks(folder: Path, tasks: Mapping[str, tuple[str, Rows]]) -> Path:
    """Tasks by name, each a body and its rows; returns the folder."""
    for name, (body, rows) in tasks.items():
        write_task(folder, name, body, rows)
    return folder


def samples(model: LM, folder: Path, *tasks: str) -> dict[str, Rows]:
    """What lm-eval logs of every item, without few-shot examples."""
    loaded = TaskManager(include_path=str(folder), include_defaults=False).load(list(tasks))
    results = evaluate(model, loaded, bootstrap_iters=0)
    assert results is not None
    found: dict[str, Rows] = results["samples"]
    return {name: sorted(items, key=lambda item: int(item["doc_id"])) for name, items in found.items()}
