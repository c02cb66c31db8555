"""Checkpoints on the Hugging Face hub: download the files that are needed, into its cache."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Literal

from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.text_files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Config of a checkpoint of OpenCLIP.
OPEN_CONFIG = "open_clip_config.json"
# ORGANISATION/NAME, with @REVISION: a branch, a tag or a commit.
ID = re.compile(r"(?P<repository>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w][\w./-]*))?")
# Configs, tokenizer, chat template and card; not those in folders, which are of other formats.
SMALL = ("*.json", "*.txt", "*.jinja", "tokenizer.model", "README.md", "LICENSE*")
FOLDERS = "*/*"
# Part of the keys of the tower in a full model, by which its shards are found in the index.
VISION = "visual."

Weights = Literal["none", "vision", "all"]


def hub_id(checkpoint: str | Path) -> re.Match[str] | None:
    """The parts of a hub id such as `Qwen/Qwen3-VL-2B-Instruct@main`; None for a local path."""
    return None if Path(checkpoint).exists() else ID.fullmatch(str(checkpoint))


def pinned(checkpoint: Path) -> Path:
    """A hub id with the commit that its revision stands for now; a local path is unchanged.

    Raises:
        UserError: see `local_checkpoint`.
    """
    if not (found := hub_id(checkpoint)):
        return checkpoint
    commit = local_checkpoint(checkpoint, "none").name
    return Path(f"{found['repository']}@{commit}")


@lru_cache
def local_checkpoint(checkpoint: str | Path, weights: Weights = "vision") -> Path:
    """The local directory of a checkpoint; for a hub id, its snapshot in the hub's cache.

    Cache, token, endpoint and offline mode are those of huggingface_hub (`HF_HOME`, `HF_TOKEN`,
    `HF_ENDPOINT`, `HF_HUB_OFFLINE`).

    Args:
        checkpoint: a directory, or ORGANISATION/NAME or ORGANISATION/NAME@REVISION on the hub. A
            directory of that name goes first.
        weights: the weights to download. `vision`: of a sharded model, the shards with the vision
            tower.

    Raises:
        UserError: there is neither such a directory nor such a repository or revision, access to it
            is restricted, or the hub cannot be reached and the cache does not have the files.
    """
    if not (found := hub_id(checkpoint)):
        check_regular(Path(checkpoint))
        return Path(checkpoint)
    repository, revision = found["repository"], found["revision"]
    directory = download(repository, revision, SMALL)
    if weights == "none":
        return directory
    if (directory / INDEX).is_file():
        return download(repository, revision, shards_of(directory / INDEX, weights))
    single = "*.safetensors" if (directory / OPEN_CONFIG).is_file() else SINGLE
    return download(repository, revision, (single,))


def check_regular(directory: Path) -> None:
    """Refuse a directory with a pipe or a device, which whoever reads it would wait for.

    Raises:
        UserError: it has one; names it.
    """
    for entry in directory.iterdir() if directory.is_dir() else ():
        if entry.exists() and not (entry.is_file() or entry.is_dir()):
            raise UserError(f"{entry}: is not a regular file; remove it")


def cached_checkpoint(checkpoint: Path) -> Path:
    """The snapshot of a hub id in the cache, without asking the hub; else the path itself."""
    if not (found := hub_id(checkpoint)):
        return checkpoint
    # Imported here because local checkpoints do not need it.
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(found["repository"], "config.json", revision=found["revision"])
    return Path(cached).parent if isinstance(cached, str) else checkpoint


def shards_of(index: Path, weights: Weights) -> tuple[str, ...]:
    """Names of the shards to download; all of them if the keys have no known prefix."""
    try:
        places = dict(read_json(index)["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index}: is not an index ({error!r})") from error
    vision = {name for key, name in places.items() if VISION in key}
    return tuple(sorted(vision if vision and weights == "vision" else set(places.values())))


@lru_cache
def download(repository: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """Download the files that match, without those in folders, and return the snapshot.

    Raises:
        UserError: see `local_checkpoint`.
    """
    # Imported here because local checkpoints do not need it.
    from huggingface_hub import errors, snapshot_download

    name = f"{repository}@{revision}" if revision else repository
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=FOLDERS,
                library_name="jax_unlearn",
            )
        )
    except errors.GatedRepoError as error:
        why = "access is restricted; accept its terms on the hub and log in (`hf auth login`)"
        raise UserError(f"{name}: {why}") from error
    except errors.RevisionNotFoundError as error:
        why = f"the repository has no revision {revision or 'main'!r}"
        raise UserError(f"{name}: {why}; see its branches and tags on the hub") from error
    except errors.RepositoryNotFoundError as error:
        why = "no such directory, and no such repository on the hub, or it is private"
        cure = "check the name, or log in (`hf auth login`)"
        raise UserError(f"{name}: {why}; {cure}") from error
    except errors.LocalEntryNotFoundError as error:
        why = "no such directory, the hub cannot be reached, and its cache does not have the files"
        cure = "connect, unset HF_HUB_OFFLINE, or download it beforehand (`hf download`)"
        raise UserError(f"{name}: {why}; {cure}") from error
    except (OSError, errors.HTTPError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"{name}: cannot be downloaded ({text})") from error
