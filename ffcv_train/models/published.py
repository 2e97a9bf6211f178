"""Weights by name: files in the caches of torchvision and of the Hugging Face Hub, downloaded where they lack."""

import contextlib
import functools
import re
import urllib.error
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import torch
import torchvision

from ffcv_train.system.errors import UserError
from ffcv_train.system.files import parse_json

_FILES = ("model.safetensors", "pytorch_model.bin", "final.pt")
"""What a repository's weights are called, where nobody says"""
_HUB_NAME = re.compile(
    r"hf:(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr/\d+|convert/\w+)|[^/]+))?(?:/(?P<file>.+))?"
)
"""As huggingface_hub's HfFileSystem reads them: a revision's slashes are %2F, but those of pull requests"""
_ELSEWHERE = (
    (re.compile(r"(?:timm|hf[-_]hub:timm)/(.+)"), "timm"),
    (re.compile(r"(?:hf[-_]hub:|https://huggingface\.co/)([^/]+/[^/]+)/?"), "hf"),
    (re.compile(r"(?:torchvision/)?(\w+_Weights\.\w+|IMAGENET1K_\w+|DEFAULT)"), "torchvision"),
)
"""How timm, the Hub's pages and torchvision name weights, and the library here"""
_FORMS = "timm:NAME, torchvision:NAME or hf:ORG/NAME[@REVISION][/FILE]"


def is_by_name(source: str) -> bool:
    """Whether `source` names published weights, and no file: `timm:…`, `torchvision:…` or `hf:…`."""
    return source.startswith(("timm:", "torchvision:", "hf:"))


def local_file(source: str | Path, arch: str = "") -> Path:
    """Where the file of weights lies: `source` itself, or in a cache what it names, downloaded into it where it lacks.

    `timm:resnet50.a1_in1k` is timm's repository of that name; `torchvision:IMAGENET1K_V2` are weights of `arch`,
    `torchvision:ResNet50_Weights.IMAGENET1K_V2` of the network that it names; `hf:org/name`, with `@revision` and
    `/file`, a repository on the Hugging Face Hub (`@refs/pr/1` is a pull request's revision, `@feature%2Fx` the branch
    feature/x). The libraries' own settings hold: HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, TORCH_HOME. Raises
    `UserError` for what is not there or cannot be had.
    """
    source = str(source)
    if is_by_name(source):
        return _download(source, arch if source.startswith("torchvision:") else "")
    path = Path(source)
    if not path.exists() and (name := _name_of(source)):
        raise UserError(f"there is no file {source}; published weights of that name are {name}")
    return path


def _name_of(source: str) -> str:
    """The name here of published weights that `source`, as other programs name them, may mean; "" where none."""
    for pattern, library in _ELSEWHERE:
        if found := pattern.fullmatch(source):
            return f"{library}:{found[1]}"
    import timm

    return f"timm:{source}" if source in timm.list_pretrained(f"{source.partition('.')[0]}.*") else ""


def arch_of(source: str) -> str:
    """The architecture here that published weights name or their folder states; "" where nothing does."""
    if source.startswith("torchvision:"):
        enum = source.removeprefix("torchvision:").partition(".")[0]
        names = torchvision.models.list_models(module=torchvision.models)
        found = (name for name in names if torchvision.models.get_model_weights(name).__name__ == enum)
        return next((f"torchvision/{name}" for name in found), "")
    stated = described(local_file(source))
    return f"timm/{stated['architecture']}" if stated else ""


