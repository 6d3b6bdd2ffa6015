"""Hyper-parameters with which llama.cpp would end the process: refused before, by key, value and what is allowed.

llama.cpp takes most numbers of a file on trust: it asserts them (GGML_ASSERT ends the process), divides by them, or
gives them to kernels that assert. The rules are those of its load_hparams() for every architecture, and of its graphs
(src/models) for the architectures that memories have. What llama.cpp refuses by itself is left to it, as a shape that
does not fit the hyper-parameters. Knows nothing of tensors and of llama.cpp's API.
"""

import math
from dataclasses import dataclass

from memdec_edge.errors import ModelFileError
from memdec_edge.gguf.header import FLOAT32, STRING, Entry, Header, Scalar

UINT32, INT32, BOOL = 4, 5, 7  # enum gguf_type
NAMES = {UINT32: "a whole number (u32)", FLOAT32: "a number (f32)", BOOL: "true or false", STRING: "a string"}
MOST = 2**31 - 1  # llama.cpp keeps sizes in int32 here and there
MAX_BLOCKS, MAX_EXPERTS = 512, 1024  # LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")  # LLAMA_ROPE_SCALING_TYPES


@dataclass(frozen=True)
class Rule:
    """What llama.cpp takes under a key: the type, and the range of a number."""

    kind: int = UINT32  # enum gguf_type
    low: float = 0
    high: float = MOST
    per_block: bool = False  # an array with a number for each block may stand in the number's place

    @property
    def allowed(self) -> str:
        """In words."""
        text = NAMES[self.kind]
        if self.kind == UINT32:
            text += f" from {int(self.low)} to {int(self.high)}"
        elif self.kind == FLOAT32 and self.low == 0:
            text += " of at least 0"
        return text + (", or an array of one for each block" if self.per_block else "")


SIZE, SIZES = Rule(low=1), Rule(low=1, per_block=True)
NUMBER, EPSILON = Rule(FLOAT32, -math.inf, math.inf), Rule(FLOAT32, 0, 3.5e38)

ALWAYS = {  # of every architecture
    "block_count": Rule(low=1, high=MAX_BLOCKS),
    "context_length": SIZE,
    "expert_count": Rule(high=MAX_EXPERTS),
    "expert_used_count": Rule(per_block=True),
    "expert_group_count": Rule(),
    "expert_group_used_count": Rule(),
    "attention.layer_norm_epsilon": EPSILON,
    "attention.layer_norm_rms_epsilon": EPSILON,
}
COMMON = ALWAYS | {
    "embedding_length": SIZE,
    "feed_forward_length": SIZES,
    "attention.head_count": SIZES,
    "attention.head_count_kv": SIZES,
    "attention.key_length": SIZE,
    "attention.value_length": SIZE,
    "rope.dimension_count": SIZE,
    "rope.freq_base": NUMBER,
    "rope.scale_linear": NUMBER,
    "rope.scaling.type": Rule(STRING),
    "rope.scaling.factor": NUMBER,
    "rope.scaling.attn_factor": NUMBER,
    "rope.scaling.original_context_length": Rule(),
    "rope.scaling.finetuned": Rule(BOOL),
    "vocab_size": Rule(),
}
REQUIRED = ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count")


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp's graph of an architecture presumes."""

    keys: dict[str, Rule]  # those that llama.cpp reads beside COMMON
    whole_heads: bool = False  # heads x their length is the embedding's length
    rope: str = "whole"  # the part of a head's numbers that are rotated: whole, part or none


ARCHITECTURES = {
    "gpt2": Architecture({}, whole_heads=True, rope="none"),
    "llama": Architecture({}),
    "qwen2": Architecture({}, whole_heads=True),
    "qwen3": Architecture({}),
    "gptneox": Architecture({"use_parallel_residual": Rule(BOOL)}, whole_heads=True, rope="part"),
    "gemma3": Architecture(
        {
            "attention.sliding_window": Rule(high=2**24),
            "attention.sliding_window_pattern": Rule(per_block=True),
            "rope.freq_base_swa": NUMBER,
            "final_logit_softcapping": NUMBER,
        },
        rope="part",
    ),
}


def refuse_what_aborts(header: Header) -> bool:
    """Raise ModelFileError for hyper-parameters that llama.cpp would not survive.

    Returns whether the rules cover every key that it reads; where not, only a trial can tell.
    """
    name = str(header.scalars().get("general.architecture", ""))
    found = _Parameters(header, name)
    known = ARCHITECTURES.get(name)
    rules = ALWAYS if known is None else COMMON | known.keys
    for key, rule in rules.items():
        found.check(key, rule)
    if (scaling := found.one("rope.scaling.type", "linear")) not in ROPE_SCALINGS:
        raise found.refused("rope.scaling.type", scaling, f"one of {', '.join(ROPE_SCALINGS)}")
    _experts(found)
    if known is None:
        return False
    for key in REQUIRED:
        if found.entry(key) is None:
            raise ModelFileError(header.path, f"{name}.{key} is missing; it must be {rules[key].allowed}")
    _attention(found, known)
    if "attention.sliding_window" in rules:
        _sliding_window(found)
    own = {key.removeprefix(f"{name}.") for key in header.entries if key.startswith(f"{name}.")}
    return own <= rules.keys() and not found.one("expert_count", 0)


