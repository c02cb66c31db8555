"""Upload an export to the Hugging Face Hub."""

from pathlib import Path
from typing import Any

from jax_unlearn.runtime.errors import UserError


def check_repository(repository: str) -> None:
    """Check the name of a repository, and that there is a token, before any work is done.

    Raises:
        UserError: the name is not valid, or there is no token.
    """
    # Imported here, since only an upload needs it.
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub {repository}: {' '.join(str(error).split())}") from error
    if get_token() is None:
        raise UserError(
            f"--push-to-hub {repository}: there is no token of the Hugging Face Hub; run "
            "`hf auth login`, or set HF_TOKEN"
        )


def push(directory: Path, repository: str) -> str:
    """Upload a directory to a repository, which is created as a private one if it does not exist.

    Returns:
        Address of the repository.

    Raises:
        UserError: the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # The bases are the error of the HTTP client, whichever the library uses, and OSError.
    errors: tuple[type[Any], ...] = HfHubHTTPError.__bases__
    api = HfApi()
    try:
        url = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=directory, commit_message="Upload by jax-unlearn"
        )
    except errors as error:
        first = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"--push-to-hub {repository}: was not uploaded ({first}); {directory} is complete, "
            "upload it with `hf upload`"
        ) from error
    return str(url)
