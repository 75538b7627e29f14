#!/usr/bin/env python3
"""Starts mach-serve with the production back end; arguments are its own: serve_production.py CHECKPOINT [FLAGS]."""

import os
import pathlib
import shutil
import sys

built = pathlib.Path(__file__).resolve().parent.parent / "target/release/mach-serve"
server = str(built) if built.exists() else shutil.which("mach-serve")
if server is None:
    sys.exit("mach-serve is not built: cargo build --release --bin mach-serve")
os.execv(server, [server, "--backend", "production", *sys.argv[1:]])
