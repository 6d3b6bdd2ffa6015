"""Training: a memory learns to answer as the kNN cache does.

bfloat16 weights where the hardware multiplies them, float32 master weights for AdamW; warm-up, cosine, clipping. Which
blocks a step sees and its random numbers depend on the seed and the step alone, so that a resumed run equals one that
was never stopped, and a control (beta = 0) sees the same text in the same order. Knows nothing of GGUF.
"""

import math
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from memdec_edge.errors import Cancelled, ModelFileError, NumericsError, OptionError
from memdec_edge.metadata import CHECKPOINT_FACTS
from memdec_edge.options import TrainOptions
from memdec_edge.pairing import MAX_PADDING
from memdec_edge.progress import progress

from .cache import AGAIN, Cache, fill_cache
from .checkpoint import NOTICE, SCRATCH, write_checkpoint, write_facts
from .keys import gather_blocks, n_blocks
from .loss import Objective, check_head, token_losses
from .memory import make_memory, memory_shape
from .resume import METRICS, STATE, Metrics, load_state, save_state
from .source import cast_parameters, digests, first_difference, load_source, source_files, work_dtype
from .stage import Stage, open_stage
from .targets import Support

VALIDATION_TOKENS = 8192  # scored at the end; `memdec-edge eval` can score them all
LAYOUT = (METRICS, STATE, CHECKPOINT_FACTS, f"{SCRATCH}/*")


@dataclass(frozen=True)
class TrainReport:
    """A finished training. `valid_perplexity` is the memory's own; None without a validation split."""

    path: Path  # checkpoint folder
    steps: int
    tokens: int  # seen, all steps together
    valid_perplexity: float | None
    seconds: float  # of this call
    notice: str = NOTICE  # to be shown to the user


def train(options: TrainOptions) -> TrainReport:
    """Train the memory in options.out, or finish it; a finished one is only checked. Makes the cache if need be;
    beta = 0 needs only its tokens.

    Raises what build_cache() raises; ModelFileError when the initial model speaks another vocabulary than the teacher,
    OptionError (--layers, --hidden, --block), StageError, OutputError, NumericsError naming the step whose loss is no
    number (what was saved last is kept), and Cancelled on Ctrl-C (what was done is kept). What can be refused is
    refused before the cache is made, and leaves no trace.
    """
    began = time.monotonic()
    waits = InitProcessGroupKwargs(timeout=timedelta(days=1))  # for the cache, which processes may finish hours apart
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[waits])
    try:
        cache = Cache(options.cache)
        stage = _open(options, cache, accelerator.num_processes)
        if not stage.begun:
            _check(options)
        fill_cache(cache, neighbours=options.beta > 0)
        if "finished" not in stage.facts:
            run = _Run(options, cache, stage, accelerator)
            if accelerator.is_main_process:
                stage.begin()
            accelerator.wait_for_everyone()
            run.run()
            accelerator.wait_for_everyone()
            stage.reload()
    except KeyboardInterrupt:
        raise Cancelled(AGAIN) from None
    finished = stage.facts["finished"]
    if accelerator.is_main_process:
        for name in stage.facts["files"]:
            stage.check(name)
        tau, teacher = cache.stage.facts["tau"] if options.beta > 0 else None, cache.stage.facts["teacher"]
        epochs, tokens = finished["epochs"], finished["tokens"]
        write_facts(options.out, options, teacher=teacher, tau=tau, epochs=epochs, tokens=tokens)
    seconds = time.monotonic() - began
    return TrainReport(options.out, finished["steps"], finished["tokens"], finished["valid_perplexity"], seconds)


