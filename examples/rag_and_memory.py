"""Documents of the day in the prompt, settled knowledge in the memory: BM25 finds passages, base and memory answer.

    pip install memdec-edge bm25s
    python examples/rag_and_memory.py base.gguf memdec-medicine.gguf notes "What did the blood test show?"

A passage that changes every day belongs into the prompt, where it can be named as a source and replaced. What a domain
has said for years belongs into the memory, which costs no prompt. Here both act on one answer.
"""

import argparse
import sys
from pathlib import Path

import bm25s

from memdec_edge import MemdecError, MemoryLlama
from memdec_edge.documents import read_documents

N_CTX, N_ANSWER = 2048, 200  # tokens


def find(passages: list[str], question: str, count: int) -> list[str]:
    """The passages that share the rarest words with the question, best first; those that share none are left out."""
    index = bm25s.BM25()
    index.index(bm25s.tokenize(passages, stopwords="en", show_progress=False), show_progress=False)
    words = bm25s.tokenize(question, stopwords="en", show_progress=False, return_ids=False)
    numbers, scores = index.retrieve(words, k=min(count, len(passages)), show_progress=False)
    return [passages[number] for number, score in zip(numbers[0], scores[0], strict=True) if score > 0]


def fit(llama: MemoryLlama, passages: list[str], room: int) -> list[str]:
    """As many of the first passages as have `room` tokens together."""
    fitting = []
    for passage in passages:
        room -= len(llama.tokenize(passage.encode(), add_bos=False)) + 8  # its number and the line's end
        if room < 0:
            break
        fitting.append(passage)
    return fitting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="GGUF of the base model")
    parser.add_argument("memory", help="GGUF of the memory")
    parser.add_argument("documents", type=Path, help="text file, .jsonl file or folder of them")
    parser.add_argument("question")
    parser.add_argument("--passages", type=int, default=3, help="at most so many go into the prompt")
    args = parser.parse_args()
    texts = read_documents(args.documents)
    passages = [part.strip() for text in texts for part in text.split("\n\n") if part.strip()]
    llama = MemoryLlama(args.base, memories=[args.memory], n_ctx=N_CTX, verbose=False)
    room = llama.n_ctx() - N_ANSWER - len(llama.tokenize(args.question.encode())) - 128  # instruction and template
    chosen = fit(llama, find(passages, args.question, args.passages), room)
    for number, passage in enumerate(chosen, 1):
        print(f"[{number}] {' '.join(passage.split())[:100]}", file=sys.stderr)
    sources = "\n".join(f"[{number}] {passage}" for number, passage in enumerate(chosen, 1)) or "(none found)"
    prompt = f"Answer the question. These notes may help:\n{sources}\n\nQuestion: {args.question}"
    chunks = llama.create_chat_completion(
        [{"role": "user", "content": prompt}], max_tokens=N_ANSWER, temperature=0.0, repeat_penalty=1.1, stream=True
    )
    for chunk in chunks:
        print(chunk["choices"][0]["delta"].get("content", ""), end="", flush=True)
    print()
    for path, weight in llama.weights.items():  # they followed the prompt, then the answer
        print(f"{path} weighs {weight:.2f} at the end.", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except MemdecError as error:
        sys.exit(f"Error: {error}")
