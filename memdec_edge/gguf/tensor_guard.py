"""Tensors of types that their use does not allow: llama.cpp loads them, and ends the process when it decodes.

llama.cpp itself checks names, shapes, block sizes, offsets and the file's size, and refuses what does not fit. Which
kernels exist for a type it asks only once a kernel is called. Knows nothing of hyper-parameters and values.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from memdec_edge.errors import ModelFileError
from memdec_edge.gguf.header import TensorInfo

FLOAT32 = 0  # enum ggml_type
MATRIX_TYPES = {  # with kernels for looking up rows and for products: ggml-cpu's type_traits_cpu and get_rows
    0: "F32", 1: "F16", 30: "BF16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
}  # fmt: skip
NEWER = 39  # MXFP4 and all after it: types that only some versions of llama.cpp have
MATRICES = re.compile(
    r"(token_embd|position_embd|output|blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down)))\.weight"
)
VECTORS = re.compile(
    r"(output_norm|blk\.\d+\.(attn|attn_q|attn_k|post_attention|ffn|post_ffw)_norm)\.(weight|bias)|rope_freqs\.weight|"
    r"(output|blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down)))\.bias"
)


def refuse_what_aborts(path: Path, tensors: Iterable[TensorInfo]) -> bool:
    """Raise ModelFileError for tensors that llama.cpp would not survive.

    Returns whether all are of the kinds that memories have; of others only a trial can tell.
    """
    covered = True
    for tensor in tensors:
        if MATRICES.fullmatch(tensor.name):
            if tensor.kind not in MATRIX_TYPES and tensor.kind < NEWER:
                raise ModelFileError(
                    path,
                    f"{tensor.name} has the type {tensor.kind}; a matrix must be {', '.join(MATRIX_TYPES.values())}",
                )
            covered &= tensor.kind in MATRIX_TYPES
        elif VECTORS.fullmatch(tensor.name):
            if tensor.kind != FLOAT32:
                found = MATRIX_TYPES.get(tensor.kind, tensor.kind)
                raise ModelFileError(path, f"{tensor.name} has the type {found}; a norm or bias must be F32")
        else:
            covered = False
    return covered
