"""The second turn of a long chat: tokens that are read, and time to the first new one, against llama-cpp-python.

    python benchmarks/chat_turns.py [--memory MEMORY.gguf] [--base BASE.gguf] [--tokens 1900] [--runs 5]

A system text of about --tokens tokens (general English that the package carries), a question, an answer of 32 tokens,
then a second question. Both sides take the base's own chat template and decode greedily with the same threads. Each run
opens nothing anew: a chat with another first word is read first, so neither side has its beginning cached. With
--memory our side mixes a memory too, which llama-cpp-python cannot. The sides take turns; figures are medians.

The last line is one JSON object.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import llama_cpp

from memdec_edge.api import LanguageModel, open_model
from memdec_edge.documents import GENERAL
from memdec_edge.engine import Engine
from memdec_edge.options import GenerationOptions, LoadOptions, SamplingOptions
from memdec_edge.workflow.demo import demo_base

N_CTX, ANSWER = 2560, 32
GREEDY = SamplingOptions(temperature=0)
Messages = list[dict[str, Any]]
Ask = Callable[[Messages], tuple[float, int, dict[str, Any]]]  # seconds to the first token, tokens read, the answer


class Stock:
    """llama-cpp-python's chat, and how many tokens it decodes."""

    def __init__(self, base: Path, threads: int) -> None:
        self.model = llama_cpp.Llama(
            str(base), n_ctx=N_CTX, n_threads=threads, n_threads_batch=threads, flash_attn=True, verbose=False
        )
        self.read = 0
        evaluate = self.model.eval

        def counted(tokens: Any) -> None:
            self.read += len(tokens)
            evaluate(tokens)

        self.model.eval = counted

    def ask(self, messages: Messages) -> tuple[float, int, dict[str, Any]]:
        before, begin, first, text = self.read, perf_counter(), 0.0, ""
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        stream: Iterator[Any] = self.model.create_chat_completion(
            plain, temperature=0.0, max_tokens=ANSWER, stream=True, repeat_penalty=1.0
        )
        read = 0
        for part in stream:
            piece = part["choices"][0]["delta"].get("content")
            if piece and not first:
                first, read = perf_counter() - begin, self.read - before
            text += piece or ""
        return first, read, {"role": "assistant", "content": text}


def ours(model: LanguageModel) -> Ask:
    def ask(messages: Messages) -> tuple[float, int, dict[str, Any]]:
        contexts = [model.engine.context]
        before, begin, first, read, chunks = contexts[0].n_decoded, perf_counter(), 0.0, 0, []
        for chunk in model.stream_chat(messages, sampling=GREEDY, generation=GenerationOptions(ANSWER, draft=0)):
            if not first:
                first, read = perf_counter() - begin, contexts[0].n_decoded - before
            chunks.append(chunk)
        tokens = [chunk.token for chunk in chunks if chunk.token is not None]
        return first, read, {"role": "assistant", "content": "".join(chunk.text for chunk in chunks), "tokens": tokens}

    return ask


def system_text(engine: Engine, count: int) -> str:
    """General English of about `count` tokens."""
    base = engine.base
    tokens = base.tokenize(GENERAL.read_text(encoding="utf-8"), add_special=False)
    tokens = (tokens * (count // len(tokens) + 1))[:count]
    return b"".join(map(base.piece, tokens)).decode("utf-8", "ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=demo_base())
    parser.add_argument("--memory", type=Path)
    parser.add_argument("--tokens", type=int, default=1900)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    options = LoadOptions(n_ctx=N_CTX, threads=given.threads, flash_attn="on")
    stock = Stock(given.base, given.threads)
    with open_model(given.base, [], options) as alone:
        sides: dict[str, Ask] = {"llama-cpp-python": stock.ask, "memdec-edge": ours(alone)}
        if given.memory:
            sides["memdec-edge with a memory"] = ours(open_model(given.base, [given.memory], options))
        text = system_text(alone.engine, given.tokens)
        figures: dict[str, list[tuple[float, int, float, int]]] = {name: [] for name in sides}
        for run in range(given.runs):
            for name, ask in sides.items():
                messages: Messages = [
                    {"role": "system", "content": f"{run} {text}"},
                    {"role": "user", "content": "What is this text about?"},
                ]
                first_seconds, first_read, answer = ask(messages)
                messages += [answer, {"role": "user", "content": "Say it in one sentence."}]
                second_seconds, second_read, _ = ask(messages)
                figures[name].append((first_seconds, first_read, second_seconds, second_read))
    summary = {}
    for name, rows in figures.items():
        values = [median(column) for column in zip(*rows, strict=True)]
        summary[name] = dict(zip(("first_s", "first_read", "second_s", "second_read"), values, strict=True))
        print(
            f"{name:<26} first turn {values[1]:5.0f} tokens, {values[0]:6.2f} s; "
            f"second {values[3]:5.0f} tokens, {values[2]:6.3f} s"
        )
    print(json.dumps({"benchmark": "chat_turns", "threads": given.threads, "runs": given.runs, **summary}))


if __name__ == "__main__":
    main()
