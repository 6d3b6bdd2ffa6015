"""Domain-conditional PMI, the rule by which arXiv 2508.09874 scores zero-shot tasks, as a metric of lm-eval.

    class: !function memdec_edge.evaluation.pmi.PmiTask
    output_type: multiple_choice
    metric_list:
      - metric: acc_dcpmi
        aggregation: mean
        higher_is_better: true
        premise: " It was"

The choice is the one with the largest log p(choice | prompt) - log p(choice | premise) (Holtzman et al. 2021, arXiv
2104.08315): a word that is common after the premise alone earns nothing by that. The premise is the part of the prompt
that all items share, a Jinja template of the item; lm-eval's acc_mutual_info has an empty one. Examples of few-shot
prompts do not stand before it.

Importing this module imports lm_eval, of the extra [eval]. Knows nothing of models.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_metric
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import apply_template

from memdec_edge.errors import TaskError

METRIC = "acc_dcpmi"


# lm-eval asks for a function, which it does not call: PmiTask computes the metric.
register_metric(metric=METRIC, higher_is_better=True, output_type="multiple_choice", aggregation="mean")(list)


class PmiTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval has no types
    """A task with choices that also knows the metric acc_dcpmi. Raises TaskError for one that gives it no premise."""

    def __init__(self, config: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(config={key: value for key, value in (config or {}).items() if key != "class"}, **kwargs)
        options = self._metric_fn_kwargs.get(METRIC)
        if options is not None and not isinstance(options.get("premise"), str):
            raise TaskError(f"task {self.config.task}: the metric {METRIC} needs a text as `premise`")
        if options is not None and (self.OUTPUT_TYPE != "multiple_choice" or self.multiple_input):
            raise TaskError(f"task {self.config.task}: the metric {METRIC} needs one prompt and several choices")
        self._premise: str | None = options and options["premise"]

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """The requests of the choices after the prompt, then those after the premise."""
        requests: list[Instance] = super().construct_requests(doc, ctx, **kwargs)
        if self._premise is None:
            return requests
        premise = apply_template(self._premise, doc)
        choices = requests[: len(self.doc_to_choice(doc))]
        return requests + [
            Instance(
                request_type=request.request_type, doc=doc, arguments=(premise, request.args[1]),
                idx=len(requests) + number, metadata=request.metadata,
            )
            for number, request in enumerate(choices)
        ]  # fmt: skip

    def process_results(self, doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
        """lm-eval's own metrics of the first requests, and acc_dcpmi of all."""
        if self._premise is None:
            return dict(super().process_results(doc, results))
        choices = self.doc_to_choice(doc)
        own, after_premise = results[: -len(choices)], results[-len(choices) :]
        gains = [prompted - prior for (prompted, _), (prior, _) in zip(own[: len(choices)], after_premise, strict=True)]
        gold = self.doc_to_target(doc)
        best = int(np.argmax(gains))
        right = any(one in (best, choices[best]) for one in (gold if isinstance(gold, list) else [gold]))
        return {**super().process_results(doc, own), METRIC: float(right)}
