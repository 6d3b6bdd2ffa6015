"""A training step with the hybrid loss: time against a plain cross-entropy step, peak memory against a dense target.

    python benchmarks/train_step.py [--repeat 7] [--whole]

Time: forward, backward, clipping and AdamW as train/loop.py does them (bfloat16 weights where the CPU multiplies them,
float32 master weights) on 4 x 256 tokens of random weights and text, p_kNN with 30 to 60 tokens at a position, beta
0.5. The plain step is the loss that transformers gives for the labels, over whole logits, on the same model; the two
take turns. On a machine with other work only CPU seconds, taken under OMP_NUM_THREADS=1, say something. `--whole` adds
all 24 layers of Qwen2.5-0.5B (10 GB).

Memory: forward and backward of the same head on 8 x 512 tokens, or as many as the dense side leaves room for here. The
dense side makes float32 logits, their log-softmax and a target of tokens x vocabulary, and gives them to kl_div. Each
side has a process of its own; "above" is the largest resident size less the size just before, with the model loaded.

The last line is one JSON object. Knows nothing of caches and corpora.
"""

import argparse
import gc
import json
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
import transformers
from torch import Tensor

from memdec_edge.train.loss import Objective
from memdec_edge.train.models import cast_parameters, work_dtype
from memdec_edge.train.targets import Support

BETA, PAIRS = 0.5, (30, 60)
SMOLLM2 = transformers.LlamaConfig(
    vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, tie_word_embeddings=True,
)  # fmt: skip
HEAD_LAYERS = 4  # of the 0.5B where head and loss are looked at


def qwen(layers: int) -> Any:
    """Qwen2.5-0.5B with fewer layers: its head is a matrix of 151,936 x 896."""
    return transformers.Qwen2Config(
        vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=layers, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip


def make_batch(n_vocab: int, batch: int, length: int) -> tuple[Tensor, Support]:
    """Token ids and p_kNN, most of it on few tokens."""
    generator, n = torch.Generator().manual_seed(0), batch * length
    counts = torch.randint(*PAIRS, (n,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    # A stride that is prime to the vocabulary gives different tokens, far from one another.
    starts = torch.randint(0, n_vocab, (n,), generator=generator)
    ids = [(start + 1009 * torch.arange(int(count))) % n_vocab for start, count in zip(starts, counts, strict=True)]
    probs = [torch.rand(int(count), generator=generator) ** 8 for count in counts]
    support = Support(offsets, torch.cat(ids), torch.cat([row / row.sum() for row in probs]))
    return torch.randint(0, n_vocab, (batch, length + 1), generator=generator), support


def plain(model: Any, ids: Tensor, support: Support) -> Tensor:
    """Cross-entropy as an ordinary training script has it."""
    labels = ids[:, 1:].contiguous()
    loss: Tensor = model(input_ids=ids[:, :-1], labels=labels, shift_labels=labels, use_cache=False).loss
    return loss


def hybrid(model: Any, ids: Tensor, support: Support) -> Tensor:
    """What train/loop.py minimises."""
    loss: Tensor = Objective(model)(ids, support, BETA)[0]
    return loss


def dense(model: Any, ids: Tensor, support: Support) -> Tensor:
    """The same loss with a target of tokens x vocabulary."""
    logprobs = model(input_ids=ids[:, :-1], use_cache=False).logits.flatten(0, 1).float().log_softmax(1)
    target = torch.zeros_like(logprobs)
    target[torch.repeat_interleave(torch.arange(len(target)), support.offsets.diff()), support.ids] = support.probs
    kl = torch.nn.functional.kl_div(logprobs, target, reduction="batchmean")
    return BETA * kl + (1 - BETA) * torch.nn.functional.nll_loss(logprobs, ids[:, 1:].flatten())


LOSSES = {"plain": plain, "hybrid": hybrid, "dense": dense}


class Step:
    """A model in its working type, float32 weights and AdamW."""

    def __init__(self, config: Any) -> None:
        torch.manual_seed(0)
        self.model = transformers.AutoModelForCausalLM.from_config(config).train()
        self.weights = {name: weight.detach() for name, weight in self.model.named_parameters()}
        cast_parameters(self.model, work_dtype("cpu"))
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=1e-4, fused=True)

    def take(self, loss: str, ids: Tensor, support: Support) -> tuple[float, float, float]:
        """Seconds of forward and backward, of the whole step, and of CPU in the whole step."""
        began, cpu = perf_counter(), process_time()
        torch.autograd.backward(LOSSES[loss](self.model, ids, support))
        middle = perf_counter()
        for name, parameter in self.model.named_parameters():
            self.weights[name].grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.weights[name])
        return middle - began, perf_counter() - began, process_time() - cpu


def time_steps(config: Any, batch: int, length: int, repeat: int) -> dict[str, Any]:
    """Medians in seconds over `repeat` steps of each loss, in turn, after one of each that is not counted."""
    step, (ids, support) = Step(config), make_batch(config.vocab_size, batch, length)
    found: dict[str, list[tuple[float, ...]]] = {"plain": [], "hybrid": []}
    for _ in range(repeat + 1):
        for loss, times in found.items():
            times.append(step.take(loss, ids, support))
    medians = {loss: [median(part) for part in zip(*times[1:], strict=True)] for loss, times in found.items()}
    parts = {
        name: {loss: round(medians[loss][i], 3) for loss in found}
        for i, name in enumerate(("forward_backward", "step", "cpu"))
    }
    return parts | {f"{name}_ratio": round(part["hybrid"] / part["plain"], 3) for name, part in parts.items()}


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak(loss: str, batch: int, length: int) -> dict[str, int]:
    """Largest resident size of this process over forward and backward, absolute and above the loaded model; bytes."""
    torch.manual_seed(0)
    config = qwen(HEAD_LAYERS)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=work_dtype("cpu")).train()
    ids, support = make_batch(config.vocab_size, batch, length)
    before = resident()
    torch.autograd.backward(LOSSES[loss](model, ids, support))
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak": largest, "above": largest - before}


