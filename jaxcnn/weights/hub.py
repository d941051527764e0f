"""Weights by name, from the Hugging Face Hub.

The names are `hf:owner/name`, `hf:owner/name@revision` and `hf:owner/name:file`. Downloads are left
to `huggingface_hub`, with its cache and its variables of the environment (`HF_ENDPOINT`,
`HF_TOKEN`, `HF_HUB_OFFLINE`, `HF_HOME`). It is imported when a name is first used.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn._util import file_sha256, to_one_line
from jaxcnn.arguments import format_value
from jaxcnn.checkpoint._integrity import join_first
from jaxcnn.weights._errors import WeightsError

PREFIX = "hf:"
"""Start of a name on the hub. A file of such a name is `./hf:...`."""
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Files that are looked for where a name has none, the first one first."""
ARCHITECTURES = {
    **{f"resnet{depth}": f"resnet{depth}" for depth in (18, 34)},
    **{f"resnet{depth}": f"resnet{depth}-v1.5" for depth in (50, 101, 152)},
    "tv_resnet34": "resnet34",
    **{f"tv_resnet{depth}": f"resnet{depth}-v1.5" for depth in (50, 101, 152)},
    **{f"vgg{depth}": f"vgg{depth}" for depth in (11, 13, 16, 19)},
    **{f"vgg{depth}_bn": f"vgg{depth}-bn" for depth in (11, 13, 16, 19)},
}
"""Our names of networks, by timm's.

The bottlenecks of timm have their stride in the 3x3 convolution (v1.5).
"""
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".th", ".ckpt")
_PATTERN = re.compile(
    r"hf:(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(?:@(?P<revision>[^\s:@]+))?(?::(?P<file>[^\s:]+))?"
)
_EXAMPLE = "hf:timm/resnet18.tv_in1k"
_MAX_CONFIG_BYTES = 1 << 20


class HubName(NamedTuple):
    """Parts of a name on the hub.

    Attributes:
      repo: owner/name.
      revision: a branch, a tag or a commit; None is the main branch.
      file: path of the weights in the repository; None is one of `WEIGHT_FILES`.
    """

    repo: str
    revision: str | None
    file: str | None

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{PREFIX}{self.repo}{revision}" + ("" if self.file is None else f":{self.file}")


def is_hub_name(file: Any) -> bool:
    """Return whether a file is a name on the hub, not a path.

    Example:
      >>> is_hub_name("hf:timm/resnet18.tv_in1k"), is_hub_name("resnet18.safetensors")
      (True, False)
    """
    return isinstance(file, (str, os.PathLike)) and str(file).startswith(PREFIX)


def parse_hub_name(text: str | os.PathLike[str]) -> HubName:
    """Return the parts of a name such as `hf:owner/name@revision:file`.

    Raises:
      WeightsError: the text is no such name.

    Example:
      >>> parse_hub_name("hf:timm/resnet18.tv_in1k@v1:model.safetensors")
      HubName(repo='timm/resnet18.tv_in1k', revision='v1', file='model.safetensors')
    """
    match = _PATTERN.fullmatch(str(text))
    parts = re.split("[/@:]", str(text).removeprefix(PREFIX))
    # The hub refuses such names too, but with an error of several lines.
    if (
        match is None
        or any(part in ("", ".", "..") for part in parts)
        or _is_invalid(match["name"])
    ):
        raise WeightsError(
            f"{format_value(str(text))} is no name on the hub; "
            f"expected hf:owner/name, with @revision or :file after it. Write {_EXAMPLE!r}."
        )
    return HubName(f"{match['owner']}/{match['name']}", match["revision"], match["file"])


def _is_invalid(name: str) -> bool:
    return ".." in name or "--" in name or name[0] in "-." or name[-1] in "-." or len(name) > 96


def fetch_weights(name: str | os.PathLike[str]) -> Path:
    """Return the path of a file of weights on the hub, downloaded if needed.

    The file is in the cache of `huggingface_hub`, whole or not at all.

    Args:
      name: `hf:owner/name`, optionally with `@revision` and `:file`. Without a file it is
        `model.safetensors`, else `pytorch_model.bin`, else the only file of weights.

    Raises:
      WeightsError: the name is invalid, `huggingface_hub` is not installed, or the file cannot be
        downloaded. The message is one line.
    """
    parts = parse_hub_name(name)
    if parts.file is not None:
        return _download(parts, parts.file)
    for file in WEIGHT_FILES:
        if (path := _download_if_there(parts, file)) is not None:
            return path
    return _download(parts, _only_weights_file(parts))


