"""A training from its start to its end: the rate, the steps, validation, what is kept and what is published.

Before the first step the start is measured and kept, and a learning rate is chosen. What is published are the weights
that did best on validation text, which may be the start's: a small corpus is soon learned by heart. An interrupted
training goes on where it was. Knows nothing of caches and GGUF, nor of how a step is made.
"""

import math
import sys
import time
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from memdec_edge.errors import NumericsError
from memdec_edge.options import TrainOptions
from memdec_edge.progress import Advance, progress

from .artifacts import Stage
from .checkpoint import write_checkpoint
from .feed import Data
from .interrupts import unbroken
from .layers import POSITIONS, choose_layers
from .limits import is_out_of_memory, release
from .metrics import CURVES, METRICS, TENSORBOARD, Metrics, draw_curves, read_metrics
from .models import Source
from .rate import FRESH_RATES, RATES, choose_rate, learning_rate, trial_steps
from .state import BEST, STATE, best_figures, best_weights, load_state, remove_kept, save_best, save_state
from .step import Found, Learner, Losses
from .student import make_memory
from .teacher import gather_blocks, spread_blocks
from .validation import ALONE, FIGURES, MIXED, Figures, Validation, merit

LAYOUT = (METRICS, CURVES, STATE, BEST, "config.json", "model.safetensors", f"{TENSORBOARD}/*")
TRIAL_POSITIONS = 2048  # of validation text that a trial of a learning rate is measured on


class Pace(NamedTuple):
    """How a training divides its work; none of it decides the weights, but for rounding."""

    accumulate: int = TrainOptions.accumulate
    save_every: int = TrainOptions.save_every


def settings(options: TrainOptions, processes: int) -> dict[str, Any]:
    """What decides the weights, beside model and data: a field -> its value, or the word for None."""
    return {
        "from_scratch": options.from_scratch,
        "layers": options.layers or "all",
        "hidden": options.hidden or "as it was",
        "epochs": options.epochs,
        "steps": options.steps,
        "beta": options.beta,
        "lr": "auto" if options.lr is None else options.lr,
        "batch": options.cache.batch * options.accumulate,  # so that memory may run out, and half as many go on
        "seed": options.cache.seed,
        "warmup": options.warmup,
        "weight_decay": options.weight_decay,
        "clip": options.clip,
        "processes": processes,
        **({"freeze_body": options.freeze_body} if options.freeze_body else {}),  # earlier versions had none
    }


def accelerator() -> Accelerator:
    """This process among those that `accelerate launch` started, or alone."""
    waits = InitProcessGroupKwargs(timeout=timedelta(days=1))  # for stages that processes may finish hours apart
    return Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[waits])


def fit(
    options: TrainOptions, source: Source, data: Data, stage: Stage, accelerator: Accelerator, name: str = "memory"
) -> None:
    """Train a model made from `source` in the stage's folder, or finish it; a finished one is left as it is.

    Prints to stderr where the model, called `name`, stands before the first step, and the learning rate that was
    chosen. Raises OutputError, StageError for a damaged state, NumericsError naming the step whose loss is no number,
    and KeyboardInterrupt, after which all finished steps are kept. So they are when memory runs out; after another
    error what was saved last is kept.
    """
    if "finished" in stage.manifest:
        if accelerator.is_main_process:
            remove_kept(stage)  # a kill may have come before the training did
        return
    if accelerator.is_main_process:
        stage.begin()
        if options.layers and not options.hidden and not options.from_scratch and "layers" not in stage.manifest:
            ids = gather_blocks(data.train, spread_blocks(data.train, data.block, POSITIONS), data.block)
            stage.record(layers=choose_layers(source, options.layers, ids, accelerator.device))
    accelerator.wait_for_everyone()
    stage.reload()
    shape = stage.manifest.get("layers", options.layers), options.hidden, options.cache.seed
    model = make_memory(source, *shape, fresh=options.from_scratch)
    _Run(options, Learner(options, model, data, accelerator), source.tokenizer, stage, name).run()
    accelerator.wait_for_everyone()


