"""What the comparison scripts share."""

import datetime
import os
import pathlib
import statistics
import subprocess

MASK = (1 << 64) - 1


def token_ids(seed, count, vocab):
    """The ids that `mach bench` makes: SplitMix64 from `seed`, each word modulo `vocab`."""
    ids = []
    for i in range(1, count + 1):
        z = (seed + i * 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        ids.append((z ^ (z >> 31)) % vocab)
    return ids


def evict(path):
    """Drops a file, or every file of a directory, from the page cache, so that no run profits from another's reads
    and none is charged for another's pages."""
    if not hasattr(os, "posix_fadvise"):
        return
    path = pathlib.Path(path)
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fdatasync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def median(values):
    return statistics.median(values) if values else 0.0


def drift(first, last):
    """Relative difference of two figures."""
    return abs(last - first) / first if first else float("inf")


def revision():
    """Commit of this checkout, marked if its tracked files are changed."""
    here = pathlib.Path(__file__).resolve().parent

    def git(*words):
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True)

    commit = git("rev-parse", "HEAD")
    if commit.returncode != 0:
        return None
    clean = git("status", "--porcelain", "--untracked-files=no").stdout.strip() == ""
    return commit.stdout.strip() + ("" if clean else "+changes")


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
