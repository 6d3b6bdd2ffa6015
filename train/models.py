"""Models as PyTorch sees them, out of an HF folder or a GGUF: teachers, and what a memory is initialised from.

transformers dequantises a GGUF, but llama.cpp tokenizes its text: transformers does not know every pre-tokenizer, and a
memory must see the tokens that it will see at run time. llama.cpp is asked for only when text comes to be tokenized. So
a folder, or a GGUF with token ids, does without it. Knows nothing of corpora and caches.
"""

import copy
import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from memdec_edge.errors import ModelFileError
from memdec_edge.files import shown_name
from memdec_edge.gguf.header import Header
from memdec_edge.gguf.metadata import model_name
from memdec_edge.hf_folder import read_json

from .corpus import Encoder
from .model_files import model_files, require_llama

if TYPE_CHECKING:
    from memdec_edge.llama.model import Model

SAME_MATRIX = 0.2  # relative distance; quantising a matrix in two ways makes 0.04 to 0.1, two trained ones over 1
MAX_LAYERS = 1000  # of a model; the deepest ones have some 200
_BLOCK_MLP = ("mlp", "feed_forward", "ffn")  # what architectures call it


@dataclass(frozen=True)
class Source:
    """A causal LM in float32 on the CPU, and its tokenizer."""

    path: Path
    name: str
    model: Any  # transformers.PreTrainedModel; never changed: memories are copies
    tokenizer: Any  # transformers.PreTrainedTokenizerFast

    @cached_property
    def encoder(self) -> Encoder:
        """How its text becomes tokens. Raises ModelFileError: no EOS token, or no llama.cpp for the text of a GGUF."""
        if self.path.is_dir():
            return _folder_encoder(self.path, self.tokenizer)
        require_llama(self.path)
        from memdec_edge.llama.model import Model

        return gguf_encoder(Model(self.path, vocab_only=True))

    @property
    def n_vocab(self) -> int:
        """Rows of the embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])


def load_source(path: Path) -> Source:
    """Load a Hugging Face folder or a GGUF. A GGUF of 100 MB takes 15 seconds: load once, and pass what was loaded.

    Raises MissingFileError, and ModelFileError when transformers cannot make a causal LM with a tokenizer of it.
    """
    files = model_files(path)  # says what is wrong with a model better than transformers does
    is_gguf = path.is_file()
    where, how = (path.parent, {"gguf_file": path.name}) if is_gguf else (path, {})
    if is_gguf and len(files) > 1:
        advice = "join them with llama-gguf-split --merge"
        raise ModelFileError(path, f"is split into {len(files)} files, and transformers reads one; {advice}")
    if not is_gguf:
        _refuse_depth(path / "config.json")
    try:
        with quiet():
            model, found = transformers.AutoModelForCausalLM.from_pretrained(
                where, dtype=torch.float32, local_files_only=True, output_loading_info=True, **how
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(where, local_files_only=True, **how)
    except MemoryError:
        raise
    except Exception as error:  # of ten kinds: transformers passes on whatever damaged or strange files run into
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelFileError(path, f"transformers cannot load it as a causal LM ({reason})") from error
    if missing := sorted(found["missing_keys"]):  # transformers would leave them random
        raise ModelFileError(path, f"it has no tensor {missing[0]}; the file is damaged, or config.json is another's")
    if left := _blocks_left_out(model, found["unexpected_keys"]):
        raise ModelFileError(path, f"config.json has no place for {left}; it is another model's, or was edited")
    if is_gguf:
        _tie_again(model)
        _mend_tokenizer(path, tokenizer)
    name = Path(shown_name(path)).stem if is_gguf else model_name(path)["general.name"]
    return Source(path, name, model.eval(), tokenizer)


def _refuse_depth(config: Path) -> None:
    """Raise ModelFileError for a number of blocks that transformers would build for hours before it looks at a file."""
    body = read_json(config)
    inner = body.get("text_config")
    for values in (body, inner if isinstance(inner, dict) else {}):
        for name in ("num_hidden_layers", "n_layer", "num_layers"):
            layers = values.get(name, 1)
            if isinstance(layers, int) and not 1 <= layers <= MAX_LAYERS:
                raise ModelFileError(config, f"{name} is {layers}; it must be from 1 to {MAX_LAYERS}")


def _blocks_left_out(model: Any, unexpected: Iterable[str]) -> str:
    """The first tensor of a block that the file has and the model lacks, or "".

    Other tensors may be left out: files hold heads that are tied, and parts for seeing or hearing.
    """
    known = {re.sub(r"\.\d+\.", ".0.", name) for name in model.state_dict()}
    return min((name for name in unexpected if re.sub(r"\.\d+\.", ".0.", name) in known), default="")


@torch.no_grad()
def _tie_again(model: Any) -> None:
    """Tie head and embedding where they are one matrix in two quantisations: some GGUFs hold a tied matrix twice.

    The head's numbers stay: quantisers give it more bits. A memory is the smaller for it.
    """
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if embedding is not head and (embedding - head).norm() < SAME_MATRIX * head.norm():
        embedding.copy_(head)
        model.get_output_embeddings().weight = embedding
        model.config.tie_word_embeddings = True


def gguf_encoder(gguf: "Model") -> Encoder:
    """llama.cpp's tokenizer. Raises ModelFileError where it has no EOS."""
    return Encoder(gguf.encode, gguf.bos if gguf.add_bos else None, _checked_eos(gguf.path, gguf.eos))


