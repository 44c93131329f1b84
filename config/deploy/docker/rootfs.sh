#!/bin/sh
# rootfs.sh BINARY DEST: a root folder in which BINARY runs as /usr/bin/NAME: itself, the libraries that it is linked to with their loader, the
# certificates of public authorities (object stores, sinks), and how names are looked up. No shell, no package manager.
set -eu
[ $# = 2 ] || { echo "usage: rootfs.sh BINARY DEST" >&2; exit 2; }
binary=$1
dest=$2

install -D -m 0755 "$binary" "$dest/usr/bin/$(basename "$binary")"
# `=> /path (0x…)` for libraries, `/path (0x…)` for the loader; what stands without a path is the kernel's.
ldd "$binary" | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// { print $1 }' | while read -r library; do
  install -D -m 0755 "$library" "$dest$library"
done
bundle=/etc/ssl/certs/ca-certificates.crt
[ -f "$bundle" ] || { echo "rootfs.sh: $bundle is missing: install the package ca-certificates" >&2; exit 1; }
install -D -m 0644 "$bundle" "$dest$bundle"
printf 'hosts: files dns\npasswd: files\n' > "$dest/etc/nsswitch.conf"
printf 'root:x:0:0:root:/:/sbin/nologin\nweir:x:65532:65532:weir:/:/sbin/nologin\n' > "$dest/etc/passwd"
printf 'root:x:0:\nweir:x:65532:\n' > "$dest/etc/group"
install -d -m 1777 "$dest/tmp"
