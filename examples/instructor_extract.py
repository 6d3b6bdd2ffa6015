"""Facts out of a sentence, as a Python object: instructor asks, a base and a memory answer in the schema's grammar.

pip install memdec-edge instructor
python examples/instructor_extract.py base.gguf memdec-medicine.gguf "A mild rash for two days."
"""

import argparse
import sys
from typing import Literal

import instructor
from pydantic import BaseModel, Field

from memdec_edge import MemdecError, MemoryLlama


class Complaint(BaseModel):
    """What the sentence says of a patient."""

    symptom: Literal["fever", "cough", "pain", "fatigue", "rash", "nausea", "other"]
    since_days: int = Field(ge=0, le=99)
    severity: Literal["mild", "moderate", "severe", "unknown"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="GGUF of the base model")
    parser.add_argument("memory", help="GGUF of the memory")
    parser.add_argument("text", nargs="?", default="The patient reports severe pain since 5 days.")
    args = parser.parse_args()
    llama = MemoryLlama(args.base, memories=[args.memory], n_ctx=1024, verbose=False)
    # TOOLS: llama-cpp-python turns the schema of a chosen tool into a grammar. It ignores "json_schema" of OpenAI.
    create = instructor.patch(create=llama.create_chat_completion_openai_v1, mode=instructor.Mode.TOOLS)
    found = create(
        response_model=Complaint,
        messages=[{"role": "user", "content": f"{args.text}\nWhich symptom is that, since how many days, how severe?"}],
        max_tokens=200,
        temperature=0.0,
    )
    print(found.model_dump_json(indent=2))
    print(f"The memory took part in {llama.n_mixed} rows.", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except MemdecError as error:
        sys.exit(f"Error: {error}")
