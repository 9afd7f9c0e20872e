"""The work tree that a topology file lies in, read without git. Edge."""

from __future__ import annotations

import contextlib
from pathlib import Path


def labels(directory: Path) -> dict[str, str]:
    """``clab-git-branch`` and ``clab-git-hash`` inside a git work tree on a branch with a commit, else {}."""
    for folder in (directory, *directory.parents):
        git = folder / ".git"
        with contextlib.suppress(OSError, ValueError, IndexError):
            if git.is_file():  # a linked work tree
                git = (folder / git.read_text(encoding="utf-8").partition("gitdir:")[2].strip()).resolve()
            if git.is_dir():
                return _labels(git)
    return {}


def _labels(git: Path) -> dict[str, str]:
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref: refs/heads/"):
        return {}
    reference = head.removeprefix("ref: ")
    commons = git / "commondir"
    common = (git / commons.read_text(encoding="utf-8").strip()).resolve() if commons.is_file() else git
    commit = ""
    for base in (git, common):
        if (base / reference).is_file():
            commit = (base / reference).read_text(encoding="utf-8").strip()
            break
    else:
        with contextlib.suppress(OSError):
            for line in (common / "packed-refs").read_text(encoding="utf-8").splitlines():
                if line.endswith(f" {reference}"):
                    commit = line.split()[0]
    branch = reference.removeprefix("refs/heads/")
    return {"clab-git-branch": branch, **({"clab-git-hash": commit[:7]} if commit else {})}
