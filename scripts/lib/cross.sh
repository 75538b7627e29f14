# Shared by the cross-building scripts; sourced, not run. Expects `set -euo pipefail` and the repository's root as the
# working directory.

# Ends the script well: the step cannot run on this machine, which is not a fault of the code.
skip() {
    echo "SKIPPED: $*"
    exit 0
}

# Runs a command as the superuser, if this user may.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo -n "$@"; else return 1; fi
}

# Installs Debian packages that are not installed yet.
apt_install() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    command -v apt-get >/dev/null || skip "needs ${missing[*]}, and there is no apt-get here"
    as_root apt-get update -qq >/dev/null 2>&1 || true
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
        skip "cannot install ${missing[*]}"
}

# The mirror of the Debian archive that this machine's own apt sources name.
debian_mirror() {
    apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk '$1 == "Debian" { print $2; exit }'
}

# Puts the standard library's sources for this very rustc into $1 and prints their `library` directory. They are
# taken from Debian, whose rust-src package is the source of the release with the same number.
fetch_rust_src() {
    local cache=$1 version mirror keyring suite package
    version=$(rustc --version | awk '{ print $2 }')
    local library=$cache/usr/src/rustc-$version/library
    if [ ! -f "$library/std/Cargo.toml" ]; then
        command -v apt-get >/dev/null || return 1
        mirror=$(debian_mirror)
        if [ -z "$mirror" ]; then
            as_root apt-get update -qq >/dev/null 2>&1 || true
            mirror=$(debian_mirror)
        fi
        keyring=/usr/share/keyrings/debian-archive-keyring.gpg
        [ -n "$mirror" ] && [ -f "$keyring" ] || return 1
        for suite in trixie-backports trixie forky sid; do
            local state=$cache/apt-$suite
            mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
            : >"$state/status"
            echo "deb [signed-by=$keyring] $mirror $suite main" >"$state/sources.list"
            local apt=(apt-get -qq -o "Dir::State=$state" -o "Dir::State::Lists=$state/lists"
                -o "Dir::State::status=$state/status" -o "Dir::Cache=$state/cache"
                -o "Dir::Etc::SourceList=$state/sources.list" -o Dir::Etc::SourceParts=/dev/null
                -o APT::Sandbox::User=root)
            "${apt[@]}" update >/dev/null 2>&1 || continue
            package=$(apt-cache "${apt[@]:2}" madison rust-src 2>/dev/null |
                awk -v v="$version" '$3 ~ "^" v "[+-]" { print $3; exit }')
            [ -n "$package" ] || continue
            (cd "$state" && "${apt[@]}" download "rust-src=$package" >/dev/null 2>&1) || continue
            dpkg -x "$state"/rust-src_*.deb "$cache" && rm -rf "$state" && break
        done
    fi
    [ -f "$library/std/Cargo.toml" ] || return 1
    echo "$library"
}

# Makes a standard library for target $1 available: sets the array `std_flags` for cargo and exports what cargo needs
# to build it. Nothing to do where the toolchain brings it.
prepare_std() {
    local target=$1 library
    std_flags=()
    if ls "$(rustc --print target-libdir --target "$target")"/libstd-*.rlib >/dev/null 2>&1; then return; fi
    # build-std is an unstable feature of cargo: this variable allows it, and with it unstable features of the
    # language. That is why the stable build of the same sources, a step of its own, stays the gate.
    export RUSTC_BOOTSTRAP=1
    std_flags=(-Zbuild-std)
    if [ ! -f "$(rustc --print sysroot)/lib/rustlib/src/rust/library/std/Cargo.toml" ]; then
        library=$(fetch_rust_src "$PWD/target/cross/rust-src") ||
            skip "no standard library for $target, and no source of it for $(rustc --version)"
        export __CARGO_TESTS_ONLY_SRC_ROOT=$library
    fi
}
