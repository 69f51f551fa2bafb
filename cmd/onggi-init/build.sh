#!/bin/sh
# Builds onggi-init for one architecture: build.sh OUTPUT [COMPILER]
set -e
cd "$(dirname "$0")"
${2:-gcc} -Os -static -nostdlib -ffreestanding -fno-pic -no-pie -fno-stack-protector \
	-fno-asynchronous-unwind-tables -fcf-protection=none -fno-tree-loop-distribute-patterns \
	-fno-strict-aliasing -fwrapv -Wall -Wextra -Wno-unused-parameter \
	-Wl,--build-id=none,-z,norelro,-z,noexecstack,-z,noseparate-code -s -o "$1" init.c
objcopy --remove-section=.comment --remove-section=.note.gnu.property "$1"