def _open(options: TrainOptions, cache: Cache, processes: int) -> Stage:
    chosen = {
        "--layers": options.layers or "all",
        "--hidden": options.hidden or "as it was",
        "--epochs": options.epochs,
        "--steps": options.steps,
        "--beta": options.beta,
        "--lr": options.lr,
        "--batch": options.batch,
        "--accumulate": options.accumulate,
        "--seed": options.seed,
        "a warm-up share of": options.warmup,
        "a weight decay of": options.weight_decay,
        "gradients clipped at": options.clip,
        "a number of processes of": processes,
    }
    inputs = {"the kNN cache": cache.stage.identity}
    inputs |= digests(source_files(options.init or options.cache.teacher), "initial model")
    return open_stage(options.out, "memory", inputs, chosen, LAYOUT, options.fresh)


def _check(options: TrainOptions) -> None:
    """Raise unless the initial model can give the memory, sees a whole block and speaks the teacher's vocabulary."""
    source = load_source(options.init or options.cache.teacher)
    check_head(source.model)
    memory_shape(source, options.layers, options.hidden)
    context = source.model.config.max_position_embeddings
    if options.cache.block > context:
        raise OptionError("--block", options.cache.block, f"the initial model's context is {context} tokens")
    if options.init is None:
        return
    advice = "a memory starts from a model of the teacher's family"
    teacher = load_source(options.cache.teacher)
    mine, theirs = source.n_vocab, teacher.n_vocab
    if abs(mine - theirs) > MAX_PADDING:
        raise ModelFileError(source.path, f"its vocabulary has {mine} tokens, the teacher's {theirs}; {advice}")
    if difference := first_difference(source.tokenizer, teacher.tokenizer):
        raise ModelFileError(source.path, f"its vocabulary is not the teacher's: {difference}; {advice}")


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, blocks: int) -> list[int]:
    """The order in which an epoch goes through the blocks."""
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order: list[int] = torch.randperm(blocks, generator=generator).tolist()
    return order