def fetch_config(
    name: HubName, *, required: bool = False
) -> tuple[dict[str, Any] | None, str | None]:
    """Return a repository's `config.json` and the commit that it is of.

    Either is None where it is unknown: the repository has no config, or it is not in the cache of a
    library that is offline. The latter is an error if the config is `required`.

    Raises:
      WeightsError: it cannot be downloaded, or is no JSON object.
    """
    path = _download_if_there(name, "config.json")
    if path is None:
        if required and _is_offline(_hub(name)):
            raise WeightsError(_offline_text(name, "config.json"))
        return None, None
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"more than {_MAX_CONFIG_BYTES} bytes")
        config = json.loads(path.read_text("utf-8"))
    # Bytes that are no text are ValueErrors too.
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"config.json of {name} cannot be read: {to_one_line(error, 200)}; "
            f"expected JSON as timm writes it. Write another repository, such as {_EXAMPLE!r}."
        ) from None
    if not isinstance(config, dict):
        raise WeightsError(
            f"config.json of {name} is {format_value(config, 60)}; expected a JSON object. "
            f"Write another repository, such as {_EXAMPLE!r}."
        )
    return config, _commit_of(path)


def _commit_of(path: Path) -> str | None:
    """Return the commit of a downloaded file at the top of its repository.

    The cache has it in a folder of the commit's name.
    """
    commit = path.parent.name
    return commit if re.fullmatch("[0-9a-f]{40}", commit) else None


def network_name(name: str | os.PathLike[str]) -> str | None:
    """Return our name of the network that a repository's `config.json` names.

    It is None where the repository has no such file, or names none of our networks.

    Args:
      name: such as "hf:timm/resnet18.tv_in1k".

    Raises:
      WeightsError: the name is invalid, or the file cannot be downloaded or read.
    """
    return network_of(fetch_config(parse_hub_name(name))[0])


def network_of(config: Mapping[str, Any] | None) -> str | None:
    """Return our name of the network of a timm config, or None if it has none of ours."""
    architecture = None if config is None else config.get("architecture")
    return ARCHITECTURES.get(architecture) if isinstance(architecture, str) else None


# ---------------------------------------------------------------- downloads


