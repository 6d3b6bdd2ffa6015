"""The metric acc_dcpmi: by hand on five items, and its requests against PyTorch."""

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="the extra [eval]")

from lm_eval.tasks import TaskManager

from memdec_edge.errors import TaskError
from memdec_edge.evaluation.harness import MemdecLM
from memdec_edge.evaluation.pmi import PmiTask
from tests.conftest import Family
from tests.engine.test_engine import torch_log_probs
from tests.support.lm_tasks import CHOICES, samples, write_task

PMI = """class: !function memdec_edge.evaluation.pmi.PmiTask
metric_list:
  - {metric: acc_dcpmi, premise: "%s", aggregation: mean, higher_is_better: true}
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_mutual_info, aggregation: mean, higher_is_better: true}
"""
ROWS = [
    {"text": f"{text} It was", "choices": ["terrible", "great"], "answer": answer}
    for text, answer in (("A bore.", 0), ("A joy.", 1), ("Long.", 0), ("Not bad.", 1), ("Warm and wise.", 1))
]
# log p(choice | prompt) and log p(choice | " It was") of both choices, chosen so that the rules disagree
PROMPTED = [(-6.0, -4.0), (-7.0, -4.5), (-5.0, -4.9), (-6.5, -4.2), (-5.5, -4.8)]
PRIOR = (-7.0, -4.6)
GAINS = [(1.0, 0.6), (0.0, 0.1), (2.0, -0.3), (0.5, 0.4), (1.5, -0.2)]  # by hand
DCPMI = [1.0, 1.0, 1.0, 0.0, 0.0]  # the larger gain is the answer's
ACC = [0.0, 1.0, 0.0, 1.0, 1.0]  # "great" is always likelier


def task_of(folder: Path, premise: str = " It was") -> PmiTask:
    write_task(folder, "films", CHOICES + PMI % premise, ROWS)
    found = TaskManager(include_path=str(folder), include_defaults=False).load(["films"])["tasks"]["films"]
    assert isinstance(found, PmiTask)
    return found


def test_five_items_by_hand(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    found = []
    for row, prompted, gains in zip(ROWS, PROMPTED, GAINS, strict=True):
        np.testing.assert_allclose(np.subtract(prompted, PRIOR), gains, atol=1e-9)
        unconditional = [(-9.0, False), (-9.0, False)]  # of lm-eval's own acc_mutual_info: an empty premise
        results = [(value, False) for value in prompted] + unconditional + [(value, False) for value in PRIOR]
        found.append(task.process_results(row, results))
    assert [one["acc_dcpmi"] for one in found] == DCPMI
    assert [one["acc"] for one in found] == ACC
    assert [one["acc_mutual_info"] for one in found] == ACC


def test_the_premise_is_asked_with_the_same_choices_and_may_depend_on_the_item(family: Family, tmp_path: Path) -> None:
    task_of(tmp_path, " {{answer}} It was")
    model = MemdecLM(base=family.base, flash_attn="off", cache_type_k="f32", cache_type_v="f32")
    items = samples(model, tmp_path, "films")["films"]
    for row, item in zip(ROWS, items, strict=True):
        premise = f" {row['answer']} It was"
        contexts = [*[row["text"]] * 2, "", "", premise, premise]
        assert [tuple(pair) for pair in item["arguments"]] == list(
            zip(contexts, [" terrible", " great"] * 3, strict=True)
        )
        scores = []
        for context, choice in item["arguments"]:
            tokens, start = model.tok_encode(context + choice), len(model.tok_encode(context)) or 1
            ids = [*([model.prefix_token_id] if not context else []), *tokens]
            rows = torch_log_probs(family.base_checkpoint, ids)
            scores.append(sum(rows[at - 1][ids[at]] for at in range(start, len(ids))))
        np.testing.assert_allclose([resp[0][0] for resp in item["resps"]], scores, atol=2e-3)
        gains = np.subtract(scores[:2], scores[4:])
        assert item["acc_dcpmi"] == float(int(gains.argmax()) == row["answer"])
        assert math.isfinite(gains.sum())
    model.close()


def test_a_task_without_a_premise_is_refused_by_name(tmp_path: Path) -> None:
    write_task(tmp_path, "films", CHOICES + (PMI % "").replace(', premise: ""', ""), ROWS)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    with pytest.raises(TaskError, match="lm-eval: task films: the metric acc_dcpmi needs a text as `premise`"):
        manager.load(["films"])
