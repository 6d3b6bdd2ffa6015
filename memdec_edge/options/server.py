"""Options of the HTTP server: where it listens, what it lets in, how much it takes on. Knows nothing of HTTP."""

from dataclasses import dataclass, field
from pathlib import Path

from memdec_edge.options.fields import Checked, about, option


@dataclass(frozen=True)
class ServerOptions(Checked):
    """How requests are served. Empty tuples and None stand for nothing of the kind.

    api_keys: any of them lets a request in; without one every request is let in. memory_dir: the only folder from which
    a request may load memories. origins: web pages that may call the server, beside those of this machine. hosts: names
    that requests may use for the server, beside those of this machine; with keys alone any will do on a public address.
    """

    host: str = option("127.0.0.1", "--host", help="Address to listen on; 0.0.0.0: all.")
    port: int = option(8080, "--port", low=0, high=65_535, help="Port to listen on; 0: any that is free.")
    parallel: int = option(4, "-np", "--parallel", low=1, high=256, help="Requests that are answered at a time.")
    queue: int = option(64, "--queue", low=0, high=100_000, help="Requests that wait at most; others are refused.")
    alias: str = option("", "-a", "--alias", help="Name of the model in answers. Default: the file's.")
    api_keys: tuple[str, ...] = option(
        (), "--api-key", metavar="KEY", help="Key that a request must carry; repeatable. Others are in MEMDEC_API_KEY."
    )
    api_key_file: Path | None = field(
        default=None, metadata=about("--api-key-file", metavar="FILE", help="File with a key on each line.")
    )
    memory_dir: Path | None = field(
        default=None,
        metadata=about("--memory-dir", metavar="FOLDER", help="Folder from which requests may load memories."),
    )
    origins: tuple[str, ...] = option(
        (), "--cors-origin", metavar="URL", help="Origin of web pages that may call the server; repeatable."
    )
    hosts: tuple[str, ...] = option(
        (), "--allowed-host", metavar="NAME", help="Name under which the server may be called; repeatable."
    )
    max_tokens: int = option(
        -1, "--max-tokens", low=-1, high=1 << 24, help="Tokens that a request may ask for at most; -1: any number."
    )
    max_body: int = option(1 << 24, "--max-body", low=1 << 10, high=1 << 32, help="Bytes of a request at most.")
    grace: int = option(
        10, "--grace", low=0, high=3600, help="Seconds that running requests may take once the server is to end."
    )
    allow_templates: bool = option(False, "--allow-templates", help="Let requests bring chat templates of their own.")
    log_prompts: bool = option(False, "--log-prompts", help="Write prompts to the log, which has none otherwise.")
