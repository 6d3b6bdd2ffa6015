"""The command index: documents become an index GGUF. Knows nothing of how they are indexed."""

from dataclasses import asdict
from pathlib import Path

from memdec_edge.cli.flags import Given, spread
from memdec_edge.cli.output import note, print_json, warn
from memdec_edge.cli.parameters import Base, Json, base_file
from memdec_edge.options import IndexOptions


@spread
def index(*, model: Base, indexing: Given[IndexOptions], json_: Json = False) -> None:
    """Index documents: a memory in seconds.

    Of the base only the tokenizer is read, so any size will do. The file contains the documents; treat it as
    confidentially as them.
    """
    named = model()
    indexing(base=Path())  # what was given is checked before a base is downloaded
    options = indexing(base=base_file(named))
    from memdec_edge.indexing.build import build_index

    report = build_index(options)
    warn(report.warnings)
    print(f"{report.path}  {report.n_bytes / 1e6:.1f} MB  {report.n_documents:,} documents, "
          f"{report.n_tokens:,} tokens, {report.seconds:.1f} s")  # fmt: skip
    weights = " ".join(f"{value:.2f}" for value in report.trust)
    print(f"relative weight by the length of a match: {weights}, measured on {report.trust_from}")
    note(f"{report.path} contains the text of the documents")
    if json_:
        print_json(asdict(report))