class _Run:
    """One training: model, float32 weights, optimiser, data."""

    def __init__(self, options: TrainOptions, cache: Cache, stage: Stage, accelerator: Accelerator) -> None:
        self.options, self.cache, self.stage, self.accelerator = options, cache, stage, accelerator
        self.tokens, self.block = cache.tokens("train"), options.cache.block
        self.blocks = n_blocks(self.tokens, self.block)
        self.targets = cache.targets() if options.beta > 0 else None
        self.blocks_per_step = options.batch * options.accumulate * accelerator.num_processes
        self.steps = options.steps or max(1, math.ceil(options.epochs * self.blocks / self.blocks_per_step))

        self.source = load_source(options.init or options.cache.teacher)
        model = make_memory(self.source, options.layers, options.hidden, options.seed).to(accelerator.device)
        self.weights = {name: weight.detach() for name, weight in model.named_parameters()}
        cast_parameters(model, work_dtype(accelerator.device.type))  # self.weights stays float32
        self.objective = accelerator.prepare(Objective(model.train()))
        self.parameters = dict(model.named_parameters())
        decayed = [weight for weight in self.weights.values() if weight.ndim > 1]  # no decay of norms and biases
        others = [weight for weight in self.weights.values() if weight.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.lr, weight_decay=options.weight_decay, fused=True)

    def run(self) -> None:
        """From the last saved state to the published checkpoint."""
        options, main = self.options, self.accelerator.is_main_process
        step = saved = load_state(self.stage, self.weights, self.optimizer)
        self._copy_weights()
        metrics = Metrics(self.stage.folder, step) if main else None
        whole = True  # the weights are those after `step` steps
        try:
            with progress("training", self.steps * self.blocks_per_step * self.block) as done:
                done(step * self.blocks_per_step * self.block)
                while step < self.steps:
                    began = time.monotonic()
                    loss, ce, kl = self._gradients(step)
                    if not math.isfinite(loss):
                        kept = f"the state after step {saved} is kept" if saved else "nothing was saved yet"
                        raise NumericsError(
                            f"the loss is {loss} at step {step + 1}; {kept}; use --fresh and a lower --lr"
                        )
                    whole = False
                    norm, lr = self._update(step)
                    step, whole = step + 1, True
                    if metrics:
                        seconds = round(time.monotonic() - began, 3)
                        metrics.add(step=step, loss=loss, ce=ce, kl=kl, grad_norm=norm, lr=lr, seconds=seconds)
                    if main and step % options.save_every == 0 and step < self.steps:
                        save_state(self.stage, step, self.weights, self.optimizer)
                        saved = step
                    done(self.blocks_per_step * self.block)
        except KeyboardInterrupt:
            if main and whole and step > saved:
                save_state(self.stage, step, self.weights, self.optimizer)
            raise
        if main:
            self._finish()

    def _gradients(self, step: int) -> tuple[float, float, float]:
        """Leave the step's mean gradient in self.weights; return its loss, CE and KL, over all processes."""
        options, accelerator = self.options, self.accelerator
        torch.manual_seed((options.seed << 24) + step * accelerator.num_processes + accelerator.process_index)
        total = torch.zeros(3, device=accelerator.device)
        for part in range(options.accumulate):
            first = (step * options.accumulate + part) * accelerator.num_processes + accelerator.process_index
            slots = range(first * options.batch, (first + 1) * options.batch)
            blocks = [_order(options.seed, slot // self.blocks, self.blocks)[slot % self.blocks] for slot in slots]
            ids = gather_blocks(self.tokens, blocks, self.block).to(accelerator.device)
            if self.targets:
                support = self.targets.rows([block * self.block for block in blocks], self.block)
            else:
                support = Support.empty(len(blocks) * self.block)
            losses = self.objective(ids, support.to(accelerator.device), options.beta)
            accelerator.backward(losses[0] / options.accumulate)
            total += torch.stack([loss.detach() for loss in losses]) / options.accumulate
            for name, parameter in self.parameters.items():
                if parameter.grad is None:
                    continue
                weight, grad = self.weights[name], parameter.grad.float()
                weight.grad = grad if weight.grad is None else weight.grad.add_(grad)
                parameter.grad = None
        loss, ce, kl = accelerator.reduce(total, "mean").tolist()
        return loss, ce, kl

    def _update(self, step: int) -> tuple[float, float]:
        """Clip, step AdamW, and bring the model to the new weights; return the gradient's norm and the lr."""
        lr = learning_rate(self.options, step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.options.clip).item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._copy_weights()
        return norm, lr

    @torch.no_grad()
    def _copy_weights(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(self.weights[name])

    def _finish(self) -> None:
        model = self.accelerator.unwrap_model(self.objective).model.eval()
        perplexity = self._perplexity(model)
        for name, parameter in self.parameters.items():
            parameter.data = self.weights[name]
        write_checkpoint(self.stage, model, self.source.tokenizer)
        seen = self.steps * self.blocks_per_step
        finished = {
            "steps": self.steps,
            "tokens": seen * self.block,
            "epochs": seen / self.blocks,
            "valid_perplexity": perplexity,
        }
        self.stage.record(finished=finished)
        (self.stage.folder / STATE).unlink(missing_ok=True)

    @torch.inference_mode()
    def _perplexity(self, model: Any) -> float | None:
        """Of up to VALIDATION_TOKENS tokens of the validation split, in evenly spaced blocks of full context."""
        tokens, block = self.cache.tokens("valid"), self.block
        total = n_blocks(tokens, block)
        if total == 0:
            return None
        wanted = min(total, max(1, VALIDATION_TOKENS // block))
        losses = []
        for i in range(wanted):
            ids = gather_blocks(tokens, [i * total // wanted], block).to(self.accelerator.device)
            losses.append(token_losses(model, ids))
        return float(torch.cat(losses).mean().exp())


def learning_rate(options: TrainOptions, step: int, steps: int) -> float:
    """Linear warm-up to options.lr, then a cosine to 0 at the last step's end; step from 0."""
    warm = math.ceil(options.warmup * steps)
    if step < warm:
        return options.lr * (step + 1) / warm
    return options.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
