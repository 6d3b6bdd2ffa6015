"""Does convert write what llama.cpp's own convert_hf_to_gguf.py writes?

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36   # its sdist holds llama.cpp, unpack it
    python benchmarks/convert_reference.py vendor/llama.cpp/convert_hf_to_gguf.py CHECKPOINT...

Each CHECKPOINT is an HF folder with a tokenizer that the script knows. It is converted by both to each type, and with
its tokenizer a small random checkpoint of each architecture to f16 and q8_0, where the script knows the two together.
Compared are names, shapes, types and bytes of all tensors, and the arrays of the tokenizer; other keys that differ are
printed. The last line is one JSON object.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gguf import GGUFReader
from transformers import AutoConfig, AutoModelForCausalLM

from memdec_edge.convert import convert
from memdec_edge.options import ConvertOptions

TYPES, FEW = ("f32", "f16", "bf16", "q8_0"), ("f16", "q8_0")
SIZES = {
    "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4,
    "max_position_embeddings": 128,
}  # fmt: skip
GROUPED: dict[str, Any] = {"num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt_neox": {},
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": None, "head_dim": 32},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 32},
    "gemma3_text": {**GROUPED, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16},
}
# What transformers 4 wrote and the script wants. It takes rotary_pct from config.json only where transformers does not
# know the type of the model.
OLD = {"gpt2": {"n_ctx": 128}, "gpt_neox": {"rotary_pct": 0.25, "model_type": "pythia"}}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
VARIANTS = {**FAMILIES, "llama, llama3 rope": {**GROUPED, "rope_parameters": LLAMA3, "tie_word_embeddings": True}}


def random_checkpoint(family: str, changes: dict[str, Any], tokenizer: Path, folder: Path) -> Path:
    """A checkpoint of an architecture with the tokenizer of another folder."""
    rows = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    torch.manual_seed(0)
    config = AutoConfig.for_model(family.partition(",")[0], **(SIZES | changes), vocab_size=rows)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    body = json.loads((folder / "config.json").read_text(encoding="utf-8")) | OLD.get(family, {})
    (folder / "config.json").write_text(json.dumps(body), encoding="utf-8")
    for path in tokenizer.iterdir():
        if path.suffix in (".json", ".jinja", ".model") and path.name not in ("config.json", "generation_config.json"):
            shutil.copy(path, folder)
    return folder


def reference(script: Path, checkpoint: Path, outfile: Path, outtype: str) -> str:
    """What llama.cpp's script makes of it, with the gguf package beside it; why it does not, or empty."""
    environment = {**os.environ, "PYTHONPATH": str(script.parent / "gguf-py")}
    command = [sys.executable, str(script), str(checkpoint), "--outfile", str(outfile), "--outtype", outtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.stderr.strip().split("\n")[-1] if done.returncode else ""


def differences(ours: Path, theirs: Path) -> tuple[list[str], list[str]]:
    """What must not differ and does; the keys that only one of the two has, or that say different things."""
    mine, other = GGUFReader(ours), GGUFReader(theirs)
    wrong: list[str] = []
    tensors = {tensor.name: tensor for tensor in mine.tensors}, {tensor.name: tensor for tensor in other.tensors}
    for name in sorted(tensors[0].keys() ^ tensors[1].keys()):
        wrong.append(f"{name} only in {'ours' if name in tensors[0] else 'theirs'}")
    for name in tensors[0].keys() & tensors[1].keys():
        a, b = tensors[0][name], tensors[1][name]
        if a.tensor_type != b.tensor_type or a.shape.tolist() != b.shape.tolist():
            wrong.append(f"{name}: {a.tensor_type.name} {a.shape.tolist()}, {b.tensor_type.name} {b.shape.tolist()}")
        elif np.asarray(a.data).tobytes() != np.asarray(b.data).tobytes():
            wrong.append(f"{name}: other bytes")
    keys: list[str] = []
    for key in sorted(mine.fields.keys() | other.fields.keys()):
        if key.startswith(("GGUF.", "memdec_edge.")):
            continue
        a, b = (reader.fields[key].contents() if key in reader.fields else None for reader in (mine, other))
        if a != b and not (isinstance(a, float) and np.float32(a) == np.float32(b or 0)):
            (wrong if isinstance(a or b, list) and None not in (a, b) else keys).append(f"{key}: {a!r:.60} / {b!r:.60}")
    return wrong, keys


def main() -> None:
    """Convert, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    found, keys = {}, Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for checkpoint in arguments.checkpoints:
            made = {checkpoint.name: checkpoint}
            for family, changes in VARIANTS.items():
                target = folder / f"{family} with the tokenizer of {checkpoint.name}"
                made[target.name] = random_checkpoint(family, changes, checkpoint, target)
            for title, source in made.items():
                for outtype in TYPES if source == checkpoint else FEW:
                    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
                    options = ConvertOptions(source, ours, outtype, role="model", verify=False, overwrite=True)
                    convert(options)
                    if failure := reference(arguments.script.resolve(), source, theirs, outtype):
                        print(f"{title}, {outtype}: the script fails ({failure})", flush=True)
                        continue
                    wrong, other = differences(ours, theirs)
                    found[f"{title}, {outtype}"] = wrong
                    keys.update(other)
                    print(f"{title}, {outtype}: {'; '.join(wrong) or 'the same'}", flush=True)
    print("keys, ours / theirs:")
    for key, count in sorted(keys.items()):
        print(f"  {key}  ({count}x)")
    print(json.dumps({"files": len(found), "same": sum(not wrong for wrong in found.values())}))


if __name__ == "__main__":
    main()