def _folder_encoder(path: Path, tokenizer: Any) -> Encoder:
    def encode(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids

    first = tokenizer("a").input_ids[:1]
    bos = tokenizer.bos_token_id if first == [tokenizer.bos_token_id] else None
    return Encoder(encode, bos, _checked_eos(path, tokenizer.eos_token_id))


def _checked_eos(path: Path, eos: int | None) -> int:
    if eos is None or eos < 0:
        raise ModelFileError(path, "its tokenizer has no EOS token, which separates documents; set eos_token")
    return eos


def _mend_tokenizer(gguf: Path, tokenizer: Any) -> None:
    """Give `tokenizer`, which is saved with the memory, the right pre-tokenizer and the right EOS."""
    from tokenizers import pre_tokenizers

    with Header(gguf) as header:
        scalars = header.scalars()
    named, eos = (scalars.get(f"tokenizer.ggml.{name}") for name in ("pre", "eos_token_id"))
    if isinstance(eos, int) and 0 <= eos < len(tokenizer):  # transformers 5.17 takes another token of SmolLM2
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(eos)
    if named == "smollm":  # transformers leaves out that digits stand alone
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from writing logs and progress bars to stderr."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with redirect_stderr(io.StringIO()):  # its GGUF reader draws a bar of its own
        yield


def blocks_of(model: Any) -> tuple[str, torch.nn.ModuleList]:
    """Name and modules of a model's transformer blocks. Raises ModelFileError when no list of modules is as long."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return name, module
    raise ModelFileError(model.config.name_or_path, f"no list of blocks found in {type(model).__name__}")


def last_mlp(model: Any) -> torch.nn.Module:
    """The MLP of the last block; its input is the key (2508.09874, after 1911.00172, section 5)."""
    block = blocks_of(model)[1][-1]
    for name in _BLOCK_MLP:
        if isinstance(mlp := getattr(block, name, None), torch.nn.Module):
            return mlp
    raise ModelFileError(model.config.name_or_path, f"no MLP found in the blocks of {type(model).__name__}")


def work_copy(model: Any, device: torch.device) -> Any:
    """A copy of a model on a device, in work_dtype(); parameters that need no change are shared, not copied."""
    dtype = work_dtype(device.type)
    cast = {id(each): torch.nn.Parameter(each.detach().to(device, dtype), False) for each in model.parameters()}
    return copy.deepcopy(model, cast).to(device)  # with the buffers, in their own type


def cast_parameters(model: Any, dtype: torch.dtype) -> None:
    """Give all parameters another type, in place. Buffers stay: bfloat16 would blur the rotary frequencies."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


@cache
def work_dtype(device: str) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, which is at least twice as fast there; float32 elsewhere."""
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    has = torch.cpu.get_capabilities() if device == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else torch.float32
