"""adapt(): a memory for another vocabulary. Its body stays, embedding and head start anew, a short training follows.

The cross-vocabulary transfer of 2508.09874: a tenth of the tokens that the memory was trained on. train/transplant.py
says what the new rows start from. The start is a folder in the output; the rest is a training like any other, with the
new base as teacher. Knows nothing of how steps are made.
"""

import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from memdec_edge.errors import ModelFileError, OptionError
from memdec_edge.gguf.metadata import CHECKPOINT_METADATA, TRAIN
from memdec_edge.hf_folder import read_json
from memdec_edge.options import AdaptOptions, TrainOptions

from .artifacts import open_stage
from .checkpoint import write_checkpoint
from .model_files import digests, model_files
from .models import load_source
from .pipeline import train
from .report import TrainReport
from .transplant import rows_from, transplanted

START = "start"  # the memory with its new rows, before training
KIND = "memory with another vocabulary"


def adapt(options: AdaptOptions) -> TrainReport:
    """Train the memory in options.training.out, or finish it, as train() does.

    options.training says how; its steps are set by the budget, its start by the memory. Raises what train() raises,
    ModelFileError for a folder that is no memory of this package, OptionError (budget_share) for no whole step.
    """
    training = budgeted(options)
    start = training.out / START
    files = digests(model_files(options.memory), "memory") | digests(model_files(options.to), "new base")
    stage = open_stage(start, KIND, files, {}, ("config.json", "model.safetensors"), training.cache.fresh)
    with closing(stage):
        if "files" not in stage.manifest:
            stage.begin()
            old, new = load_source(options.memory), load_source(options.to)
            rows = rows_from(old, new)
            write_checkpoint(stage, transplanted(old, new, rows), new.tokenizer)
            stage.record(kept=rows.kept, composed=rows.composed)
        stage.check_recorded()
    return train(replace(training, init=start))


def budgeted(options: AdaptOptions) -> TrainOptions:
    """The training with its number of steps. Raises ModelFileError, and OptionError (budget_share)."""
    training = options.training
    trained = trained_tokens(options.memory)
    tokens = options.budget_share * trained
    step = training.cache.block * training.cache.batch * training.accumulate
    if tokens < step:
        least = math.ceil(1000 * step / trained) / 1000
        reason = f"gives {tokens:,.0f} tokens of {trained:,}, and a step has {step:,}; give {least:g} or more"
        raise OptionError("budget_share", options.budget_share, reason)
    return replace(training, steps=round(tokens / step))


def trained_tokens(memory: Path) -> int:
    """Tokens that a memory was trained on. Raises ModelFileError where its folder does not say."""
    path = memory / CHECKPOINT_METADATA
    found = read_json(path).get(f"{TRAIN}tokens") if path.is_file() else None
    if not isinstance(found, int) or found <= 0:
        raise ModelFileError(
            path, "does not say how many tokens the memory learned from; give a folder that train made"
        )
    return found
