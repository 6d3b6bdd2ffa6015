"""A record with fixed fields, written by a base and a memory: outlines keeps it JSON, whatever the models would say.

pip install memdec-edge outlines
python examples/outlines_json.py base.gguf memdec-medicine.gguf --about "Pneumonia"
"""

import argparse
import sys
from typing import Literal

import outlines
from pydantic import BaseModel, ConfigDict, Field

from memdec_edge import MemdecError, MemoryLlama


class Disease(BaseModel):
    """What the answer must have."""

    # Else JSON may go on with fields of its own, and a small model with blanks between them.
    model_config = ConfigDict(extra="forbid", json_schema_extra={"x-guidance": {"whitespace_flexible": False}})

    definition: str = Field(max_length=120)
    organ: Literal["blood", "bone", "brain", "heart", "kidney", "liver", "lung", "skin", "other"]
    infectious: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="GGUF of the base model")
    parser.add_argument("memory", help="GGUF of the memory")
    parser.add_argument("--about", default="Anaemia", help="what the record describes")
    args = parser.parse_args()
    llama = MemoryLlama(args.base, memories=[args.memory], n_ctx=1024, verbose=False)
    # outlines' usual backend needs numba, 200 MB; memdec-edge brings llguidance anyway.
    generate = outlines.Generator(outlines.from_llamacpp(llama), Disease, backend="llguidance")
    answer = generate(f"Describe this disease in JSON: {args.about}", max_tokens=200, temperature=0.0)
    print(Disease.model_validate_json(answer).model_dump_json(indent=2))
    print(f"The memory took part in {llama.n_mixed} rows.", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except MemdecError as error:
        sys.exit(f"Error: {error}")
