"""Talk about licences in the terminal: answers stream, and an index names the documents that they repeat.

    pip install 'memdec-edge[demo]' && memdec-edge demo --domain licences
    python examples/legal_assistant.py
    python examples/legal_assistant.py base.gguf memdec-licences.gguf memdec-contracts-index.gguf

Without arguments it takes the demo's files. A line of stdin is a question, from a pipe too.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from textwrap import shorten
from typing import Any

from memdec_edge import (
    Cancelled,
    ContextError,
    GenerationOptions,
    LanguageModel,
    LoadOptions,
    MemdecError,
    SamplingOptions,
    open_model,
)
from memdec_edge.api.results import Completion
from memdec_edge.workflow.demo import demo_base, demo_memory

LIMITS = """This is a program and no lawyer. It may invent licences, clauses and cases, in the tone of real ones.
Nothing that it says is legal advice: read the licence itself, and ask a lawyer before you rely on an answer."""
SYSTEM = {
    "role": "system",
    "content": "You explain software licences in plain words. You say so when you do not know. You are no lawyer.",
}
ROOM = GenerationOptions(n_predict=300)  # tokens of an answer
SOBER = SamplingOptions(temperature=0.3, repeat_penalty=1.1)


def questions() -> Iterator[str]:
    """The lines of stdin that are not empty; a terminal shows where to type."""
    sys.stdin.reconfigure(errors="replace")
    while True:
        if sys.stdin.isatty():
            print("\n> ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            return
        if line.strip():
            yield line.strip()


def answer(model: LanguageModel, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Print the answer to the last message while it comes, then what it repeats; return it as a message."""
    chunks = []
    for chunk in model.stream_chat(messages, sampling=SOBER, generation=ROOM):
        print(chunk.text, end="", flush=True)
        chunks.append(chunk)
    print()
    done = Completion.of(chunks)
    for number, source in enumerate(done.sources, 1):
        print(f"[{number}] stands in {source.document}: {shorten(model.quote(source), 200)}", file=sys.stderr)
    if model.indexes and not done.sources:
        print("No indexed document says this in these words.", file=sys.stderr)
    return done.message


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=LIMITS)
    parser.add_argument("base", nargs="?", help="GGUF of the base model; default: the demo's")
    parser.add_argument("memories", nargs="*", help="GGUF files of memories and indexes; default: the demo's memory")
    args = parser.parse_args()
    base, memories = args.base or demo_base(), args.memories or [demo_memory("licences")]
    with open_model(base, memories, LoadOptions(n_ctx=2048)) as model:
        model.template()  # a base without one ends here, not at the first question
        print(LIMITS, file=sys.stderr)
        past: list[dict[str, Any]] = []
        for question in questions():
            asked = {"role": "user", "content": question}
            while True:
                try:
                    past += [asked, answer(model, [SYSTEM, *past, asked])]
                    break
                except ContextError:
                    if not past:
                        raise
                    del past[:2]  # the oldest question and its answer
                    print("The chat is too long: its oldest question is forgotten.", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, Cancelled):
        sys.exit(130)
    except BrokenPipeError:  # the reader of stdout went away: leave Python nothing to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except MemdecError as error:
        sys.exit(f"Error: {error}")
