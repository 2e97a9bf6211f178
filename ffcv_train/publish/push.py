"""A folder for the Hugging Face hub, weights, configuration and card, and its way there."""

import os
import re
from pathlib import Path

from torch import Tensor

from ffcv_train.evaluation.classifier import Classifier
from ffcv_train.models.published import is_by_name
from ffcv_train.publish.card import Record, read_record, write_card
from ffcv_train.publish.description import Description
from ffcv_train.publish.export import Check, export
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import replace_text, write_json

_WEIGHTS = "model.safetensors"
_FILES = ("README.md", "config.json", _WEIGHTS)
_REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)


def check_repo(repo: str) -> None:
    """Raise `UserError` where `repo` is no name of a repository."""
    if not _REPO.fullmatch(repo) or len(repo) > 96 or ".." in repo or "--" in repo:
        raise UserError(
            f"--to {repo} is no repository's name; give organisation/name, of letters, digits, '.', '_', '-'"
        )


def write_folder(
    classifier: Classifier, description: Description, folder: Path, repo: str, licence: str, images: Tensor
) -> tuple[str, Check]:
    """Write what `repo` is to hold into the new `folder`; returns the library that opens it, and the comparison.

    A folder of an earlier call is written anew; one with other files is refused. It is timm's
    folder where timm has the network, else `model.safetensors` and `config.json`. Raises `UserError`.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a new folder with --folder")
    names = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    if names and not {_WEIGHTS} <= names <= set(_FILES):
        raise UserError(f"{folder} exists and holds other files than an earlier push; name a new one with --folder")
    for name in sorted(names):  # the weights last, by which the folder is known
        (folder / name).unlink()
    try:
        library, check = "timm", export(classifier, "timm", folder, description, images)
    except UserError:
        weights = folder / _WEIGHTS
        library, check = "safetensors", export(classifier, "safetensors", weights, description, images)
        write_json(folder / "config.json", vars(description))
    source = classifier.subject.path
    record = Record() if is_by_name(source) else read_record(Path(source), description)
    card = write_card(repo, description, record, licence, library)
    replace_text(folder / "README.md", card)
    return library, check


def upload(folder: Path, repo: str, private: bool) -> str:
    """Upload `folder` to `repo`, which is made where it is missing; returns its address. Raises `UserError`.

    Where, and as whom, is the hub library's to know: HF_ENDPOINT, HF_TOKEN, `hf auth login`.
    """
    # Half a second to import: not for those who send nothing.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload by ffcv_train")
    except LocalTokenNotFoundError:
        raise UserError("the hub asks who you are; log in with: hf auth login, or set HF_TOKEN") from None
    except Exception as error:
        # Whatever the library's connection raises: its own errors, its HTTP client's, the system's.
        raise UserError(
            f"{_reason(error, repo)}; the folder stays in {folder}, upload it with: hf upload {repo} {folder}"
        ) from None
    return str(address)


def _reason(error: Exception, repo: str) -> str:
    """What went wrong; of a large file, the library chains what its store answered to an error that names the file."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return (
                f"the hub does not let you write to {repo} (status {status}); log in with a token that may: "
                "hf auth login"
            )
        return f"the hub refused {repo} (status {status})"
    words = " ".join(str(error).split())[:160] or type(error).__name__
    return f"cannot send {repo} to the hub ({words})"
