"""What benchmarks/at_scale.py needs on a machine that has only PyTorch and its kin, in pieces that are easy to send.

    python benchmarks/travel.py pack --base GGUF --texts NAME=PATH ... --out DIR [--megabytes 44]
    python travel.py unpack PIECES --out DIR

pack     PATH is a folder with splits, or a file, which becomes the split "test". Into DIR come travel.py itself,
         travel.json with the digest of each piece, and the pieces: the base as the GGUF that it is, token ids, the
         Python files of memdec_edge and gguf, the C extension where it is built, and these benchmarks.
unpack   PIECES are folders that hold the pieces, one or several. Checks their digests, and makes DIR: src, ids, and the
         base as a Hugging Face folder. Needs no package of ours, and PyTorch and transformers for the base alone.

Then PYTHONPATH=DIR/src python DIR/src/benchmarks/at_scale.py --teacher DIR/base --ids DIR/ids --out ...
"""

import argparse
import hashlib
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
PIECES, MEGABYTES = "travel.json", 44.0
BENCHMARKS = ("at_scale.py", "scale_table.py", "torch_scores.py", "ngram_target.py", "provenance.py", "travel.py")


def pack(base: Path, texts: dict[str, Path], out: Path, megabytes: float) -> None:
    """Write the pieces. What is in `out` already is not overwritten."""
    from memdec_edge.files import atomic_path, refuse_existing, write_text

    refuse_existing(out / PIECES)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in _content(base, texts, out):
            archive.addfile(_member(name, len(content)), io.BytesIO(content))
    data, size = stream.getbuffer(), int(megabytes * 1e6)
    digests = {}
    for number, start in enumerate(range(0, len(data), size)):
        piece = out / f"travel.{number:03}"
        with atomic_path(piece) as part:
            part.write_bytes(data[start : start + size])
        digests[piece.name] = hashlib.sha256(data[start : start + size]).hexdigest()
        print(f"{piece}: {piece.stat().st_size / 1e6:.1f} MB")
    shutil.copyfile(__file__, out / Path(__file__).name)
    write_text(out / PIECES, json.dumps({"pieces": digests}, indent=1) + "\n")


def _content(base: Path, texts: dict[str, Path], out: Path) -> Iterator[tuple[str, bytes]]:
    """Names below the folder that unpack makes, and what is in the files."""
    import gguf
    from provenance import commit

    from memdec_edge.llama.model import Model
    from memdec_edge.train.models import gguf_encoder

    encoder = gguf_encoder(Model(base, vocab_only=True))
    yield "base.gguf", base.read_bytes()
    for name, path in texts.items():
        for file in _ids(base, encoder, path, out / ".ids" / name):
            yield f"ids/{name}/{file.name}", file.read_bytes()
    shutil.rmtree(out / ".ids")
    trees = {
        "memdec_edge": ROOT / "memdec_edge",
        "memdec_edge/train": ROOT / "train",
        "gguf": Path(gguf.__file__).parent,
    }
    for name, tree in trees.items():
        for file in sorted(path for path in tree.rglob("*") if path.suffix in (".py", ".txt", ".so")):
            yield f"src/{name}/{file.relative_to(tree).as_posix()}", file.read_bytes()
    for file in sorted(
        Path(gguf.__file__).parents[1].glob("gguf-*.dist-info/METADATA")
    ):  # transformers asks its version
        yield f"src/{file.parent.name}/METADATA", file.read_bytes()
    for name in BENCHMARKS:
        yield f"src/benchmarks/{name}", (ROOT / "benchmarks" / name).read_bytes()
    yield "src/benchmarks/COMMIT", f"{commit()}\n".encode()


def _ids(base: Path, encoder: Any, path: Path, folder: Path) -> list[Path]:
    """Files of token ids of a text, one for each split, and what says whose they are."""
    from memdec_edge.documents import read_documents, split_documents
    from memdec_edge.train import write_ids
    from memdec_edge.train.corpus import pack as pack_tokens

    if path.is_dir():
        splits = {name: [each.text for each in some] for name, some in split_documents(path, 0.05, 0.05, 0).items()}
    else:
        splits = {"test": read_documents(path)}
    for split, documents in splits.items():
        write_ids(folder / f"{split}.npy", pack_tokens(documents, encoder, 0), base)
    return sorted(folder.iterdir())


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


def unpack(folders: list[Path], out: Path) -> None:
    """Check the pieces and make `out`, whole or not at all."""
    if out.exists():
        fail(f"{out} exists and is not overwritten; remove it or choose another path")
    listed = next((folder / PIECES for folder in folders if (folder / PIECES).is_file()), None)
    if listed is None:
        fail(f"{folders[0] / PIECES}: no such file; name the folder that holds it")
    try:
        digests: dict[str, str] = json.loads(listed.read_text(encoding="utf-8"))["pieces"]
        pieces = {name: _find(name, folders) for name in digests}
    except (ValueError, LookupError, TypeError, AttributeError):
        fail(f"{listed}: damaged; send it again")
    if absent := [name for name, piece in pieces.items() if piece is None]:
        fail(f"{', '.join(absent)}: missing, of {len(digests)} pieces; send it, and name its folder")
    data = io.BytesIO()
    for name, piece in pieces.items():
        content = piece.read_bytes() if piece else b""
        if hashlib.sha256(content).hexdigest() != digests[name]:
            fail(f"{piece}: its digest is not the one in {listed}; send it again")
        data.write(content)
    data.seek(0)
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with tarfile.open(fileobj=data) as archive:
        archive.extractall(unfinished, filter="data")
    dequantise(unfinished)
    unfinished.rename(out)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def _find(name: str, folders: list[Path]) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def dequantise(folder: Path) -> None:
    """Make a Hugging Face folder of base.gguf, in float32, with the packages that came along."""
    sys.path.insert(0, str(folder / "src"))
    from memdec_edge.train.models import load_source
    from memdec_edge.train.student import save_copy

    save_copy(load_source(folder / "base.gguf"), folder / "base")


def fail(message: str) -> NoReturn:
    sys.exit(f"Error: {message}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing, unpacking = verbs.add_parser("pack"), verbs.add_parser("unpack")
    packing.add_argument("--base", type=Path, required=True)
    packing.add_argument("--texts", nargs="+", required=True, metavar="NAME=PATH")
    packing.add_argument("--megabytes", type=float, default=MEGABYTES, help="largest piece")
    unpacking.add_argument("pieces", type=Path, nargs="+")
    for each in (packing, unpacking):
        each.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.verb == "unpack":
        unpack(arguments.pieces, arguments.out)
        return
    from memdec_edge.errors import MemdecError

    texts = {name: Path(path) for name, _, path in (text.partition("=") for text in arguments.texts)}
    if Path() in texts.values():
        packing.error("--texts takes NAME=PATH")
    try:
        pack(arguments.base, texts, arguments.out, arguments.megabytes)
    except MemdecError as error:
        fail(str(error))


if __name__ == "__main__":
    main()
