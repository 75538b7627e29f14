# Sourced: starts mach-serve on the demo checkpoint and waits until it is ready. Sets `work` (a temporary directory, removed
# at the end), `server` (its process id) and `url`. Arguments are those of the server.
# What a server writes when it ends is gone before its directory is.
stop_servers() {
    kill "$@" 2>/dev/null || true
    wait "$@" 2>/dev/null || true
    rm -rf "$work"
}

start_server() {
    cargo build --release --bin mach-serve
    work=$(mktemp -d)
    trap 'stop_servers "$server"' EXIT
    target/release/mach-serve demo --no-streaming --port 0 --disk-kv-dir "$work/kv" --response-store-dir "$work/store" "$@" >"$work/out" 2>"$work/log" &
    server=$!
    local tries
    for tries in $(seq 300); do
        grep -q '^startup ready' "$work/out" && break
        kill -0 "$server" 2>/dev/null || break
        sleep 0.2
    done
    if ! grep -q '^startup ready' "$work/out"; then
        echo "the server did not become ready:"
        cat "$work/log"
        exit 1
    fi
    url=$(sed -n 's/^startup listening url=\([^ ]*\).*/\1/p' "$work/out")
}
