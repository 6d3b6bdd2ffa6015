"""train(): a cache, a memory that learns from it, and what is to be known of the result.

Knows how the parts are joined, not how any of them works.
"""

import time
from contextlib import ExitStack, closing
from dataclasses import replace

import torch
from torch import Tensor

from memdec_edge.errors import OptionError
from memdec_edge.gguf.metadata import CHECKPOINT_METADATA
from memdec_edge.options import TrainOptions
from memdec_edge.progress import progress

from .artifacts import Stage, open_stage
from .checkpoint import write_metadata
from .feed import Data
from .head import check_head
from .knn.build import fill_cache, interruptible
from .knn.cache import Cache
from .limits import enough_memory
from .loop import LAYOUT, Pace, accelerator, fit, settings
from .model_files import digests, model_files, unread_files
from .models import Source, load_source
from .report import TrainReport
from .state import remove_kept
from .student import memory_shape
from .teachers import open_teacher
from .validation import ALONE, FIGURES, LAMBDA, Validation
from .vocabulary import check_vocabulary

BASE = "base.safetensors"  # what the teacher says of the validation text


def train(options: TrainOptions) -> TrainReport:
    """Train the memory in options.out, or finish it; a finished one is only checked. Makes the cache if need be;
    beta = 0 needs only its tokens.

    Raises what build_cache() raises; ModelFileError when the initial model speaks another vocabulary than the teacher,
    OptionError (layers, hidden, block), StageError, OutputError, NumericsError naming the step whose loss is no
    number (what was saved last is kept), and Cancelled on Ctrl-C (what was done is kept). What can be refused is
    refused before the cache is made, and leaves no trace.
    """
    began = time.monotonic()
    processes = accelerator()
    with enough_memory(options.cache, options.accumulate), interruptible(), ExitStack() as held:
        cache = Cache(options.cache)
        stage = held.enter_context(closing(_open(options, cache, processes.num_processes)))
        source = None if "finished" in stage.manifest else load_source(options.init or options.cache.teacher)
        if source and not stage.begun:
            _check(options, source)
        teacher = source if options.init is None else None
        fill_cache(
            cache, processes, teacher, retrieve=options.beta > 0, pace=Pace(options.accumulate, options.save_every)
        )
        if processes.is_main_process:
            stage.begin()
        if source and "finished" not in stage.manifest:
            targets = cache.targets() if options.beta > 0 else None
            validation = Validation(cache.tokens("valid"), options.cache.block, positions=options.valid_positions)
            if processes.is_main_process:
                validation = replace(
                    validation, base=_base_losses(options, stage, validation, teacher, processes.device)
                )
            data = Data(cache.tokens("train"), targets, validation, options.cache.block, cache.counted())
            fit(options, source, data, stage, processes)
            stage.reload()
        finished = stage.manifest["finished"]
        if processes.is_main_process:
            remove_kept(stage)  # a kill may have come before the training removed it
            stage.check_recorded()
            manifest = cache.stage.manifest
            share, tau = finished["best_step"] / finished["steps"], manifest["tau"] if options.beta > 0 else None
            epochs, tokens = finished["epochs"] * share, round(finished["tokens"] * share)
            found = {"k": cache.k, "tau": tau, "weight": finished[LAMBDA], "epochs": epochs, "tokens": tokens}
            write_metadata(options.out, options, teacher=manifest["teacher"], texts=cache.texts, **found)
    done = {name: finished[name] for name in ("steps", "tokens", "best_step", *FIGURES)}
    start = stage.manifest.get("start", {}).get(ALONE)
    return TrainReport(options.out, **done, start_perplexity=start, seconds=time.monotonic() - began)


def _base_losses(
    options: TrainOptions, stage: Stage, validation: Validation, source: Source | None, device: torch.device
) -> Tensor | None:
    """-log p of validation tokens under the teacher as it was given, which the memory is mixed with."""
    if not validation.blocks:
        return None
    if not (stage.folder / BASE).exists():
        teacher, batch = open_teacher(options.cache.teacher, "hidden", device, source), options.cache.batch
        with progress("validation of the teacher", len(validation.blocks) * validation.block) as advance:
            found = teacher.read(validation.tokens, validation.blocks, validation.block, batch, advance, scored=True)
        stage.write(BASE, {"losses": -found.logprobs})
    return torch.from_numpy(stage.read(BASE)["losses"])


def _open(options: TrainOptions, cache: Cache, processes: int) -> Stage:
    inputs = {"the kNN cache": cache.stage.identity}
    source = options.init or options.cache.teacher
    for field, given in (("init", options.init), ("teacher", options.cache.teacher)):
        if given is not None and given.exists() and options.out.exists() and given.samefile(options.out):
            raise OptionError(field, given, "is the output folder, and a memory cannot replace what it is made from")
    inputs |= digests(model_files(source), "initial model")
    unread = {f"initial model {name}" for name in unread_files(source)}
    if options.out.resolve().is_relative_to(options.cache.out.resolve()):
        raise OptionError("out", options.out, f"must be outside the kNN cache, {options.cache.out}")
    layout = (*LAYOUT, CHECKPOINT_METADATA)
    beside = [options.cache.out, *([options.init] if options.init else [])]
    chosen = settings(options, processes)
    return open_stage(options.out, "memory", inputs, chosen, layout, options.cache.fresh, unread=unread, beside=beside)


def _check(options: TrainOptions, source: Source) -> None:
    """Raise unless the initial model can give the memory, sees a whole block and speaks the teacher's vocabulary."""
    memory_shape(source, options.layers, options.hidden)
    check_head(source.model)
    context = source.model.config.max_position_embeddings
    if options.cache.block > context:
        raise OptionError("block", options.cache.block, f"the initial model's context is {context} tokens")
    if options.init is not None:
        check_vocabulary(source, options.cache.teacher)
