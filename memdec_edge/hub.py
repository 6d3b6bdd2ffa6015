"""Models of the Hugging Face Hub by name, as llama.cpp names them: `user/repo`, or `user/repo:quant` for a GGUF.

`user/repo:file.gguf` names a file, and `user/repo@revision` a branch, a tag or a commit. All files of a model are of
the commit that the Hub named first. They stay in the Hub's own cache, where llama.cpp and transformers find them too.
A download that was stopped goes on. HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT and HF_HOME mean what huggingface_hub says of
them. Without a connection the cache answers. Knows nothing of what the files hold, but the list of a checkpoint's
shards.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from memdec_edge.errors import HubError, MemdecError, MissingExtraError, MissingFileError, OutputError
from memdec_edge.files import sha256, write_text
from memdec_edge.gguf.parts import NAME as PART
from memdec_edge.hf_folder import ADAPTER, ADAPTER_WEIGHTS, FUSION, INDEX, READ, WEIGHTS, shard_names
from memdec_edge.notes import note
from memdec_edge.options import HUB_NAME

T = TypeVar("T")
PREFERRED = ("Q4_K_M", "Q8_0")  # what llama.cpp looks for where no quantisation is named (common/download.cpp)
NO_MODEL = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")  # in names of GGUFs beside a model, as there
MEMORY, OF_INDEX = "memdec-", "-index.gguf"  # how the file of a memory begins, and that of an index ends
SHOWN = 8  # names of files in a message
PATIENCE = 10.0  # seconds for an answer, before the cache is asked


@dataclass(frozen=True)
class Model:
    """A model of the Hub that is on this machine. path: its GGUF, the first of several, or its folder."""

    name: str  # of the repository
    revision: str  # the commit, 40 hexadecimal digits
    path: Path

    def __str__(self) -> str:
        return f"{self.name} is {self.path.name if self.path.is_file() else 'a folder'}, revision {self.revision[:12]}"


def gguf_of(name: str, file: str = "") -> Model:
    """The GGUF that llama.cpp takes for `user/repo` or `user/repo:quant`; `file` names another one of the repository.

    Raises MissingFileError for a name that the Hub lacks, HubError where the Hub refuses or cannot be reached,
    OutputError where the cache cannot be written, and MissingExtraError.
    """
    found, tag = _Repository.named(name)
    return found.fetch(found.parts(tag, file))


def memory_of(name: str) -> Model:
    """The GGUF of a memory or an index: `user/repo:file.gguf`, or one as gguf_of() chooses it.

    Files that are called memdec- are chosen before others, and memories before indexes. Raises as gguf_of() does.
    """
    found, tag = _Repository.named(name)
    called = [each for each in found.files if each.rpartition("/")[2].startswith(MEMORY)]
    memories = [each for each in called if not each.endswith(OF_INDEX)]
    return found.fetch(found.parts(tag, among=memories or called or found.files))


def model_of(name: str) -> Model:
    """The folder of a model for transformers or, where the repository has none or a quant is named, gguf_of().

    Raises as gguf_of() does, and ModelFileError for a list of shards that is damaged.
    """
    found, tag = _Repository.named(name)
    return found.checkpoint() if found.weights and not tag else found.fetch(found.parts(tag))


def checkpoint_of(name: str) -> Model:
    """The folder of a model for transformers or of a PEFT adapter, with nothing but what convert and training read.

    Raises as model_of() does.
    """
    found, tag = _Repository.named(name)
    if tag or not found.weights:
        raise found.missing(tag, "checkpoint (config.json and weights)", found.files)
    return found.checkpoint()


def local(path: Path, fetch: Callable[[str], Model] = model_of) -> Path:
    """`path`, where something is there or it can be no name; else what `fetch` gets of the Hub by that name.

    stderr says so. Raises what `fetch` does.
    """
    name = HUB_NAME.fullmatch(path.as_posix())
    if name is None or path.exists() or (name["repo"].endswith(".gguf") and not name["revision"]):
        return path
    note(f"no path is called {path}; the Hub is asked for a model of that name")
    found = fetch(path.as_posix())
    note(f"{found}")
    return found.path


@dataclass(frozen=True)
class _Repository:
    """The files of a repository at one commit. asked: the revision that was asked for.

    cached: their folder, where the Hub cannot be asked.
    """

    name: str
    revision: str
    files: list[str]
    cached: Path | None = None
    asked: str = ""

    @classmethod
    def named(cls, name: str) -> "tuple[_Repository, str]":
        """The repository of a name, and the quantisation or file in it."""
        parts = HUB_NAME.fullmatch(name)
        if parts is None:
            raise HubError(name, "it is no name of a model", "give user/repo, user/repo:quant or user/repo@revision")
        return cls.find(parts["repo"], parts["revision"] or ""), parts["file"] or ""

    @classmethod
    def find(cls, name: str, revision: str = "") -> "_Repository":
        hub = _library()
        try:
            info = hub.HfApi().model_info(name, revision=revision or None, timeout=PATIENCE)
        except (hub.errors.HTTPError, OSError, ValueError) as error:
            whole = f"{name}@{revision}" if revision else name
            if not (_unreachable(error) and (cached := cls._of_cache(name, revision))):
                raise _explained(whole, error) from error
            note(f"{whole}: the Hub was not asked ({_reason(error)}); the cache answers")
            return cached
        return cls(name, str(info.sha), sorted(each.rfilename for each in info.siblings or ()), asked=revision)

    @classmethod
    def _of_cache(cls, name: str, revision: str) -> "_Repository | None":
        """What the cache has of a revision, or of the commit that was asked for last."""
        hub = _library()
        try:
            repos = hub.scan_cache_dir().repos
        except (hub.errors.CacheNotFound, OSError, ValueError):
            return None
        revisions = [
            each
            for repo in repos
            if (repo.repo_id, repo.repo_type) == (name, "model")
            for each in repo.revisions
            if revision in each.refs or each.commit_hash.startswith(revision)
        ]
        latest = max(revisions, key=lambda each: ("main" in each.refs, each.last_modified), default=None)
        if latest is None:
            return None
        files = sorted(each.file_path.relative_to(latest.snapshot_path).as_posix() for each in latest.files)
        return cls(name, latest.commit_hash, files, latest.snapshot_path, revision)

    @property
    def weights(self) -> list[str]:
        """The file that holds the weights of a model for transformers, or lists its shards, and that of an adapter."""
        model = [each for each in WEIGHTS if each in self.files and "config.json" in self.files]
        adapter = [each for each in ADAPTER_WEIGHTS if each in self.files and ADAPTER in self.files]
        return [*model[:1], *adapter[:1]]

    def checkpoint(self) -> Model:
        """The folder of the weights and of what is read beside them."""
        beside = [each for each in self.files if "/" not in each and each.endswith(READ) and not each.endswith(INDEX)]
        fusion = [FUSION] if FUSION in self.files else []
        model = self.fetch([*self.weights, *beside, *fusion])
        if self.weights[0].endswith(INDEX):
            self.fetch(shard_names(model.path))
        return Model(model.name, model.revision, model.path.parent)

    def parts(self, tag: str = "", file: str = "", among: list[str] | None = None) -> list[str]:
        """The GGUF that is meant, as llama.cpp chooses it, and the other parts of one that was split.

        tag: a quantisation, or a file; among: those that a quantisation is chosen from, by default all.
        """
        file = file or (tag if tag.lower().endswith(".gguf") else "")
        chosen = self._named(file) if file else self._of_quant(tag, self.files if among is None else among)
        split = PART.fullmatch(chosen)
        count = int(split["count"]) if split else 1
        names = [f"{split['stem']}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)] if split else [chosen]
        for name in names:
            if name not in self.files:
                raise self.missing(name, f"part of {chosen}", self.files)
        return names

    def _named(self, file: str) -> str:
        found = next((each for each in self.files if each.lower() == file.lower()), None)
        if found is None:
            raise self.missing(file, "file", [each for each in self.files if each.endswith(".gguf")])
        return found

    def _of_quant(self, quant: str, among: list[str]) -> str:
        """The first GGUF whose name has the quantisation before a dot or a dash, in any case."""
        models = [each for each in among if _is_model(each)]
        for wanted in (quant,) if quant else PREFERRED:
            for each in models:
                if re.search(re.escape(wanted) + "[.-]", each, re.IGNORECASE):
                    return each
        if quant or not models:
            raise self.missing(quant, f"GGUF {quant}".strip(), models)
        return models[0]

    def missing(self, name: str, what: str, others: list[str]) -> MissingFileError:
        """The error for what the repository lacks; it names what is there."""
        shown = ", ".join(others[:SHOWN]) + (f" and {len(others) - SHOWN} more" if len(others) > SHOWN else "")
        where = "the cache" if self.cached else "the repository"
        advice = f"{where} has {shown or 'none'}"
        return MissingFileError(f"{self.name}:{name}" if name else self.name, f"{what} on the Hugging Face Hub", advice)

    def fetch(self, names: Iterable[str]) -> Model:
        """Download what is not in the cache yet; the model at the first of the names."""
        paths = [self.cached / name if self.cached else self._fetched(name) for name in names]
        if not self.cached:
            _try(self.name, self._remember)
        return Model(self.name, self.revision, paths[0])

    def _fetched(self, name: str) -> Path:
        hub = _library()
        here = hub.try_to_load_from_cache(self.name, name, revision=self.revision)
        if isinstance(here, str):
            return Path(here)
        _try(self.name, partial(_download, self.name, name, self.revision))
        return Path(_try(self.name, partial(hub.hf_hub_download, self.name, name, revision=self.revision)))

    def _remember(self) -> None:
        """Note which commit the revision is now. huggingface_hub does so where it is asked for no commit."""
        asked = self.asked or "main"
        if not self.revision.startswith(asked):
            path = _folder(self.name) / "refs" / asked
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, self.revision)


def _folder(repo: str) -> Path:
    """Where the cache keeps a repository."""
    from huggingface_hub import constants, file_download

    return Path(constants.HF_HUB_CACHE) / str(file_download.repo_folder_name(repo_id=repo, repo_type="model"))


def _download(repo: str, name: str, revision: str) -> None:
    """Put a file into the cache, from where an earlier download stopped; hf_hub_download() itself begins anew.

    Files that the Hub gives only through Xet are left to it.
    """
    from filelock import FileLock
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import build_hf_headers

    url = file_download.hf_hub_url(repo, name, revision=revision)
    found = file_download.get_hf_file_metadata(url)
    folder = _folder(repo) / "blobs"
    if not found.etag or Path(found.etag).name != found.etag or not found.size:
        return
    blob, part = folder / found.etag, folder / f"{found.etag}.memdec.incomplete"
    if blob.exists() or found.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{part}.lock"), part.open("ab") as file:
        if blob.exists():
            return
        done = file.tell()
        note(
            f"{repo}: downloading {name}, {found.size / 1e6:.1f} MB" + (f", {done / 1e6:.1f} of them done" * (done > 0))
        )
        file_download.http_get(
            url, file, resume_size=done, headers=build_hf_headers(), expected_size=found.size, displayed_filename=name
        )
        file.close()
        if len(found.etag) == 64 and sha256(part) != found.etag:  # of a large file the Hub's tag is its digest
            part.unlink()
            raise HubError(repo, f"{name} came damaged", "run again to download it anew")
        part.replace(blob)
        Path(f"{part}.lock").unlink(missing_ok=True)


def _is_model(name: str) -> bool:
    """Whether a file is a GGUF of a model, and the first where it was split."""
    split = PART.fullmatch(name)
    others = any(word in name.rpartition("/")[2] for word in NO_MODEL)
    return name.endswith(".gguf") and not others and (split is None or int(split["number"]) == 1)


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise MissingExtraError("huggingface_hub", "hub") from None
    return huggingface_hub


def _try(name: str, work: Callable[[], T]) -> T:
    """What `work` returns; what huggingface_hub raises becomes an error of ours."""
    try:
        return work()
    except (_library().errors.HTTPError, OSError, ValueError) as error:
        raise _explained(name, error) from error


def _unreachable(error: Exception) -> bool:
    """Whether the Hub gave no answer, or none that says anything about a model."""
    status = _status(error)
    return status >= 500 if status else isinstance(error, _library().errors.HTTPError | OSError)


def _status(error: Exception) -> int:
    """The HTTP status that the Hub answered; 0 where it answered nothing."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _explained(name: str, error: Exception) -> MemdecError:
    errors = _library().errors
    if isinstance(error, errors.GatedRepoError):
        return HubError(name, "its makers ask for consent", "agree on its page, then set HF_TOKEN or run hf auth login")
    if isinstance(error, errors.RepositoryNotFoundError):
        return MissingFileError(name, "model on the Hugging Face Hub", "check the name; a private one needs HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return MissingFileError(name, "revision on the Hugging Face Hub", "name a branch, a tag or a commit of it")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(name, "it is not in the cache, and HF_HUB_OFFLINE is set", "unset that to download it")
    if isinstance(error, ValueError) and not _status(error):
        return HubError(name, _reason(error), "check the name")
    if status := _status(error):
        advice = "check HF_TOKEN" if status in (401, 403) else "try again later"
        return HubError(name, f"the Hub answered {status}", advice)
    if isinstance(error, OSError) and error.errno and not isinstance(error, errors.HTTPError):
        return OutputError(error.filename or "the cache of the Hub", error.strerror or _reason(error))
    return HubError(name, f"the Hub cannot be reached ({_reason(error)})", "a download goes on where it stopped")


def _reason(error: Exception) -> str:
    if isinstance(error, _library().errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return f"{' '.join(str(error).split())[:120] or type(error).__name__}"
