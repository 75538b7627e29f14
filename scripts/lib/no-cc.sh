#!/bin/sh
# Stands in for a C compiler where code is only type-checked: makes the empty file that `-o` names. Nothing that it
# "compiles" is ever linked.
while [ $# -gt 0 ]; do
    case $1 in
    -E) echo '#pragma message "clang"' ;; # build scripts preprocess a probe to learn which compiler this is
    '-?') exit 1 ;;                       # asks whether this is the compiler of Windows
    -o)
        shift
        : >"$1"
        ;;
    esac
    shift
done
