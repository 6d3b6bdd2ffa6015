"""Does a fitted gate weigh a memory better than weights that learn from the text without any fitting?

    python benchmarks/gate.py BASE.gguf MEMORY.gguf --fit NAME=PATH [...] --test NAME=PATH [...] --out FILE.csv
                              [--tokens 3072] [--threads 0]

Texts to fit and to test are columns of --tokens scored tokens, windows of 512. PATH:0 and PATH:1 are its even and its
odd documents. Ways, each with the perplexity of every test text:

- the best fixed weight of the texts to fit, and of each test text, which reads the answer;
- the online weight, fitted to nothing;
- a logistic gate on what both rows look like: maxima, entropies, what each model gives to the other's likeliest token,
  whether these agree. Fitted by EM with soft labels: the likelihood of a gated mixture is not concave;
- the same with three decayed sums of the past differences of the models' log-probs;
- a router of the official form (MemSFT, LMDeploy) without its hidden states: two layers on maxima and entropies. A
  signed term of its loss pushes it to the better model of each token, and under a threshold a token is the base's. Term
  and threshold are those that do best on the texts to fit.

FILE.npz keeps log-probs and features: run again, no model runs. The last line is one JSON object.
"""

import argparse
import csv
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from provenance import made_by

from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine
from memdec_edge.evaluation.perplexity import join_documents, mix
from memdec_edge.evaluation.windows import slide, thin
from memdec_edge.llama.context import Context
from memdec_edge.mixture.mixing import row_stats
from memdec_edge.mixture.online import learn
from memdec_edge.mixture.weights import Mixture, SoftBayes
from memdec_edge.options import LAMBDAS, LoadOptions, MemoryOptions

