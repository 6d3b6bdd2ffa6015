"""Is the text the same whatever is drafted?

    python benchmarks/exactness.py BASE.gguf MEMORY.gguf [--prompts 50] [--tokens 128] [--defaults]

For each of five chains every prompt is continued with draft 0, 1, 3, 8 and auto, several prompts side by
side, each with a seed that is the same for all drafts, with F32 KV cache and flash attention off, or with llama.cpp's
defaults where --defaults is given. The texts must be identical but where llama.cpp's own numbers decide: its logits
depend a little on how many rows a pass has. So each divergence is shown with the gap between the two tokens' noisy
scores, logit / temperature + Gumbel noise (for greedy the logits), in the mixture computed afresh at that place: below
2e-4 with F32 it is a tie within that noise. `edge` says that one of the two tokens stands outside what top-k, top-p and
min-p keep there, so that the tie is at their border.

Beside it the same noise without any memory: the base alone reads the first chain's plain texts one token at a time and
in rows of 4; how far are the logits apart, and how often do the sample of temperature 1 and the greedy one differ? The
last line is one JSON object. Half an hour for two F32 models of 135M on 2 cores.
"""

import argparse
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from memdec_edge.bench.systems import cut_prompts
from memdec_edge.documents import GENERAL, read_documents
from memdec_edge.engine import Engine
from memdec_edge.llama.context import Context, default_threads
from memdec_edge.llama.sampler import NOTHING
from memdec_edge.mixture.reference import gumbel, kept
from memdec_edge.mixture.rows import Chain, Row
from memdec_edge.mixture.sampling import sample, scratch
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, SamplingOptions
from memdec_edge.progress import progress

DRAFTS = {"0": 0, "1": 1, "3": 3, "8": 8, "auto": None}
NEAR_TIE = 2e-4
GRAMMAR = r"""root ::= (sentence " ")+
sentence ::= [A-Z] [a-z]* (" " [a-z]+ ","?)+ [.?!]"""
CHAINS: dict[str, dict[str, Any]] = {
    "temperature 1": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    "0.7, top-k 40, top-p 0.95, min-p 0.05": {"temperature": 0.7},
    "repeat penalty 1.1": {"repeat_penalty": 1.1},
    "grammar": {"grammar": GRAMMAR},
    "greedy": {"temperature": 0.0},
}


def continuations(
    engine: Engine, prompts: list[list[int]], chain: dict[str, Any], tokens: int, draft: int | None
) -> list[list[int]]:
    """Ids after each prompt, whose seed is its number; as many side by side as the engine has slots.

    With auto two at a time: with more of them there would be few rows left to draft.
    """
    generation, texts = GenerationOptions(tokens, ignore_eos=True, draft=draft), list[list[int]]()
    at_once = min(2, engine.options.n_seq) if draft is None else engine.options.n_seq
    for start in range(0, len(prompts), at_once):
        sessions = [
            engine.session(prompt, SamplingOptions(seed=seed, **chain), generation, limit=len(prompt) + tokens)
            for seed, prompt in enumerate(prompts[start : start + at_once], start)
        ]
        while running := [session for session in sessions if not session.finished]:
            engine.step(running)
        for session, prompt in zip(sessions, prompts[start:], strict=False):
            texts.append(session.tokens[len(prompt) :])
            session.close()
    return texts


def divergence(
    engine: Engine, prompt: list[int], sampling: SamplingOptions, plain: list[int], other: list[int]
) -> dict[str, Any]:
    """Where two continuations part, and how close the decision was."""
    at = next(i for i, (mine, theirs) in enumerate(zip(plain, other, strict=True)) if mine != theirs)
    with closing(engine.session(prompt + plain[:at], sampling, GenerationOptions(ignore_eos=True))) as session:
        row, suppressed = session.logits().copy(), session.suppressed
    recent = list(set(plain[:at][-sampling.repeat_last_n :]))
    row[recent] = np.where(
        row[recent] > 0, row[recent] / sampling.repeat_penalty, row[recent] * sampling.repeat_penalty
    )
    pair = np.array([plain[at], other[at]])
    scores = row[pair].astype(np.float64)
    if sampling.temperature:
        noise = gumbel(sampling.seed, len(prompt) + at, pair)
        scores = scores / sampling.temperature + noise
    chain = Chain(sampling.top_k, sampling.top_p, sampling.min_p, sampling.temperature)
    inside = np.isin(pair, kept(row, chain, suppressed)).all()
    return {"at": at, "tokens": pair.tolist(), "gap": float(abs(scores[0] - scores[1])), "edge": not inside}


def rows_after(context: Context, prompt: list[int], text: list[int], at_once: int) -> Row:
    """Logits after each token of `text`, float32 [tokens, n_vocab], decoded `at_once` tokens in a pass."""
    context.truncate(0)
    context.prefill(prompt)
    rows = []
    for start in range(0, len(text), at_once):
        part = text[start : start + at_once]
        context.decode([(0, part)])
        rows.append(context.rows(0, len(part)).copy())
    return np.concatenate(rows)


