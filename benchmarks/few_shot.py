"""Examples before each item: what do they cost when all items have the same ones, and when each has its own?

    python benchmarks/few_shot.py BASE --include-path TASKS [--memory FILE] [--lam auto] [--task recall] [--shots 16]
                                  [--items 16] [--runs 3] [--threads 0]

TASKS is a folder of examples/scenarios/make_tasks.py. lm-eval scores the same items in turn with the first examples,
which are read once, and with drawn ones. A figure is the median of the runs. The last line is one JSON object.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

from lm_eval.api.samplers import get_sampler
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from provenance import made_by

from memdec_edge.evaluation.harness import MemdecLM

SIDES = {"the same examples": "first_n", "examples of its own": "default"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--include-path", type=Path, required=True)
    parser.add_argument("--memory", type=Path)
    parser.add_argument("--lam", default="auto")
    parser.add_argument("--task", default="recall")
    for name, default in (("shots", 16), ("items", 16), ("runs", 3), ("threads", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    manager = TaskManager(include_path=str(given.include_path), include_defaults=False)
    weighed = {"memory": given.memory, "lam": given.lam} if given.memory else {}
    model = MemdecLM(base=given.base, **weighed, threads=given.threads, threads_batch=given.threads)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(given.runs):
        for side, sampler in SIDES.items():
            loaded = manager.load([given.task])
            [task] = loaded["tasks"].values()
            task.sampler = get_sampler(sampler)(list(task.fewshot_docs()), rnd=0)
            task.set_config("num_fewshot", given.shots)
            began = time.perf_counter()
            evaluate(model, loaded, limit=given.items, bootstrap_iters=0)
            seconds[side].append((time.perf_counter() - began) / given.items)
    model.close()
    found = {side: median(values) for side, values in seconds.items()}
    same, drawn = found.values()
    print(made_by(), end="")
    print(f"{given.task}, {given.shots} examples, {given.items} items, {given.runs} runs")
    for side, value in found.items():
        print(f"{side:20} {value:8.3f} s an item")
    print(f"{'ratio':20} {drawn / same:8.1f}")
    print(json.dumps({"benchmark": "few_shot", "seconds": seconds, "ratio": drawn / same}))


if __name__ == "__main__":
    main()