Wide = npt.NDArray[np.float64]
Gate = Callable[[Wide], Wide]  # from a text's table to the memory's weight at each token, or to features
WINDOW, STRIDE = 512, 384
DECAYS = (0.9, 0.98, 0.995)
TERMS, THRESHOLDS = (0.0, 0.1, 0.3, 1.0), (0.0, 0.05, 0.1, 0.2)
# Columns of a text's table: log-probs of the token, then of each row the greatest log-prob and the entropy, then what
# the memory gives to the base's likeliest token, the converse, and whether the likeliest tokens are the same.
N_COLUMNS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("memory", type=Path)
    parser.add_argument("--fit", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--test", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=3072)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    fit, test = ({f"{kind} {text}" for text in texts} for kind, texts in (("fit", args.fit), ("test", args.test)))
    tables = read(args, sorted(fit) + sorted(test))
    fitted = [tables[name] for name in sorted(fit)]
    gates = {
        "best fixed weight of the texts to fit": fixed_gate(fitted),
        "logistic gate: rows": logistic_gate(fitted, look),
        "logistic gate: rows and past": logistic_gate(fitted, look_and_past),
        "logistic gate: past": logistic_gate(fitted, past),
        "router's form: maxima and entropies": router(fitted),
    }
    table: dict[str, dict[str, float]] = {}
    for name in sorted(test):
        found, column = tables[name], name.removeprefix("test ").split("=")[0]
        ways = {"base": found[:, 0], "memory alone": found[:, 1]}
        ways["best fixed weight of the text"] = gated(found, fixed_gate([found])(found))
        ways["online"] = learn(Mixture((0.5,), (1.0,)), SoftBayes((0.5,)), found[:, :2].T).log_probs
        ways |= {way: gated(found, gate(found)) for way, gate in gates.items()}
        for way, log_probs in ways.items():
            table.setdefault(way, {})[column] = float(np.exp(-log_probs.mean()))
    with args.out.open("w", newline="", encoding="utf-8") as file:
        file.write(made_by())
        writer = csv.writer(file)
        writer.writerow(["", *table["base"]])
        writer.writerows([way, *(f"{value:.4f}" for value in values.values())] for way, values in table.items())
    print(args.out.read_text(encoding="utf-8"))
    gain = {
        way: {name: round(1 - values[name] / table["online"][name], 4) for name in values}
        for way, values in table.items()
    }
    print(json.dumps({"benchmark": "gate", "rows": table, "gain_over_online": gain}))


# --- log-probs and features -----------------------------------------------------------------------------------------


def read(args: argparse.Namespace, names: list[str]) -> dict[str, Wide]:
    """The table of each text, [tokens, N_COLUMNS], from one pass of both models or from an earlier run."""
    kept = args.out.with_suffix(".npz")
    stored = dict(np.load(kept)) if kept.exists() else {}
    missing = [name for name in names if name not in stored]
    if missing:
        load = LoadOptions(n_ctx=WINDOW, threads=args.threads)
        with closing(Engine(args.base, [MemoryOptions(args.memory)], load)) as engine:
            for name in missing:
                stored[name] = features(engine, documents(name.split("=", 1)[1]), args.tokens)
                np.savez(kept, **stored)
    return {name: stored[name] for name in names}


def documents(path: str) -> list[str]:
    """All documents of a path, or every other one."""
    path, _, part = path.partition(":")
    return read_documents(Path(path))[int(part) :: 2] if part else read_documents(Path(path))


def features(engine: Engine, texts: list[str], n_tokens: int) -> Wide:
    """What both models say of each scored token and how their rows look, [tokens, N_COLUMNS]."""
    tokens = join_documents(engine, texts)
    found = []
    for window in thin(slide(len(tokens), WINDOW, STRIDE), n_tokens):
        both: list[list[Wide]] = []
        for context in (engine.context, engine.memories[0].context):
            both.append(rows(context, tokens[window.start : window.end], window.scored - window.start))
        for target, base, memory in zip(tokens[window.scored : window.end], *both, strict=True):
            likeliest = int(base.argmax()), int(memory.argmax())
            found.append(
                [
                    base[target], memory[target], base.max(), memory.max(), entropy(base), entropy(memory),
                    memory[likeliest[0]], base[likeliest[1]], float(likeliest[0] == likeliest[1]),
                ]
            )  # fmt: skip
    return np.array(found, np.float64)


def rows(context: Context, tokens: list[int], scored: int) -> list[Wide]:
    """The log-probs after tokens[scored - 1:-1], each [n_vocab]."""
    context.truncate(0)
    if scored > 1:
        context.feed(tokens[: scored - 1])
    return [
        row.astype(np.float64) - row_stats(row, len(row), 1.0).logsumexp
        for row in context.feed_rows(tokens[scored - 1 : -1])
    ]


def entropy(log_probs: Wide) -> float:
    return float(-(np.exp(log_probs) @ np.maximum(log_probs, -1e4)))


def look(table: Wide) -> Wide:
    """What the rows look like, [tokens, 7]; log-probs are cut, since one of -20 says no more than one of -10."""
    found: Wide = np.maximum(table[:, 2:], -10.0)
    return found


def past(table: Wide) -> Wide:
    """Decayed sums of the memory's log-prob minus the base's over the tokens before, [tokens, decays]."""
    gaps, sums = np.clip(table[:, 1] - table[:, 0], -5, 5), np.zeros((len(table), len(DECAYS)))
    for at in range(1, len(table)):
        sums[at] = np.array(DECAYS) * sums[at - 1] + gaps[at - 1]
    scaled: Wide = sums * (1 - np.array(DECAYS))
    return scaled


def look_and_past(table: Wide) -> Wide:
    return np.hstack([look(table), past(table)])


# --- gates ----------------------------------------------------------------------------------------------------------


def gated(table: Wide, weights: Wide) -> Wide:
    """Log-probs of the mixture with a weight of its own for each token."""
    weights = np.clip(weights, 1e-6, 1 - 1e-6)
    return np.logaddexp(table[:, 0] + np.log1p(-weights), table[:, 1] + np.log(weights))


def fixed_gate(tables: list[Wide]) -> Gate:
    whole = np.vstack(tables)
    best = max(LAMBDAS, key=lambda value: float(mix([whole[:, 0], whole[:, 1]], [1 - value, value]).mean()))
    return lambda table: np.full(len(table), best, np.float64)


def logistic_gate(tables: list[Wide], features_of: Gate) -> Gate:
    """EM: the posterior that the memory gave the token is a soft label; one Newton step of a logistic fit follows."""
    whole, raw = np.vstack(tables), np.vstack([features_of(table) for table in tables])
    mean, scale = raw.mean(0), raw.std(0) + 1e-9
    inputs = np.hstack([np.ones((len(raw), 1)), (raw - mean) / scale])
    numbers = np.zeros(inputs.shape[1])
    for _ in range(300):
        weights = 1 / (1 + np.exp(-inputs @ numbers))
        labels = np.exp(np.log(np.clip(weights, 1e-12, 1)) + whole[:, 1] - gated(whole, weights))
        curvature = (inputs * (weights * (1 - weights))[:, None]).T @ inputs + 1e-3 * np.eye(len(numbers))
        numbers += np.linalg.solve(curvature, inputs.T @ (labels - weights) - 1e-3 * numbers)

    def gate(table: Wide) -> Wide:
        columns = np.hstack([np.ones((len(table), 1)), (features_of(table) - mean) / scale])
        return np.asarray(1 / (1 + np.exp(-columns @ numbers)), np.float64)

    return gate


def router(tables: list[Wide]) -> Gate:
    """Two layers on maxima and entropies; see the module's first lines."""
    whole = np.vstack(tables)
    inputs = np.maximum(whole[:, 2:6], -10.0)
    mean, scale = inputs.mean(0), inputs.std(0) + 1e-9
    base, memory = torch.tensor(whole[:, 0]), torch.tensor(whole[:, 1])
    found = []
    for term in TERMS:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)).double()
        optimiser = torch.optim.Adam(net.parameters(), 1e-2, weight_decay=1e-4)
        given = torch.tensor((inputs - mean) / scale)
        for _ in range(400):
            logits = net(given)[:, 0]
            loss = -torch.logaddexp(
                base + torch.nn.functional.logsigmoid(-logits), memory + torch.nn.functional.logsigmoid(logits)
            ).mean()
            loss = loss - term * (torch.sign(memory - base) * (2 * torch.sigmoid(logits) - 1)).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()

        def weigh(table: Wide, net: torch.nn.Module = net) -> Wide:
            with torch.no_grad():
                columns = torch.tensor((np.maximum(table[:, 2:6], -10.0) - mean) / scale)
                return np.asarray(torch.sigmoid(net(columns)[:, 0]).numpy())

        found += [(float(gated(whole, cut(weigh(whole), low)).mean()), low, weigh) for low in THRESHOLDS]
    _, low, weigh = max(found, key=lambda one: one[0])
    return lambda table: cut(weigh(table), low)


def cut(weights: Wide, low: float) -> Wide:
    return np.where(weights < low, 0.0, weights)


if __name__ == "__main__":
    main()