def described(path: Path) -> dict[str, Any] | None:
    """timm's statement in the `config.json` beside a file of weights: `pretrained_cfg` with `architecture`."""
    try:
        content = parse_json((path.parent / "config.json").read_text(encoding="utf-8"))
        return {**content["pretrained_cfg"], "architecture": content["architecture"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


@functools.lru_cache
def _download(source: str, arch: str) -> Path:
    if source.startswith("torchvision:"):
        return _of_torchvision(source, arch)
    if source.startswith("timm:"):
        return _of_hub(source, _timms_repository(source), None, None)
    parts = _HUB_NAME.fullmatch(source)
    if parts is None:
        raise UserError(f"{source} names no weights; give {_FORMS}")
    return _of_hub(source, parts["repo"], unquote(parts["revision"] or "") or None, parts["file"])


def _timms_repository(source: str) -> str:
    """Where on the Hub timm finds the weights of `timm:NAME`. Raises `UserError` where it does not."""
    import timm

    name = source.removeprefix("timm:")
    published = None
    with contextlib.suppress(RuntimeError):  # a tag that this network has not
        published = timm.get_pretrained_cfg(name)
    if published is not None and published.hf_hub_id:
        return str(published.hf_hub_id)
    if published is not None and published.url:
        raise UserError(
            f"{source} lies in no repository but at {published.url}; download that file and name it instead, with "
            f"--model.arch=timm/{published.architecture}"
        )
    near = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}*")[:5])
    raise UserError(
        f"{source} is not among timm's weights; "
        + (f"there are {near}" if near else "timm.list_pretrained() lists what is")
    )


def _of_torchvision(source: str, arch: str) -> Path:
    name = source.removeprefix("torchvision:")
    known: list[Any] = []
    with contextlib.suppress(ValueError):
        own = [] if "." in name else list(torchvision.models.get_model_weights(arch.rpartition("/")[2]))
        known = own or ([torchvision.models.get_weight(name)] if "." in name else [])
    found = [one for one in known if name in (one.name, str(one))]
    if name == "DEFAULT" and known:
        found = [type(known[0]).DEFAULT]
    if not found:
        there = f"{arch} has {', '.join(one.name for one in known)}" if known else f"{arch} is none of its networks"
        raise UserError(f"{source} names no weights of torchvision; {there}")
    url = found[0].url
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not path.is_file():
        try:
            found[0].get_state_dict(progress=False, check_hash=True)
        except urllib.error.HTTPError as error:
            raise UserError(f"{source} cannot be downloaded: {url} answers {error.code} ({error.reason})") from None
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{source} is not in the cache {path.parent} and cannot be downloaded from {url} "
                f"({_first_line(error)}); put that file there, or run once where there is a network"
            ) from None
    return path


def _of_hub(source: str, repo: str, revision: str | None, file: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub import constants, errors

    def get(name: str) -> Path:
        return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision))

    where = f"{constants.ENDPOINT}/{repo}"
    absent = False
    try:
        for name in (file,) if file else _FILES:
            try:
                path = get(name)
            except errors.LocalEntryNotFoundError:
                absent = True
                continue
            except errors.EntryNotFoundError:
                continue
            with contextlib.suppress(errors.EntryNotFoundError):
                get("config.json")
            return path
    except errors.GatedRepoError:
        reason = f"{where} is gated; accept its terms there, and log in with `hf auth login` or HF_TOKEN"
    except errors.RevisionNotFoundError:
        reason = (
            f"{where} has no revision {revision}; name a branch, a tag or a whole commit, a slash in it as %2F, or "
            "leave it out"
        )
    except errors.RepositoryNotFoundError:
        reason = f"there is no repository {where}, or it is private; check the name, or log in with `hf auth login`"
    except errors.HFValidationError as error:
        reason = f"{_first_line(error)}; give {_FORMS}"
    except Exception as error:  # of the HTTP client, the disk, a download that broke off
        reason = f"it cannot be downloaded from {where} ({_first_line(error)}); try again, or give a file"
    else:
        reason = f"{where} has no {file or ' or '.join(_FILES)}; name a file, as in hf:{repo}/FILE"
        if absent:
            why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else f"{constants.ENDPOINT} does not answer"
            reason = (
                f"it is not in the cache {constants.HF_HUB_CACHE}, and {why}; run once where there is a network, or "
                "copy the cache from there"
            )
    raise UserError(f"{source}: {reason}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
