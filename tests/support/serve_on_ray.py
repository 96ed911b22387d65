"""Serves a file of Ray Serve on a cluster of this machine, until a signal: `serve_on_ray.py FILE ADDRESS`."""

from __future__ import annotations

import signal
import sys

import ray
from ray.serve import scripts

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config, address = sys.argv[1:]
    ray.init(address, namespace="serve", logging_level="warning", log_to_driver=False)
    scripts.run.main([config], standalone_mode=False)
