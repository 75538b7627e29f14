#!/usr/bin/env python3
"""Drives `mach chat` through a pseudo-terminal, as a person would: check.py MACH CHECKPOINT. Standard library only."""

import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import struct
import sys
import tempfile
import termios
import time
import fcntl

MACH, DEMO = (str(pathlib.Path(argument).resolve()) for argument in sys.argv[1:3])
CTRL_C, CTRL_D, UP, ENTER = "\x03", "\x04", "\x1b[A", "\r"
# Nearly random tokens, and seeds with which the answers to this are thousands of tokens long.
ASKED = "Tell me a story"
RAMBLING = ["--temperature", "2", "--top-k", "0", "--top-p", "1", "--seed", "4"]


class Terminal:
    """`mach chat` with a terminal of its own."""

    def __init__(self, checkpoint, *arguments, term="xterm"):
        self.seen, self.read_to = "", 0
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MACH_", "LME_"))}
        command = [MACH, "chat", str(checkpoint), "--threads", "1", *map(str, arguments)]
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(MACH, command, {**kept, "TERM": term})
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))

    def send(self, text):
        os.write(self.fd, text.encode())

    def more(self, seconds):
        """Reads what comes; whether something came."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        try:
            self.seen += os.read(self.fd, 65536).decode(errors="replace")
        except OSError:  # the other end is closed
            return False
        return True

    def expect(self, pattern, seconds=30):
        """Waits for a pattern behind the last one; what came until then."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen[self.read_to :])):
            if time.monotonic() > end or not self.more(max(0.01, end - time.monotonic())):
                raise AssertionError(f"{pattern!r} did not come: {self.seen[self.read_to:]!r} behind {self.seen[:self.read_to][-300:]!r}")
        before = self.seen[self.read_to :][: found.start()]
        self.read_to += found.end()
        return before

    def prompt(self):
        """Waits for the editor to ask for a line."""
        return self.expect(r"> (\x1b\[0m)?")

    def say(self, text):
        """Types a line, and gives what comes until the editor asks again: its own echo, then the answer."""
        self.send(text + ENTER)
        self.expect(r"\r?\n")
        return self.prompt()

    def ends(self):
        """Waits for the end; the exit code."""
        while self.more(30):
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "").replace("\n>", "\n").strip()


def check(name, condition, seen=""):
    print(f"{'ok   ' if condition else 'WRONG'} {name}")
    assert condition, (name, seen)


def stopping():
    chat = Terminal(DEMO, "--no-history", *RAMBLING)
    chat.prompt()
    chat.send(ASKED + ENTER)
    chat.expect(r"(?s)story.{200}")
    chat.send(CTRL_C)
    chat.expect(r"\(stopped after [0-9.]+ s\)", 10)
    chat.prompt()
    os.kill(chat.pid, 0)
    check("Ctrl-C stops an answer, not the program", True)
    check("what was stopped has no figures", "Nothing was answered" in chat.say("/stats"))
    chat.send("/regenerate" + ENTER)
    chat.expect(r"(?s)regenerate.{200}")
    chat.send(CTRL_C)
    chat.expect(r"\(stopped after", 10)
    chat.prompt()
    check("the next answer is stopped just so", True)
    chat.send("half a lin" + CTRL_C)
    cleared = chat.expect(r"Ctrl-D or /exit ends")
    chat.prompt()
    check("Ctrl-C at the prompt drops the line", "half a lin" in cleared)
    chat.send(CTRL_D)
    check("Ctrl-D ends, with exit code 0", chat.ends() == 0)


def talking(work):
    history, saved = work / "history", work / "chat.json"
    flags = ["--history", history, "--seed", "5", "--max-tokens", "24"]
    chat = Terminal(DEMO, *flags)
    chat.prompt()
    first = plain(chat.say("Helxx\x7f\x7flo"))
    check("a line can be edited", "Hello" in chat.seen and len(first) > 3, first)
    stats = chat.say("/stats")
    check("the first answer has the seed that was given", "seed     5" in stats, stats)
    second = chat.say("Write a binary search in Python")
    stats = chat.say("/stats")
    restored = re.search(r"(\d+) of them from the prefix cache", stats)
    check("the second turn restores the first", restored and int(restored.group(1)) >= 15 and "seed     6" in stats, stats)
    again = chat.say("/regenerate")
    check("an answer is regenerated with the next seed", "seed     7" in chat.say("/stats") and len(plain(again)) > 10, again)
    chat.send(f"/save {saved}{ENTER}")
    chat.expect("Saved to")
    chat.prompt()
    messages = json.loads(saved.read_text())["messages"]
    check("the conversation is saved", [m["role"] for m in messages] == ["user", "assistant"] * 2, messages)
    check("with the answer that stands", messages[1]["content"] in first and messages[3]["content"].split("\n")[0] in plain(again), messages)
    chat.say("/clear")
    chat.send("one\\" + ENTER + "two" + ENTER)
    chat.expect("two")
    chat.prompt()
    chat.send('"""' + ENTER + "three" + ENTER + ENTER + "four" + ENTER + '"""' + ENTER)
    chat.expect('four(?s:.*?)"""')
    chat.prompt()
    chat.send("\x1b[200~five\nsix\x1b[201~" + ENTER)
    chat.expect("six")
    chat.prompt()
    chat.say(f"/save {saved}")
    said = [m["content"] for m in json.loads(saved.read_text())["messages"] if m["role"] == "user"]
    check("messages of several lines: typed, fenced, pasted", said == ["one\ntwo", "three\n\nfour", "five\nsix"], said)
    chat.say("/system Be brief.")
    check("/system sets and shows", "Be brief." in chat.say("/system"))
    check("an unknown command says what helps", "/help" in chat.say("/nope") and "/save FILE" in chat.say("/help"))
    chat.send("/exit" + ENTER)
    check("/exit ends, with exit code 0", chat.ends() == 0)
    check("typed lines are kept for their owner", history.stat().st_mode & 0o077 == 0 and "binary search" in history.read_text())
    chat = Terminal(DEMO, *flags)
    chat.prompt()
    chat.send(UP * 2)
    chat.expect("/help")
    chat.send(CTRL_C)
    chat.prompt()
    chat.send(CTRL_D)
    check("and found again by the next chat", chat.ends() == 0)


def reasoning(work):
    """Answers begin inside the reasoning, and the demo never leaves it."""
    thinking = work / "thinking"
    shutil.copytree(DEMO, thinking, symlinks=True, ignore=shutil.ignore_patterns("train", "golden.json"))
    template = thinking / "chat_template.jinja"
    template.write_text(template.read_text() + "{%- if add_generation_prompt %}{{- '<think>\\n' }}{%- endif %}")
    for term, pattern in [("xterm", r"\x1b\[2m[^\x1b]+\x1b\[0m"), ("dumb", r"\(reasoning\)\r\n\w")]:
        chat = Terminal(thinking, "--no-history", "--max-tokens", "8", term=term)
        chat.prompt()
        seen = chat.say("Hello")
        check(f"reasoning is set apart on a terminal of kind {term}", re.search(pattern, seen), seen)
        check("without an escape code where it knows none", term != "dumb" or "\x1b" not in chat.seen, chat.seen)
        chat.send("/exit" + ENTER)
        assert chat.ends() == 0


def main():
    signal.alarm(300)
    with tempfile.TemporaryDirectory() as work:
        stopping()
        talking(pathlib.Path(work))
        reasoning(pathlib.Path(work))
    print("terminal: all checks passed")


if __name__ == "__main__":
    main()
