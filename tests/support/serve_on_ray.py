"""Starts a small cluster of Ray and serves a file of Ray Serve on it, until a signal: `serve_on_ray.py FILE FOLDER`."""

from __future__ import annotations

import signal
import sys

import ray
from ray.serve import scripts

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config, folder = sys.argv[1:]
    # The processors that Ray counts are what replicas ask for, and need not be there.
    options = {"include_dashboard": False, "object_store_memory": 80_000_000, "log_to_driver": False}
    ray.init(num_cpus=8, _temp_dir=folder, logging_level="warning", **options)
    scripts.run.main([config], standalone_mode=False)
