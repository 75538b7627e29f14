"""What is done to the server. Each part returns its figures; `wrong` counts what must not happen and names it."""

import errno
import pathlib
import random
import time

from server import Faults, Group, Server
from work import Hostile, Judge, Load, ask

STREAMING = ("--streaming", "--expert-cache-gb", "0.008", "--io", "pread")


class Report(dict):
    """Figures of a part."""

    def __init__(self, **figures):
        super().__init__(wrong=0, **figures)
        self.faults = []

    def must(self, holds, fault):
        if not holds:
            self["wrong"] += 1
            self.faults.append(fault)
            print(f"    WRONG: {fault}", flush=True)

    def answers(self, judge, cuts=True):
        """Adds the answers since the last time. Every one must be equal or refused with a reason; or cut, if `cuts`."""
        counts = self.setdefault("answers", {})
        for kind, count in judge.counts.items():
            counts[kind] = counts.get(kind, 0) + count
        bad = ["wrong", "mute"] + ([] if cuts else ["cut"])
        for text, count in judge.details.items():
            if text.startswith("refused"):
                reason = text if len(self.setdefault("reasons", {})) < 20 or text in self["reasons"] else "others"
                self["reasons"][reason] = self["reasons"].get(reason, 0) + count
            self.must(text.split(":")[0] not in bad, f"{count} x {text}")
        judge.reset()


def listed(cache):
    """Whole files of the cache: path and size."""
    return {path: path.stat().st_size for path in pathlib.Path(cache).rglob("*.seg") if "quarantine" not in path.parts}


def set_aside(cache):
    return [path for path in pathlib.Path(cache).rglob("*") if path.parent.name == "quarantine"]


def kills(judge, work, args):
    """kill -9 at random moments under load, on one cache directory. What was whole before is whole after; answers stay equal."""
    report, dice, cache = Report(kills=args.kills), random.Random(1), pathlib.Path(work) / "kills"
    slowest, before, hits = 0.0, {}, 0
    for i in range(args.kills):
        server = Server(work, *STREAMING, "--disk-kv-dir", cache)
        slowest = max(slowest, server.seconds)
        kept = listed(cache)
        lost = [path for path, size in before.items() if kept.get(path) != size]
        report.must(not lost, f"start {i}: {len(lost)} files that were whole are gone, {lost[:1]}")
        load = Load(judge, server.url, 4, i)
        time.sleep(0.1 + dice.random() * 0.9)
        if i % 10 == 9:
            hits += server.metrics().get("prefix_cache_hits_total", 0)
        report.must(server.alive(), f"round {i}: the server ended by itself")
        before = listed(cache)
        server.kill()
        load.stop()
        if i % 100 == 99:
            print(f"    {i + 1} kills, {dict(judge.counts)}", flush=True)
    report.answers(judge)
    server = Server(work, *STREAMING, "--disk-kv-dir", cache)
    wrong = judge.all(server.url)
    report.must(not wrong, f"after the last kill: requests {wrong} are answered otherwise")
    report.must(server.stop() == 0, "the server does not stop in order")
    left = [path for path in cache.rglob("*") if path.name.startswith("tmp-")]
    report.must(not left, f"temporary files stay: {left}")
    report.must(not set_aside(cache), f"files were damaged: {set_aside(cache)[:2]}")
    report.must(listed(cache), "nothing was ever saved: the test shows nothing")
    report.must(hits > 0, "nothing was ever restored: the test shows nothing")
    report.update(slowest_start_s=round(slowest, 2), files=len(listed(cache)), restored_in_a_tenth=int(hits))
    return report


DISKS = {
    # name: (faults, what they are for, whether every answer must come)
    "experts: EIO, one in 40": (dict(fail_read_every=40), "experts", False),
    "experts: half of what was asked for": (dict(short_read_every=2), "experts", True),
    "experts: the file ends early, one in 60": (dict(end_read_every=60), "experts", False),
    "experts: a bit flipped, one in 50": (dict(flip_every=50), "experts", False),
    "experts: 30 ms, one in 5": (dict(slow_every=5, slow_ms=30), "experts", True),
    "cache: disk full": (dict(fail_write_every=1, write_errno=errno.ENOSPC), "cache", True),
    "cache: disk full now and then": (dict(fail_write_every=3, write_errno=errno.ENOSPC), "cache", True),
    "cache: writes EIO": (dict(fail_write_every=2, write_errno=errno.EIO), "cache", True),
    "cache: flushes EIO": (dict(fail_sync_every=1, sync_errno=errno.EIO), "cache", True),
    "cache: reads EIO": (dict(fail_read_every=2), "cache", True),
    "cache: reads end early": (dict(end_read_every=3), "cache", True),
    "cache: a bit flipped, one read in 3": (dict(flip_every=3), "cache", True),
    "cache: 100 ms a call": (dict(slow_every=1, slow_ms=100), "cache", True),
}


