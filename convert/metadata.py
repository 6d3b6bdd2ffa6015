"""The metadata of a converted file: what it is, what llama.cpp must know of its architecture, what memdec.json adds.

Knows nothing of how tensors and tokens are written.
"""

import re
import struct
from pathlib import Path

from gguf.constants import GGML_QUANT_VERSION, MODEL_ARCH

from memdec_edge.errors import ModelFileError
from memdec_edge.gguf import metadata
from memdec_edge.gguf.writer import GgufFile, Value
from memdec_edge.hf_folder import read_json
from memdec_edge.options import ConvertOptions

from .config import ModelConfig
from .fusion import Fusion
from .tensors import FILE_TYPES
from .tokenizer import TokenizerBlock

OWN_KEYS = ("general.architecture", "general.type", "general.file_type", "general.quantization_version",
            "general.alignment", metadata.SCHEMA_VERSION, metadata.ROLE, metadata.TOKENIZER_SHA256,
            metadata.TOKENIZER_N_TOKENS)  # fmt: skip  # convert itself knows these
OUR_KEYS = rf"(general|{metadata.PREFIX[:-1]})\.[a-z0-9_.]+"
# All other keys of general.* that a user may set are strings; llama.cpp refuses a file that has a number there.
LISTS = ("general.tags", "general.languages", "general.datasets")


def add_metadata(
    file: GgufFile, options: ConvertOptions, config: ModelConfig, outtype: str, block: TokenizerBlock, fusion: Fusion
) -> None:
    """Add every key but the tokenizer's, and then the tokenizer's block. The lambda of memdec.json precedes LMDeploy's.

    Raises ModelFileError for an entry of memdec.json that is no key of ours or has a value outside its range, and for a
    value that GGUF cannot hold.
    """
    base = options.base or options.lora_base  # the GGUF whose tokenizer is copied, else the model of a LoRA
    general: dict[str, Value] = {
        "general.architecture": config.architecture.name,
        "general.type": "model",
        **metadata.model_name(options.checkpoint),
        **metadata.hub_source(options.checkpoint, "general.source"),
        **(metadata.base_model(base) if base else {}),
        "general.file_type": FILE_TYPES[outtype],
        "general.quantization_version": GGML_QUANT_VERSION,
    }
    if options.role == "memory":
        digest, n_tokens = metadata.tokenizer_digest(block.tokens)
        general["general.tags"] = ["memory-decoder", "memdec-edge"]
        general |= {
            metadata.SCHEMA_VERSION: metadata.SCHEMA,
            metadata.ROLE: "memory",
            **metadata.PLACEHOLDERS,
            **({} if fusion.weight is None else {metadata.LAMBDA: fusion.weight}),
            metadata.TOKENIZER_SHA256: digest,
            metadata.TOKENIZER_N_TOKENS: n_tokens,
        }
    is_memory = options.role == "memory"
    noted = _noted(options.checkpoint)
    general |= {key: value for key, value in noted.items() if is_memory or key.startswith("general.")}
    if is_memory:  # a recommended lambda may be outside its range
        metadata.MemoryMetadata.from_gguf(options.checkpoint / metadata.CHECKPOINT_METADATA, general)
    for key, value in (general | _architecture(config, len(block.tokens))).items():
        try:
            file.add(key, value)
        except (struct.error, OverflowError, UnicodeEncodeError) as error:
            raise ModelFileError(
                options.checkpoint, f"{key} is {value!r:.40}, which GGUF cannot hold; change it"
            ) from error
    file.entries |= block.entries


def _architecture(config: ModelConfig, n_tokens: int) -> dict[str, Value]:
    norm = "layer_norm_epsilon" if config.architecture.layer_norm else "layer_norm_rms_epsilon"
    found: dict[str, Value] = {
        "block_count": config.layers,
        "context_length": config.n_ctx,
        "embedding_length": config.hidden,
        "feed_forward_length": config.ffn,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        f"attention.{norm}": config.eps,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "vocab_size": n_tokens,
    }
    if config.architecture.rope_scaling:
        found |= {"rope.dimension_count": config.rope_dim, "rope.freq_base": config.rope_theta}
    if config.rope_scaling.get("rope_type") == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_scaling["factor"]}
    if config.window:
        found |= {
            "attention.sliding_window": config.window,
            "attention.sliding_window_pattern": config.window_period,
            "rope.freq_base_swa": config.window_theta,
        }
    if config.architecture.gguf == MODEL_ARCH.GPTNEOX:
        found["use_parallel_residual"] = config.parallel_residual
    return {f"{config.architecture.name}.{key}": value for key, value in found.items()}


def _noted(folder: Path) -> dict[str, Value]:
    """What memdec.json adds: keys of general.* and memdec_edge.*, with values that GGUF has a type for.

    Training leaves there its recommended lambda, among others. Null means not set.
    """
    path = folder / metadata.CHECKPOINT_METADATA
    if not path.is_file():
        return {}
    noted: dict[str, Value] = {}
    for key, value in read_json(path).items():
        if not re.fullmatch(OUR_KEYS, key) or key in OWN_KEYS:
            raise ModelFileError(path, f"{key!r:.80} cannot be set; remove it (convert sets it, or it is not ours)")
        if value is None:
            continue
        if key in metadata.PLACEHOLDERS:  # always f32, so that patch() can change it
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ModelFileError(path, f"{key} is {value!r:.80}; it must be a number")
            value = float(str(value))  # infinite where it is too large, which from_gguf() refuses
        if wanted := _unfit(key, value):
            raise ModelFileError(path, f"{key} is {value!r:.80}; it must be {wanted}")
        noted[key] = value
    return noted


def _unfit(key: str, value: object) -> str:
    """What the value of a key must be, where it is something else; "" for a value that fits."""
    texts = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
    if key in LISTS:
        return "" if texts else "a list of strings"
    if key.startswith("general."):
        return "" if isinstance(value, str) else "a string"
    return "" if texts or isinstance(value, bool | int | float | str) else "a number, true or false, or a string"
