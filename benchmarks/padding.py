"""Would dummy rows make a pass cheaper where llama.cpp has kernels for four rows?

    python benchmarks/padding.py MODEL.gguf [--rows 8] [--repeats 9] [--threads 2]

Where llama.cpp repacks weights (Q4_0, IQ4_NL) it reads them once for four rows, and once for each row beyond a multiple
of four. Each line is a pass of N rows, one of each of N streams, with logits on all: as it is, and with dummy rows of
one more stream up to the next multiple of four, without and with logits on them. The three take turns. Figures are the
least of the repeats: milliseconds by the clock, and in brackets of all CPUs, which count on a busy machine with one
thread. The last line is one JSON object; "three streams" is what padding would gain there, by the clock.
"""

import argparse
import json
from contextlib import closing
from pathlib import Path
from time import perf_counter, process_time

from provenance import made_by

from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.options import LoadOptions

FOUR, HELD = 4, 8  # rows of a kernel; tokens that each stream holds
WAYS = ("as it is", "dummies", "dummies with logits")
Taken = tuple[float, float]  # milliseconds of the clock, of all CPUs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    load = LoadOptions(threads=args.threads)
    counts = range(1, args.rows + 1)
    found: dict[tuple[int, str], list[Taken]] = {
        (count, way): [] for count in counts for way in WAYS[: 3 if count % FOUR else 1]
    }
    with closing(Model(args.model)) as model, closing(Context(model, load, 1024, n_seq=args.rows + 1)) as context:
        token = model.tokenize("x", add_special=False)[0]
        for slot in range(args.rows):
            context.prefill([token] * HELD, slot)
        for repeat in range(args.repeats + 1):
            for (count, way), taken in found.items():
                each = pass_of(context, token, count, way)
                if repeat:  # the first warms up
                    taken.append(each)
    print(made_by(), end="")
    table = {
        count: {
            way: [min(each) for each in zip(*found[count, way], strict=True)] for way in WAYS if (count, way) in found
        }
        for count in counts
    }
    for count, ways in table.items():
        print(f"{count:3} rows" + "".join(f"  {way} {clock:8.2f} ({cpu:8.2f})" for way, (clock, cpu) in ways.items()))
    three = {way: table[3]["as it is"][0] / clock for way, (clock, _) in table[3].items()}
    print(json.dumps({"benchmark": "padding", "threads": args.threads, "ms": table, "three streams": three}))


def pass_of(context: Context, token: int, count: int, way: str) -> Taken:
    """The time of one pass; the streams then hold what they held."""
    dummies = 0 if way == "as it is" else -count % FOUR
    parts = [(slot, [token]) for slot in range(count)]
    wanted = [1] * count
    if dummies:
        parts.append((len(context.tokens) - 1, [token] * dummies))
        wanted.append(dummies if way == "dummies with logits" else 0)
    begin, cpu_begin = perf_counter(), process_time()
    context.decode(parts, wanted)
    context.wait()
    taken = 1e3 * (perf_counter() - begin), 1e3 * (process_time() - cpu_begin)
    for slot, _ in parts:
        context.truncate(HELD if slot < count else 0, slot)
    return taken


if __name__ == "__main__":
    main()