def _hub(name: HubName) -> Any:
    """Import `huggingface_hub`.

    Raises:
      WeightsError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise WeightsError(
            f"{name} needs huggingface_hub, which cannot be imported "
            f"({to_one_line(error, 100)}); expected it, or the path of a file. "
            f'Run pip install "jaxcnn[hub]", or download {_address(name)}.'
        ) from None
    return huggingface_hub


def _endpoint() -> str:
    """Return the hub's address.

    `huggingface_hub` reads the variable when it is imported. A notebook may set it later.
    """
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _is_offline(hub: Any) -> bool:
    is_set = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return is_set or bool(hub.constants.HF_HUB_OFFLINE)


def _address(name: HubName, file: str | None = None) -> str:
    file = file or name.file or WEIGHT_FILES[0]
    return f"{_endpoint()}/{name.repo}/resolve/{name.revision or 'main'}/{file}"


def _download(name: HubName, file: str) -> Path:
    """Return the path of a downloaded file.

    Raises:
      WeightsError: it cannot be downloaded.
    """
    hub = _hub(name)
    try:
        path = _download_with(hub, name, file)
    # The hub, its HTTP client and the disk raise errors of many types.
    except Exception as error:
        raise WeightsError(_describe(hub, name, file, error)) from error
    _check_digest(name, file, path)
    return path


def _download_if_there(name: HubName, file: str) -> Path | None:
    """Return the path of a downloaded file, or None where there is no such file.

    Without a connection the file in the cache is returned. It is None if the repository had no such
    file when there was a connection. With HF_HUB_OFFLINE it is None for any file that the cache
    lacks.

    Raises:
      WeightsError: it cannot be downloaded. Or there is no connection, and the cache does not tell
        if there is such a file.
    """
    hub = _hub(name)
    try:
        path = _download_with(hub, name, file)
    except hub.errors.LocalEntryNotFoundError as error:
        if _is_offline(hub) or _is_known_to_be_missing(hub, name, file):
            return None
        raise WeightsError(_describe(hub, name, file, error)) from error
    except hub.errors.EntryNotFoundError:
        return None
    except Exception as error:
        raise WeightsError(_describe(hub, name, file, error)) from error
    _check_digest(name, file, path)
    return path


def _is_known_to_be_missing(hub: Any, name: HubName, file: str) -> bool:
    """Check if the cache has a note that the repository has no such file."""
    result = hub.try_to_load_from_cache(name.repo, file, revision=name.revision)
    # A path, None where nothing is known, or this object.
    return result is hub.file_download._CACHED_NO_EXIST


def _has_cached_files(hub: Any, name: HubName) -> bool:
    """Check if the cache has a file of the repository."""
    folder = Path(hub.constants.HF_HUB_CACHE, f"models--{name.repo.replace('/', '--')}")
    return any((folder / "snapshots").glob("*/*"))


def _download_with(hub: Any, name: HubName, file: str) -> Path:
    return Path(
        hub.hf_hub_download(
            name.repo,
            file,
            revision=name.revision,
            endpoint=_endpoint(),
            local_files_only=_is_offline(hub),
        )
    )


def _check_digest(name: HubName, file: str, path: Path) -> None:
    """Check that a large file has the digest that the hub announced.

    The cache names such a file by its SHA-256, which `huggingface_hub` does not compare. Small
    files have another digest. Where the file system has no links, the name is not the digest.

    Raises:
      WeightsError: it has another digest. The file is removed, so that it is fetched again.
    """
    blob = path.resolve()
    if not re.fullmatch("[0-9a-f]{64}", blob.name) or file_sha256(blob) == blob.name:
        return
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
    raise WeightsError(
        f"{file} of {name} is damaged: its SHA-256 is not the hub's; expected the whole file. "
        "It was removed; run the same again."
    )


def _only_weights_file(name: HubName) -> str:
    """Return the only file of weights in a repository.

    Raises:
      WeightsError: there is none or more than one, or the hub cannot be reached.
    """
    hub = _hub(name)
    if _is_offline(hub):
        raise WeightsError(_offline_text(name, None))
    files = _list_files(hub, name)
    candidates = [file for file in files if file.endswith(_SUFFIXES)]
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise WeightsError(
            f"{name} has no file of weights (it has {_join(files) or 'no files'}); "
            f"expected {WEIGHT_FILES[0]} or another. Write a repository of weights."
        )
    raise WeightsError(
        f"{name} has no {' or '.join(WEIGHT_FILES)}, and {len(candidates)} files of weights: "
        f"{_join(candidates)}; expected one. Write '{name}:{candidates[0]}'."
    )


def _list_files(hub: Any, name: HubName) -> list[str]:
    try:
        info = hub.HfApi(endpoint=_endpoint()).model_info(name.repo, revision=name.revision)
    except Exception as error:
        raise WeightsError(_describe(hub, name, None, error)) from error
    return sorted(file.rfilename for file in info.siblings or ())


def _join(files: list[str]) -> str:
    return join_first([format_value(file, 80).strip("'") for file in files])


# ---------------------------------------------------------------- errors


def _offline_text(name: HubName, file: str | None) -> str:
    return (
        f"{name} is not in the cache, and HF_HUB_OFFLINE is set; "
        f"expected a file that was downloaded before. Unset it, or download "
        f"{_address(name, file)} and write the path of the file."
    )


def _describe(hub: Any, name: HubName, file: str | None, error: Exception) -> str:
    """Return the line for an error of a download."""
    errors = hub.errors
    page = f"{_endpoint()}/{name.repo}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{name} is gated; expected a token of an account that has accepted its terms. "
            f"Accept them at {page}, and set HF_TOKEN."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{name} is not on {_endpoint()}, or is private; expected owner/name of a repository. "
            f"Open {page} to check the name, or set HF_TOKEN for a private one."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{name} has no revision {name.revision!r}; expected a branch, a tag or a commit. "
            f"Leave out @{name.revision}, or see {page}/commits/main."
        )
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        if _is_offline(hub):
            return _offline_text(name, file)
        cause = error.__cause__
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in (401, 403):
            return _refused_text(name, status)
        reason = f" (HTTP {status})" if status else ""
        reason = reason or (f" ({to_one_line(cause, 120)})" if cause else "")
        subject = f"{file} of {name._replace(file=None)}" if file else f"{name}"
        cached = ""
        if _has_cached_files(hub, name):
            cached = "set HF_HUB_OFFLINE=1 to use the files in the cache alone, "
        return (
            f"{subject} is not in the cache, and {_endpoint()} cannot be reached{reason}; "
            f"expected a connection. Try again, {cached}or download {_address(name, file)} "
            "elsewhere and write the path of the file."
        )
    if isinstance(error, errors.EntryNotFoundError):
        return _missing_file_text(hub, name, file)
    if status in (401, 403):
        return _refused_text(name, status)
    detail = f"HTTP {status}" if status else to_one_line(error, 160) or type(error).__name__
    return (
        f"{name}: the download of {file or 'the list of files'} failed ({detail}); "
        f"expected the whole file, and nothing was stored. Try again, or download "
        f"{_address(name, file)} and write the path of the file."
    )


def _refused_text(name: HubName, status: int) -> str:
    return (
        f"{name} is refused by {_endpoint()} (HTTP {status}); expected a token that may read it. "
        f"Set HF_TOKEN, and see {_endpoint()}/{name.repo}."
    )


def _missing_file_text(hub: Any, name: HubName, file: str | None) -> str:
    # The list is a help only, and the missing file the error.
    try:
        files = [other for other in _list_files(hub, name) if other.endswith(_SUFFIXES)]
    except WeightsError:
        files = []
    example = f"Write '{name._replace(file=files[0])}'." if files else "Leave out the file."
    return (
        f"{name._replace(file=None)} has no file {format_value(file)}; "
        f"expected one of its files of weights ({_join(files) or 'none'}). {example}"
    )