class _Run:
    """One training. `step` steps are done, `saved` of them are on disk.

    coming  losses of the last step, at which a device may still be at work, and its learning rate
    line    what is to be recorded of the last step, once its validation is done; empty: it is coming, or recorded
    sound   after so many steps the weights are known to give a loss that is a number
    clock   when the numbers of the step before were known
    """

    def __init__(self, options: TrainOptions, learner: Learner, tokenizer: Any, stage: Stage, name: str) -> None:
        self.options, self.learner, self.tokenizer, self.stage, self.name = options, learner, tokenizer, stage, name
        self.data, self.accelerator = learner.data, learner.accelerator
        self.main = self.accelerator.is_main_process
        self.steps = options.steps or max(1, math.ceil(options.epochs * learner.blocks / learner.blocks_per_step))
        self.frozen = math.ceil(options.freeze_body * self.steps)  # steps in which embedding and head learn alone
        self.step, self.line = load_state(stage, learner.weights, learner.optimizer)
        self.saved = self.sound = self.step
        self.coming: tuple[Found, float] | None = None
        self.metrics: Metrics | None = None
        learner.show_weights()

    def run(self) -> None:
        """From the start or the last saved state to the published checkpoint."""
        try:
            self._measure_start()
            self._choose_rate()
            self.best = best_figures(self.stage)
            recorded, tokens = self.step - bool(self.line), self.learner.blocks_per_step * self.data.block
            self.metrics = Metrics(self.stage, recorded) if self.main else None
            self.clock = time.monotonic()
            with progress(f"training the {self.name}", self.steps * tokens, done=recorded * tokens) as advance:
                while self.step < self.steps or self.line:
                    if not self.line:
                        self._learn()
                    if self.line or self._validates():
                        self._settle()
                        self._record()
                    advance(tokens)
            if self.main:
                self._publish()
        except KeyboardInterrupt:
            self._keep()
            raise
        except RuntimeError as error:
            if is_out_of_memory(error):
                release(error)
                self._keep()
            raise
        finally:
            self.learner.close()
            if self.metrics:
                self.metrics.close()

    def _measure_start(self) -> None:
        """Score the weights before the first step, and keep them: nothing worse is published."""
        there = "start" in self.stage.manifest and (self.stage.folder / BEST).exists()
        if self.main and not self.step and not there:
            found = self._score(self.data.validation)
            save_best(self.stage, self.learner.weights, {"step": 0, **found})
            self.stage.record(start=found)
            if found:
                print(f"validation perplexity of the {self.name} before training: {_shown(found)}", file=sys.stderr)
        self._meet()

    def _choose_rate(self) -> None:
        """Set the peak of the learning rate: the one that was asked for, or the best of short trials from the start."""
        if self.options.lr is not None:
            self.peak = self.options.lr
            return
        if "lr" not in self.stage.manifest:
            rates = FRESH_RATES if self.options.hidden or self.options.from_scratch else RATES
            with progress("trying learning rates", len(rates) * trial_steps(self.steps), "steps") as advance:
                peak = choose_rate(rates, lambda rate: self._trial(rate, advance))
            if self.main:
                self.stage.record(lr=peak)
                trials = sorted(self.stage.manifest["trials"].items(), key=lambda trial: -float(trial[0]))
                tried = ", ".join(f"{found:.2f} at {rate}" for rate, found in trials)
                print(f"learning rate {peak:g}: short trials gave a perplexity of {tried}", file=sys.stderr)
            self._meet()
        self.peak = float(self.stage.manifest["lr"])

    def _trial(self, rate: float, advance: Advance) -> float:
        """Perplexity after a short run at a peak of `rate` from the start, infinite for NaN; kept in the manifest."""
        learner, steps, done = self.learner, trial_steps(self.steps), self.stage.manifest.get("trials", {})
        if str(rate) not in done:
            for step in range(steps):
                if not learner.gradients(step).known().is_finite:
                    break
                learner.update(learning_rate(rate, 0.5, step, steps))
                advance(1)
            if self.main:
                text = replace(self.data.validation, base=None, positions=TRIAL_POSITIONS)
                found = self._score(text if text.blocks else replace(text, tokens=self.data.train))
                self.stage.record(trials=done | {str(rate): merit(found)[1]})
            self._meet()
            learner.restart(best_weights(self.stage))
        return float(self.stage.manifest["trials"][str(rate)])

    def _meet(self) -> None:
        """Wait for the other processes, and see what the first one has recorded."""
        self.accelerator.wait_for_everyone()
        self.stage.reload()

    def _learn(self) -> None:
        """Take a step. Raises NumericsError where the loss of the step before is no number.

        The CPU learns of a step's losses when a device is at work on the next step, so that neither waits.
        """
        learner, began = self.learner, self.step
        found = learner.gradients(began)
        self._settle()
        self._record()
        if self.main and self.saved < began and began % self.options.save_every == 0:
            self._refuse(found.known(), began + 1)
            self.sound = began
            self._save()
        rate = learning_rate(self.peak, self.options.warmup, began, self.steps)
        with unbroken():  # so that weights and moments are always those after `step` steps
            learner.update(rate, body=began >= self.frozen)
            self.step += 1
            self.coming = found, rate

    def _settle(self) -> None:
        """Wait for the losses of the last step. Raises NumericsError where they are no numbers."""
        if not self.coming:
            return
        found, rate = self.coming
        losses = found.known()
        self._refuse(losses, self.step)
        now = time.monotonic()
        self.line = {**asdict(losses), "lr": rate, "seconds": round(now - self.clock, 3)}
        self.coming, self.sound, self.clock = None, max(self.sound, self.step - 1), now

    def _refuse(self, losses: Losses, step: int) -> None:
        """Raise NumericsError unless the losses of a step, from 1, are numbers."""
        if not losses.is_finite:
            bad = "the gradient's norm" if math.isfinite(losses.loss) else "the loss"
            value = losses.grad_norm if math.isfinite(losses.loss) else losses.loss
            kept = f"the state after step {self.saved} is kept" if self.saved else "nothing was saved yet"
            raise NumericsError(f"{bad} is {value} at step {step}; {kept}; use `fresh` and a lower `lr`")

    def _record(self) -> None:
        """Record what is known of the last step, after its validation where that is due."""
        if not self.line:
            return
        numbers = self.line | self._validate()
        with unbroken():  # so that no saved state takes a line that is written for one that is to come
            if self.metrics:
                self.metrics.add(self.step, numbers)
            self.line = {}

    def _save(self) -> None:
        save_state(self.stage, self.step, self.learner.weights, self.learner.optimizer, self.line)
        self.saved = self.step

    def _keep(self) -> None:
        """Save all finished steps, unless that is done or their weights give no number."""
        try:
            if self.coming:
                self._settle()
                if not self._validates():
                    self._record()
            unsaved = self.main and self.saved < self.step
            if unsaved and (self.sound == self.step or self.learner.is_sound(self.step)):
                self._save()
        except NumericsError:  # so that the state before stays
            return

    def _validates(self) -> bool:
        """Whether the weights after the last step are to be scored."""
        every, learner = self.options.valid_every, self.learner
        ends_epoch = self.step * learner.blocks_per_step % learner.blocks < learner.blocks_per_step
        return self.step == self.steps or (every > 0 and (self.step % every == 0 or ends_epoch))

    def _validate(self) -> Figures:
        """Score the memory where that is due, and keep its weights if they do better than those before."""
        if not (self.main and self._validates()):
            return {}
        found = self._score(self.data.validation)
        if merit(found) < merit(self.best):
            self.best = {"step": self.step, **found}
            save_best(self.stage, self.learner.weights, self.best)
        self.clock = time.monotonic()
        return found

    def _score(self, text: Validation) -> Figures:
        found = text.score(self.learner.model.eval(), self.accelerator.device)
        self.learner.model.train()
        return found

    def _publish(self) -> None:
        """Write the weights that did best on validation text, the last ones where there is none."""
        measured = bool(self.data.validation.blocks)
        if measured and merit(self.best) == merit({}):
            raise NumericsError("the memory predicts NaN; use `fresh` and a lower `lr`")
        for name, weight in (best_weights(self.stage) if measured else self.learner.weights).items():
            self.learner.parameters[name].data = weight.clone()  # `learner.weights` stays what an interrupt may save
        write_checkpoint(self.stage, self.learner.model.eval(), self.tokenizer)
        start, last = self.stage.manifest.get("start", {}), read_metrics(self.stage.folder)[-1]
        draw_curves(self.stage.folder, start)
        seen = self.steps * self.learner.blocks_per_step
        finished = {
            "steps": self.steps,
            "tokens": seen * self.data.block,
            "epochs": seen / self.learner.blocks,
            "best_step": int(self.best["step"]) if measured else self.steps,
            **{name: self.best.get(name) for name in FIGURES},
        }
        self.stage.record(finished=finished)
        remove_kept(self.stage)
        if measured and not finished["best_step"]:
            print(
                f"Warning: the {self.name} never did better on validation text than before training, so the weights "
                f"from before training are published. Perplexity was {_shown(start)} then and {_shown(last)} at the "
                "end. A lower learning rate or more text may help.",
                file=sys.stderr,
            )


def _shown(figures: Figures) -> str:
    return f"{figures[ALONE]:.2f}" + (f" ({figures[MIXED]:.2f} mixed with the teacher)" if MIXED in figures else "")
