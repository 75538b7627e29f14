"""The server under test, faults that are put under it, and a control group of memory around it."""

import contextlib
import mmap
import os
import pathlib
import re
import signal
import struct
import subprocess
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARIES = ROOT / "target" / "release"
DEMO = ROOT / "demo"


class Faults:
    """A page that `faults.c` reads while the server runs."""

    FIELDS = (
        "reads writes syncs fail_read_every fail_read_at short_read_every short_read_at end_read_every end_read_at "
        "flip_every flip_at slow_every slow_ms fail_write_every write_errno fail_sync_every sync_errno clock_seconds injected"
    ).split()
    COUNTS = {"reads", "writes", "syncs", "injected"}

    def __init__(self, directory, path):
        """Faults for files whose path contains `path`."""
        self.library = build(directory)
        self.file = pathlib.Path(tempfile.mkstemp(dir=directory, prefix="faults-")[1])
        self.file.write_bytes(bytes(4096))
        with self.file.open("r+b") as file:
            self.page = mmap.mmap(file.fileno(), 4096)
        self.path = str(path)

    def environment(self):
        return {"LD_PRELOAD": str(self.library), "FAULTS_PAGE": str(self.file), "FAULTS_PATH": self.path}

    def set(self, **values):
        for name, value in values.items():
            struct.pack_into("<q", self.page, 8 * self.FIELDS.index(name), value)

    def get(self, name):
        return struct.unpack_from("<q", self.page, 8 * self.FIELDS.index(name))[0]

    def calm(self):
        self.set(**{name: 0 for name in self.FIELDS if name not in self.COUNTS})


def build(directory):
    library = pathlib.Path(directory) / "faults.so"
    if not library.exists():
        source = pathlib.Path(__file__).with_name("faults.c")
        subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


class Group:
    """A control group with a limit of memory, of the first or the second version; `made` is why there is none."""

    def __init__(self, name):
        self.made, self.path = None, None
        for root, second in ((pathlib.Path("/sys/fs/cgroup/memory"), False), (pathlib.Path("/sys/fs/cgroup"), True)):
            if second and not (root / "cgroup.controllers").exists():
                continue
            try:
                path = root / name
                path.mkdir()
            except OSError as error:
                self.made = str(error)
                continue
            limit = path / ("memory.max" if second else "memory.limit_in_bytes")
            if not limit.exists():
                self.made = f"{root} does not control memory"
                path.rmdir()
                continue
            self.path, self.limit_file, self.second, self.made = path, limit, second, None
            return
        self.made = self.made or "there are no control groups here"

    def limit(self, size):
        self.limit_file.write_text(str(size))

    def kills(self):
        text = (self.path / ("memory.events" if self.second else "memory.oom_control")).read_text()
        return int(re.search(r"^oom_kill (\d+)", text, re.M)[1])

    def peak(self):
        file = self.path / ("memory.peak" if self.second else "memory.max_usage_in_bytes")
        return int(file.read_text()) if file.exists() else 0

    def remove(self):
        if self.path:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def enter(self):
        """For the child, before it becomes the server."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))


class Server:
    """mach-serve on the demo, on a free port."""

    def __init__(self, directory, *arguments, environment=None, group=None, timeout=60):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MACH_", "LME_", "FAULTS_"))}
        self.log = pathlib.Path(directory) / "log"
        command = [BINARIES / "mach-serve", DEMO, "--port", "0", "--log-level", "warn", *arguments]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdout=subprocess.PIPE, stderr=log, text=True,
                env={**kept, **(environment or {})}, preexec_fn=group.enter if group else None,
            )  # fmt: skip
        self.lines, self.url, self.ready = [], None, threading.Event()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        started = time.monotonic()
        while not self.ready.wait(0.05):
            if self.process.poll() is not None or time.monotonic() - started > timeout:
                code = self.process.poll()
                self.kill()
                raise RuntimeError(f"the server did not start (exit code {code}): {self.log.read_text()[-2000:]}")
        self.seconds = time.monotonic() - started

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.match(r"startup listening url=(\S+)", line):
                self.url = found[1]
            if line.startswith("startup ready"):
                self.ready.set()
        self.process.stdout.close()

    def fact(self, name):
        """The number behind `name=` in a startup line."""
        for line in self.lines:
            if found := re.search(rf"\b{name}=(\d+)", line):
                return int(found[1])
        raise KeyError(name)

    def alive(self):
        return self.process.poll() is None

    def memory(self):
        """Resident bytes now and at most, and open files."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        now, most = (int(re.search(rf"{key}:\s+(\d+)", status)[1]) * 1024 for key in ("VmRSS", "VmHWM"))
        return now, most, len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def metrics(self):
        text = urllib.request.urlopen(self.url + "/metrics", timeout=30).read().decode()
        return {name: float(value) for name, value in re.findall(r"^mach_(\w+) ([0-9.e+]+)$", text, re.M)}

    def kill(self):
        if self.alive():
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.reader.join()

    def stop(self):
        """An orderly stop; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError("the server did not stop within 90 s") from None
        self.reader.join()
        return code
