"""The command cache: the kNN cache of a corpus. Knows nothing of how it is made."""

from dataclasses import asdict

from memdec_edge.cli.flags import Given, spread
from memdec_edge.cli.output import print_json
from memdec_edge.cli.parameters import Json, ShowText, shows_text
from memdec_edge.options import CacheOptions
from memdec_edge.progress import is_first_process


@spread
def cache(*, caching: Given[CacheOptions], show_text: ShowText = None, json_: Json = False) -> None:
    """Build the kNN cache of a corpus.

    A teacher runs over the text; what the nearest neighbours of each position predict is kept. The command train does
    this by itself. Run again to go on after a stop.
    """
    options = caching()
    if shows_text(show_text, options):
        return
    from memdec_edge.hub import local
    from memdec_edge.train import build_cache_apart

    report = build_cache_apart(caching(teacher=local(options.teacher)))
    if not is_first_process():
        return
    print(f"cache {report.path}")
    if json_:
        print_json(asdict(report))
