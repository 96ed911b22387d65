#!/bin/sh
# Starts Sidelight in a container, with the kernels that the image was built with.
#
# The libraries that read these kernels write new kernels into the same folder. So this folder may be a volume, which
# begins empty, and gets copies of the kernels.
set -eu
for kernels in /opt/sidelight/cache/*; do
  copy=/var/cache/sidelight/${kernels##*/}
  if [ -d "$kernels" ] && [ ! -e "$copy" ]; then
    rm -rf "$copy.new"
    cp -r "$kernels" "$copy.new"
    mv "$copy.new" "$copy"
  fi
done
exec sidelight "$@"