def disks(judge, work, args):
    """Full, slow and failing disks, below the experts and below the cache, under load; then the disk is well again."""
    report = Report()
    for number, (name, (values, where, answered)) in enumerate(DISKS.items()):
        cache = pathlib.Path(work) / f"disk-{number}"
        faults = Faults(work, "expert_sidecar" if where == "experts" else cache)
        # A cache in memory that holds next to nothing, so that the one on disk is used.
        small = ("--prefix-cache-max-entries", "2")
        server = Server(work, *STREAMING, *small, "--disk-kv-dir", cache, environment=faults.environment())
        load = Load(judge, server.url, 4, name)
        time.sleep(1)
        faults.set(**values)
        time.sleep(args.seconds)
        injected = faults.get("injected")
        faults.calm()
        load.stop()
        refused = judge.counts["refused"]
        report.answers(judge, cuts=False)
        report.must(not (answered and refused), f"{name}: {refused} requests were refused")
        report.must(server.alive(), f"{name}: the server ended by itself")
        wrong = judge.all(server.url)
        report.must(not wrong, f"{name}: requests {wrong} are answered otherwise afterwards")
        report.must(server.stop() == 0, f"{name}: the server does not stop in order")
        again = Server(work, *STREAMING, "--disk-kv-dir", cache)
        wrong = judge.all(again.url)
        report.must(not wrong, f"{name}: a new server answers requests {wrong} otherwise")
        report.must(again.stop() == 0, f"{name}: the new server does not stop in order")
        report.must(injected > 0, f"{name}: nothing was injected, the test shows nothing")
        report[name] = {"injected": injected, "refused": refused}
        print(f"    {name}: {report[name]}", flush=True)
    return report