def shape_noise(context: Context, prompts: list[list[int]], texts: list[list[int]]) -> dict[str, Any]:
    """The base alone, one row a pass against four."""
    chain = Chain(0, 1.0, 0.0, 1.0)
    room = scratch(context.model.n_vocab)
    largest, positions, flips = 0.0, 0, {"greedy": 0, "temperature_1": 0}
    first: list[int] = []  # position of each text's first other sample at temperature 1
    for seed, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        one, four = (rows_after(context, prompt, text, at_once) for at_once in (1, 4))
        largest = max(largest, float(np.abs(one - four).max()))
        flips["greedy"] += int((one.argmax(1) != four.argmax(1)).sum())
        begin = len(prompt) + 1
        samples = [[sample(row, chain, seed, begin + i, NOTHING, room) for i, row in enumerate(rows)]
                 for rows in (one, four)]  # fmt: skip
        others = [i for i, (mine, theirs) in enumerate(zip(*samples, strict=True)) if mine != theirs]
        flips["temperature_1"] += len(others)
        first += others[:1]
        positions += len(text)
    return {
        "positions": positions,
        "max_logit_difference": largest,
        "other_samples": flips,
        "texts_that_would_diverge": len(first),
        "first_divergence": sorted(first),
    }


def main() -> None:
    """Every chain, then the base's own noise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("memory", type=Path)
    parser.add_argument("-f", "--file", type=Path, default=GENERAL)
    parser.add_argument("--lambda", dest="weight", type=float, default=0.6)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--parallel", type=int, default=8, help="texts side by side")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--defaults", action="store_true", help="llama.cpp's KV cache and flash attention")
    args = parser.parse_args()
    cells = args.parallel * (args.prompt_tokens + args.tokens + 16)
    load = LoadOptions(n_ctx=cells, n_seq=args.parallel, threads=args.threads)
    if not args.defaults:
        load = replace(load, flash_attn="off", cache_type_k="f32", cache_type_v="f32")
    result: dict[str, Any] = {
        "benchmark": "exactness", "base": args.base.name, "memory": args.memory.name, "defaults": args.defaults,
        "prompts": args.prompts, "tokens": args.tokens, "threads": args.threads, "chains": {},
    }  # fmt: skip
    plain_texts: list[list[int]] = []
    with closing(Engine(args.base, [MemoryOptions(args.memory, args.weight)], load)) as engine:
        prompts = cut_prompts(engine, read_documents(args.file), args.prompt_tokens, args.prompts)
        if not prompts:
            parser.error(f"{args.file} is shorter than a prompt")
        with progress("exactness", len(CHAINS) * len(DRAFTS), "sets of texts") as advance:
            for name, chain in CHAINS.items():
                identical, divergences = dict.fromkeys(DRAFTS, 0), list[dict[str, Any]]()
                plain: list[list[int]] = []
                for label, draft in DRAFTS.items():
                    texts = continuations(engine, prompts, chain, args.tokens, draft)
                    plain = plain or texts
                    advance(1)
                    for seed, prompt in enumerate(prompts):
                        identical[label] += texts[seed] == plain[seed]
                        if texts[seed] != plain[seed]:
                            sampling = SamplingOptions(seed=seed, **chain)
                            parted = divergence(engine, prompt, sampling, plain[seed], texts[seed])
                            divergences.append({"prompt": seed, "draft": label} | parted)
                plain_texts = plain_texts or plain
                near = sum(one["gap"] < NEAR_TIE or one["edge"] for one in divergences)
                result["chains"][name] = {"identical": identical, "near_ties": near, "divergences": divergences}
                counts = ", ".join(f"draft {label}: {count}" for label, count in identical.items() if label != "0")
                print(f"{name}: of {len(prompts)} texts as with draft 0  {counts}; "
                      f"{len(divergences)} diverge, {near} of them at a tie", flush=True)  # fmt: skip
                for one in divergences:
                    print(f"   prompt {one['prompt']} draft {one['draft']} at token {one['at']}: "
                          f"gap {one['gap']:.1e}{', edge' if one['edge'] else ''}")  # fmt: skip
        noise = shape_noise(engine.context, prompts, plain_texts)
    result["base_alone_rows_of_4"] = noise
    print(f"base alone, rows of 4 against 1: logits differ by {noise['max_logit_difference']:.1e} at most; of "
          f"{noise['positions']} samples {noise['other_samples']['greedy']} differ greedy and "
          f"{noise['other_samples']['temperature_1']} at temperature 1, in {noise['texts_that_would_diverge']} of "
          f"{len(prompts)} texts")  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
