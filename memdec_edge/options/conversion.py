"""Options of making GGUF files: conversion, quantisation, indexing. Knows nothing of where values come from."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from memdec_edge.errors import OptionError
from memdec_edge.options.fields import INT_MAX, Checked, about, option

OUT_TYPES = ("f32", "f16", "bf16", "q8_0", "auto")  # what convert writes by itself
# llama-quantize's names; llama.cpp's quantiser makes them
QUANT_TYPES = (
    "q1_0", "q2_0", "q4_0", "q4_1", "mxfp4_moe", "q5_0", "q5_1", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq1_s",
    "iq1_m", "tq1_0", "tq2_0", "q2_k", "q2_k_s", "iq3_xxs", "iq3_s", "iq3_m", "q3_k", "iq3_xs", "q3_k_s", "q3_k_m",
    "q3_k_l", "iq4_nl", "iq4_xs", "q4_k", "q4_k_s", "q4_k_m", "q5_k", "q5_k_s", "q5_k_m", "q6_k", "q8_0", "f16",
    "bf16", "f32",
)  # fmt: skip
# ggml's names, of single tensors
TENSOR_TYPES = (
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl",
    "iq4_xs",
)  # fmt: skip
ROLES = ("memory", "model")
OVERWRITE = about("--overwrite", help="Replace a file that is there.")


@dataclass(frozen=True)
class QuantTypes(Checked):
    """What llama.cpp's quantiser makes of which tensors, and on what its loss is measured."""

    outtype: str = option(
        "q4_k_m", metavar="TYPE", choices=QUANT_TYPES, help="Type as llama-quantize names it: Q4_K_M, Q6_K, IQ4_NL, ..."
    )
    token_embedding: str = option(
        "", "--token-embedding-type", choices=("", *TENSOR_TYPES),
        help="Type of the embedding. Default: q8_0 where it is the head too, else as llama.cpp chooses.",
    )  # fmt: skip
    output_tensor: str = option(
        "", "--output-tensor-type", choices=("", *TENSOR_TYPES), help="Type of the head. Default: as llama.cpp chooses."
    )
    # None: a page of general English
    text: Path | None = option(
        None,
        "--text",
        metavar="PATH",
        help="Text to measure the loss of quantising on. Default: a page of general English.",
    )
    quality_tokens: int = option(
        4096,
        "--quality-tokens",
        low=0,
        high=INT_MAX,
        help="Tokens to measure that loss on; 0: none, it is not measured.",
    )

    @property
    def of_tensors(self) -> dict[str, str]:
        """What is asked for of single tensors, by field."""
        asked = {"token_embedding": self.token_embedding, "output_tensor": self.output_tensor}
        return {name: value for name, value in asked.items() if value}


@dataclass(frozen=True)
class QuantizeOptions(Checked):
    """GGUF -> smaller GGUF."""

    source: Path = field(metadata=about(metavar="SOURCE", help="GGUF in f32, f16 or bf16."))
    outfile: Path = field(metadata=about(metavar="OUTFILE", help="GGUF to write."))
    types: QuantTypes = QuantTypes()
    allow_requantize: bool = option(False, "--allow-requantize", help="Accept a source that is quantised already.")
    overwrite: bool = field(default=False, metadata=OVERWRITE)


@dataclass(frozen=True)
class ConvertOptions(Checked):
    """Checkpoint folder -> GGUF."""

    checkpoint: Path = field(
        metadata=about(metavar="DIR", help="Checkpoint folder in the layout of Hugging Face, or user/repo of its Hub.")
    )
    outfile: Path = field(metadata=about("--outfile", metavar="FILE", help="GGUF to write."))
    outtype: str = option(
        "q8_0", "--outtype", choices=dict.fromkeys(OUT_TYPES + QUANT_TYPES),
        help="Type of the weights: f32, f16, bf16, q8_0, auto, or a type of quantize.",
    )  # fmt: skip
    base: Path | None = option(None, "--base", metavar="FILE", help="GGUF whose tokenizer is copied byte for byte.")
    lora_base: Path | None = option(
        None, "--lora-base", metavar="DIR",
        help="Model that the LoRA in DIR was trained on, named as DIR is; the two are merged.",
    )  # fmt: skip
    role: str = option("memory", "--role", choices=ROLES, help="Role of the file: memory, or model for a plain base.")
    verify: bool | None = option(
        None, "--verify/--no-verify", help="Compare the file with PyTorch. Default: where PyTorch is installed."
    )
    overwrite: bool = field(default=False, metadata=OVERWRITE)
    types: QuantTypes = QuantTypes()  # where `outtype` is none of OUT_TYPES; its own outtype does not count

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in self.types.of_tensors.items() if self.quantized is None else ():
            raise OptionError(name, value, f"`outtype` {self.outtype} is written as it is; give a type of quantize")

    @property
    def quantized(self) -> QuantTypes | None:
        """What llama.cpp's quantiser is to do after the conversion; None: nothing."""
        return None if self.outtype in OUT_TYPES else replace(self.types, outtype=self.outtype)


@dataclass(frozen=True)
class IndexOptions(Checked):
    """Documents -> index GGUF."""

    documents: Path = field(
        metadata=about(metavar="DOCS", help="Text of any kind that train reads, a folder, a zip, or an index.")
    )
    base: Path = field(metadata=about(help="GGUF with the tokenizer; any size will do."))
    out: Path = field(metadata=about("--out", metavar="FILE", unicode=True, help="GGUF to write."))
    add: tuple[Path, ...] = option((), "--add", metavar="DOCS", help="More documents, as DOCS. Repeatable.")
    domain: str = option("", "--domain", metavar="TEXT", help="What the documents are about, for `show`.")
    license: str = option("", "--license", metavar="TEXT", help="Licence of the documents, such as CC-BY-4.0.")
    # files of which eval is to say that the index holds their text
    copies: tuple[Path, ...] = option((), help="Files that hold the text of documents once more.")
    # where the documents name no validation split
    held_out: float = option(
        0.05, low=0.0, high=0.5, help="Share of the documents that relative weights are measured on."
    )
    seed: int = option(0, low=0, high=INT_MAX, help="Seed that chooses those documents.")
    overwrite: bool = field(default=False, metadata=OVERWRITE)

    @property
    def sources(self) -> tuple[Path, ...]:
        """All that is indexed."""
        return (self.documents, *self.add)