class _Parameters:
    """The keys of one architecture, by what follows its name."""

    def __init__(self, header: Header, name: str) -> None:
        self.header, self.name = header, name
        self._scalars = header.scalars()

    def entry(self, key: str) -> Entry | None:
        return self.header.entries.get(f"{self.name}.{key}")

    def one(self, key: str, default: Scalar) -> Scalar:
        """The value under a key; `default` where there is none, or an array."""
        return self._scalars.get(f"{self.name}.{key}", default)

    def number(self, key: str, default: int) -> int:
        """The number under a key, of an array the first; `default` where there is none."""
        found = self.header.numbers(f"{self.name}.{key}")
        return int(found[0]) if found else default

    def refused(self, key: str, value: object, allowed: str) -> ModelFileError:
        return ModelFileError(self.header.path, f"{self.name}.{key} is {value!r:.40}; it must be {allowed}")

    def check(self, key: str, rule: Rule) -> None:
        """Raise ModelFileError where the key is there and has another type, or a value out of range."""
        entry = self.entry(key)
        if entry is None:
            return
        if entry.count is None:
            if entry.kind != rule.kind:
                raise self.refused(key, self.one(key, ""), rule.allowed)
        elif not rule.per_block or entry.kind not in (UINT32, INT32, BOOL) or not entry.count:
            raise ModelFileError(self.header.path, f"{self.name}.{key} is an array; it must be {rule.allowed}")
        if rule.kind in (UINT32, FLOAT32):
            for value in self.header.numbers(f"{self.name}.{key}"):
                if not rule.low <= value <= rule.high:
                    raise self.refused(key, value, rule.allowed)


def _experts(found: _Parameters) -> None:
    """A mixture of experts must use some of them, and some of its groups of experts."""
    n_experts = found.number("expert_count", 0)
    if found.name.startswith("hunyuan") and n_experts <= 1:
        return  # llama.cpp then takes no notice of the keys
    used = max(found.header.numbers(f"{found.name}.expert_used_count"), default=0)
    least, count = min(n_experts, 1), f"{found.name}.expert_count, which is {n_experts}"
    if not least <= used <= n_experts:
        raise found.refused("expert_used_count", used, f"from {least} to {count}")
    groups, used_groups = found.number("expert_group_count", 0), found.number("expert_group_used_count", 0)
    if groups and not groups < n_experts:
        raise found.refused("expert_group_count", groups, f"less than {count}")
    if groups > 1 and n_experts % groups:
        raise found.refused("expert_group_count", groups, f"a divisor of {count}")
    if groups > 1 and not 0 < used_groups < groups:
        raise found.refused("expert_group_used_count", used_groups, f"from 1 to {groups - 1}")


def _attention(found: _Parameters, known: Architecture) -> None:
    """All blocks must have as many heads, all heads one length, and equally many heads must share a head of keys."""
    for key in ("attention.head_count", "attention.head_count_kv"):
        counts = found.header.numbers(f"{found.name}.{key}")
        if len(set(counts)) > 1:
            raise found.refused(key, counts, f"the same in every block of {found.name}")
    width, heads = found.number("embedding_length", 0), found.number("attention.head_count", 1)
    shared = found.number("attention.head_count_kv", heads)
    if heads % shared:
        raise found.refused("attention.head_count_kv", shared, f"a divisor of attention.head_count, which is {heads}")
    length = found.number("attention.key_length", width // heads)
    values = found.number("attention.value_length", width // heads)
    if not length:
        raise found.refused("attention.head_count", heads, f"at most embedding_length, which is {width}")
    if values != length:
        raise found.refused("attention.value_length", values, f"the length of keys, which is {length}")
    if known.whole_heads and heads * length != width:
        raise found.refused(
            "attention.head_count", heads, f"embedding_length / length of keys, which is {width} / {length}"
        )
    if known.rope != "none":
        rotated = found.number("rope.dimension_count", length)
        if rotated % 2 or rotated > length or (known.rope == "whole" and rotated != length):
            limit = f"{length}, the length of keys" + (", or less" if known.rope == "part" else "")
            raise found.refused("rope.dimension_count", rotated, f"even, and {limit}")


def _sliding_window(found: _Parameters) -> None:
    """At least one block must use the window: a period of n leaves out every n-th, an array says it of each."""
    key = "attention.sliding_window_pattern"
    entry = found.entry(key)
    if entry is None or not found.number("attention.sliding_window", 0):
        return
    pattern = found.header.numbers(f"{found.name}.{key}")
    used = pattern != [1] if entry.count is None else any(pattern[: found.number("block_count", 0)])
    if not used:
        raise found.refused(key, pattern, "such that one block at least uses the window")
