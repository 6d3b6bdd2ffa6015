"""Tasks of lm-eval on several systems, side by side: what a memory gains, and what of the base's abilities it keeps.

    python examples/scenarios/table.py --include-path OUT --tasks standins --shots 0 4 --limit 200
        --system "base: base=base.gguf"
        --system "fixed: base=base.gguf,memory=memdec-medicine.gguf,lam=0.6"
        --system "auto: base=base.gguf,memory=memdec-medicine.gguf,lam=auto"

The first system is what the others are held against; a system is anything that --model-args of `memdec-edge lm-eval`
names: a fine-tuned base, another memory, an index. For each task and metric: the mean and its standard error, then for
each other system the difference, item by item, and its standard error. "lost" and "gained" are differences of over
1.96 standard errors; all else is "kept". One task in twenty is called so by chance. The last line is one JSON object.
"""

import argparse
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval._cli.utils import key_val_to_dict
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from memdec_edge.cli.output import print_json
from memdec_edge.evaluation.harness import MemdecLM
from memdec_edge.notes import note

SIGNIFICANT = 1.96  # standard errors
METRICS = {"perplexity": "log-prob"}  # what an item of lm-eval's metric is
Values = dict[tuple[str, int, str], np.ndarray]  # (task, shots, metric) -> of each item


def run(arguments: str, manager: TaskManager, options: argparse.Namespace) -> Values:
    """The metrics of every item under one system."""
    found: Values = {}
    model = MemdecLM(**key_val_to_dict(arguments))
    try:
        for shots in options.shots:
            loaded = manager.load(list(options.tasks))
            for name, task in list(loaded["tasks"].items()):
                itself = task.config.fewshot_split == task.config.test_split  # an item is no example of its own
                if shots and (given := len(task.fewshot_docs()) - itself) < shots:
                    note(f"{name} has {given} examples: no row with {shots}")
                    del loaded["tasks"][name]
                    continue
                task.set_config("num_fewshot", shots)
                task.set_fewshot_seed(options.seed)
            results = evaluate(model, loaded, limit=options.limit, bootstrap_iters=0, log_samples=True)
            for name, items in results["samples"].items():
                for metric in items[0]["metrics"]:
                    values = [item[metric] for item in sorted(items, key=lambda item: item["doc_id"])]
                    if np.ndim(values) == 1:
                        found[name, shots, METRICS.get(metric, metric)] = np.array(values, float)
    finally:
        model.close()
    return found


def mean(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error, NaN for one value."""
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)


def verdict(gain: float, error: float) -> str:
    """What a paired difference says."""
    if not abs(gain) > SIGNIFICANT * error:
        return "kept"
    return "gained" if gain > 0 else "lost"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", action="append", required=True, metavar="NAME: ARGUMENTS")
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--include-path", type=Path, required=True)
    parser.add_argument("--shots", type=int, nargs="+", default=[0], help="examples before each item")
    parser.add_argument("--limit", type=int, help="items of each task")
    parser.add_argument("--defaults", action="store_true", help="know lm-eval's own tasks too, which need a network")
    parser.add_argument(
        "--seed", type=int, default=1234, help="of examples that are drawn; the stand-ins show their first"
    )
    options = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(options.include_path), include_defaults=options.defaults)
    systems = {name: arguments.strip() for name, _, arguments in (text.partition(":") for text in options.system)}
    values = {name: run(arguments, manager, options) for name, arguments in systems.items()}

    first, *others = systems
    print(f"{'task':16}{'shots':>6}{'items':>6}  {'metric':10}{first:>16}" + "".join(f"{name:>40}" for name in others))
    report: list[dict[str, Any]] = []
    for key, reference in values[first].items():
        task, shots, metric = key
        row: dict[str, Any] = {"task": task, "shots": shots, "metric": metric, "items": len(reference)}
        level, error = mean(reference)
        line = f"{task:16}{shots:6}{len(reference):6}  {metric:10}{level:8.3f} ± {error:.3f}"
        row[first] = {"mean": level, "standard_error": error}
        for name in others:
            level, error = mean(values[name][key])
            gain, gain_error = mean(values[name][key] - reference)
            said = verdict(gain, gain_error)
            line += f"{level:10.3f} ± {error:.3f} ({gain:+.3f} ± {gain_error:.3f}) {said:6}"
            row[name] = {
                "mean": level, "standard_error": error, "gain": gain, "gain_error": gain_error, "verdict": said,
            }  # fmt: skip
        print(line)
        report.append(row)
    print_json({"systems": systems, "rows": report})


if __name__ == "__main__":
    main()