def sweep(judge, work, args):
    """Each read of a request in turn fails, ends early, brings another bit or half: the same answer, or an error with a reason."""
    faults = Faults(work, "expert_sidecar")
    report = Report()
    server = Server(work, *STREAMING, "--no-prefix-cache", environment=faults.environment())

    def run(number, **fault):
        """Asks with a fault; returns the outcome and how many reads there were."""
        faults.calm()
        faults.set(reads=0, injected=0, **fault)
        found = ask(server.url, judge.bodies[number], False)
        done = faults.get("injected"), faults.get("reads")
        faults.calm()
        if isinstance(found, str):
            return "equal" if found == judge.quiet[number] else "wrong", *done
        return ("error" if found.kind == "refused" and found.detail[:2] == "50" else found.kind), *done

    # The longest prompt, then a request that decodes: the bank has fewer slots than there are experts.
    for number in (7, 1):
        reads = max(run(number)[2] for _ in range(3))
        report.must(reads > 0, f"request {number} reads nothing")
        step = max(1, reads // args.sweep)
        for kind in ("fail_read_at", "end_read_at", "flip_at", "short_read_at"):
            outcomes = {}
            for at in range(1, reads + 1, step):
                outcome, injected, _ = run(number, **{kind: at})
                if not injected:
                    # Answers read more or less, by what the bank holds.
                    continue
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
                good = ("equal",) if kind == "short_read_at" else ("equal", "error")
                report.must(outcome in good, f"{kind} {at} of request {number}: {outcome}")
                report.must(run(number)[0] == "equal", f"the request after {kind} {at} of request {number}")
            report[f"{kind}, request {number} of {reads} reads"] = outcomes
            report.must(outcomes, f"{kind}: nothing was injected")
            print(f"    {kind}, {reads} reads: {outcomes}", flush=True)
    report.must(server.stop() == 0, "the server does not stop in order")
    return report


def memory(judge, work, args):
    """A control group that gives little more than the budget, under load and large bodies: nothing is killed, answers are equal."""
    report, group = Report(), Group("mach-chaos")
    if group.made:
        report["skipped"] = f"no control group: {group.made}"
        return report
    mib = 1 << 20
    least = 0
    try:
        # The least budget that starts: what is refused is refused with numbers.
        low, high = 16, 1024
        while high - low > 4:
            middle = (low + high) // 2
            try:
                Server(work, "--streaming", "--memory-gb", middle * mib / 1e9, "--no-prefix-cache").stop()
                high = middle
            except RuntimeError as error:
                report.must("exit code 2" in str(error), f"{middle} MiB: {error}")
                low = middle
        least = high
        worst = 0.0
        for i in range(args.budgets):
            budget = int(least * mib * (1 + 1.5 * i / args.budgets))
            group.limit(int(budget * 1.05))
            before = group.kills()
            cache = pathlib.Path(work) / f"memory-{i}"
            server = Server(work, "--streaming", "--memory-gb", budget / 1e9, "--disk-kv-dir", cache, group=group)
            load = Load(judge, server.url, 8, i)
            hostile = Hostile(server.url)
            time.sleep(args.seconds)
            load.stop()
            answered = hostile.stop()
            report["hostile"] = {k: report.get("hostile", {}).get(k, 0) + n for k, n in answered.items()}
            bad = [status for status in answered if status not in ("400", "413", "429", "503", "reset")]
            report.must(not bad, f"{budget // mib} MiB: large bodies are answered with {bad}")
            alive = server.alive()
            report.must(alive, f"{budget // mib} MiB: the server ended by itself")
            if alive:
                worst = max(worst, server.memory()[1] / budget)
                report.must(server.stop() == 0, f"{budget // mib} MiB: the server does not stop in order")
            report.must(group.kills() == before, f"{budget // mib} MiB: the kernel killed the server")
            report.answers(judge, cuts=False)
    finally:
        group.remove()
    report.update(budgets=args.budgets, least_mib=least, most_mib=budget // mib, peak_of_budget=round(worst, 3))
    return report


def clock(judge, work, args):
    """The wall clock jumps by up to ten years, twenty times a second."""
    report, cache = Report(), pathlib.Path(work) / "clock"
    faults = Faults(work, "nothing")
    server = Server(work, *STREAMING, "--disk-kv-dir", cache, environment=faults.environment())
    load, dice, jumps = Load(judge, server.url, 4, "clock"), random.Random(2), 0
    end = time.monotonic() + 2 * args.seconds
    while time.monotonic() < end:
        faults.set(clock_seconds=dice.choice([-1, 1]) * int(10 ** dice.uniform(0, 8.5)))
        jumps += 1
        time.sleep(0.05)
    load.stop()
    report.answers(judge, cuts=False)
    report.must(report["answers"].get("refused", 0) == 0, "requests were refused")
    report.must(server.stop() == 0, "the server does not stop in order")
    faults.calm()
    server = Server(work, *STREAMING, "--disk-kv-dir", cache)
    wrong = judge.all(server.url)
    report.must(not wrong, f"with the clock right again: requests {wrong} are answered otherwise")
    report.must(server.stop() == 0, "the server does not stop in order")
    report["jumps"] = jumps
    return report


def clients(judge, work, args):
    """Many clients for long, of which a tenth leave in the middle: nothing grows, nothing stays behind."""
    report, cache = Report(clients=args.clients, minutes=args.minutes), pathlib.Path(work) / "clients"
    server = Server(work, *STREAMING, "--disk-kv-dir", cache, "--max-queue", args.clients, "--prefix-cache-max-gb", 0.03)
    judge.all(server.url)
    load = Load(judge, server.url, args.clients, "clients", leave=0.1)
    seconds, samples = 60 * args.minutes, []
    for i in range(12):
        time.sleep(seconds / 12)
        report.must(server.alive(), "the server ended by itself")
        samples.append(server.memory()[0])
        print(f"    {(i + 1) * seconds / 12:.0f} s: {samples[-1] >> 20} MiB, {dict(judge.counts)}", flush=True)
    load.stop()
    report.answers(judge, cuts=False)
    report.must(report["answers"].get("refused", 0) == 0, "requests were refused")
    time.sleep(2)
    metrics = server.metrics()
    for name in ("num_requests_running", "num_requests_waiting", "num_sequences_paused"):
        report.must(metrics[name] == 0, f"{name} is {metrics[name]} at the end")
    _, most, handles = server.memory()
    budget = server.fact("budget_bytes")
    report.must(most <= 1.05 * budget, f"{most} bytes at most, the budget is {budget}")
    # The last third beside the one before it: what still grows then, leaks.
    middle, end = sorted(samples[4:8])[2], sorted(samples[8:])[2]
    report.must(end <= middle + (8 << 20) or end <= 1.02 * middle, f"memory grows: {middle} to {end} bytes")
    report.must(handles < 200, f"{handles} files and connections are open at the end")
    wrong = judge.all(server.url)
    report.must(not wrong, f"requests {wrong} are answered otherwise at the end")
    report.must(server.stop() == 0, "the server does not stop in order")
    report.update(peak_of_budget=round(most / budget, 3), mib=[s >> 20 for s in samples], handles=handles)
    return report


PARTS = {"kills": kills, "disks": disks, "sweep": sweep, "memory": memory, "clock": clock, "clients": clients}


def quiet_judge(work, count):
    """A judge over the answers of a server that holds everything in memory, has no cache and drafts nothing."""
    server = Server(work, "--no-streaming", "--no-prefix-cache", "--decode-path", "target-only")
    judge = Judge(server.url, count)
    assert server.stop() == 0
    return judge
