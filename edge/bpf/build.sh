#!/bin/sh
# Builds edge.bpf.o with the pinned compiler. The object is committed, so that users need stable Rust only.
#   build.sh          writes edge.bpf.o
#   build.sh --check  builds into a temporary directory and fails if the committed object differs by one byte
# Reproducible: relative source names, no directory in the debug information, and the same compiler everywhere.
set -eu
cd "$(dirname "$0")"
CLANG=${CLANG:-clang-19}
STRIP=${LLVM_STRIP:-llvm-strip-19}
for tool in "$CLANG" "$STRIP"; do
	command -v "$tool" >/dev/null || { echo "build.sh: $tool not found; apt-get install clang-19 llvm-19" >&2; exit 2; }
done

build() { # into $1
	"$CLANG" -target bpf -mcpu=v3 -O2 -g -Wall -Wextra -Werror -Wno-unused-parameter \
		-fdebug-compilation-dir=. -c edge.bpf.c -o "$1"
	"$STRIP" -g "$1"
}

case "${1:-}" in
"") build edge.bpf.o ;;
--check)
	out=$(mktemp -d)
	trap 'rm -rf "$out"' EXIT
	build "$out/edge.bpf.o"
	cmp "$out/edge.bpf.o" edge.bpf.o || { echo "build.sh: edge.bpf.o is not what edge.bpf.c builds; run edge/bpf/build.sh" >&2; exit 1; }
	echo "edge.bpf.o: as committed" ;;
*) echo "usage: build.sh [--check]" >&2; exit 2 ;;
esac