def compare_memory(length: int) -> dict[str, Any]:
    """Peaks of both sides at the largest batch up to 8 for which the dense side surely fits."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    batch = 8
    while batch > 1 and 8 * batch * length * qwen(HEAD_LAYERS).vocab_size * 4 > available:
        batch //= 2
    found: dict[str, Any] = {"tokens": f"{batch} x {length}", "layers": HEAD_LAYERS}
    for loss in ("dense", "hybrid"):
        command = [sys.executable, __file__, "--peak", loss, str(batch), str(length)]
        found[loss] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for kind in ("peak", "above"):
        found[f"{kind}_ratio"] = round(found["dense"][kind] / found["hybrid"][kind], 2)
    return found


def main() -> None:
    """Times of each model, then peaks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--whole", action="store_true", help="all layers of Qwen2.5-0.5B too")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)  # what the script calls itself with
    args = parser.parse_args()
    if args.peak:
        print(json.dumps(peak(args.peak[0], int(args.peak[1]), int(args.peak[2]))))
        return
    memory = compare_memory(512)
    models = {"SmolLM2-135M": SMOLLM2, f"Qwen2.5-0.5B, {HEAD_LAYERS} layers": qwen(HEAD_LAYERS)}
    if args.whole:
        models["Qwen2.5-0.5B"] = qwen(24)
    times = {}
    print(f"{'4 x 256 tokens, seconds':<28}{'plain':>8}{'hybrid':>8}{'ratio':>8}{'ratio of CPU seconds':>23}")
    for name, config in models.items():
        times[name] = found = time_steps(config, 4, 256, args.repeat)
        seconds = "".join(f"{value:>8.2f}" for value in found["step"].values())
        print(f"{name:<28}{seconds}{found['step_ratio']:>8.3f}{found['cpu_ratio']:>23.3f}", flush=True)
        gc.collect()
    print(f"{memory['tokens']} tokens, {HEAD_LAYERS} layers, GB: {'peak':>8}{'above the model':>18}")
    for loss in ("dense", "hybrid"):
        print(f"{loss:<28}{memory[loss]['peak'] / 1e9:>8.2f}{memory[loss]['above'] / 1e9:>18.2f}")
    print(f"{'ratio':<28}{memory['peak_ratio']:>8.2f}{memory['above_ratio']:>18.2f}")
    print(json.dumps({"benchmark": "train_step", "dtype": str(work_dtype("cpu")), "times": times, "memory": memory}))


if __name__ == "__main__":
    main()
