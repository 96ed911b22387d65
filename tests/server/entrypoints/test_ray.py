"""The settings of replicas on Ray Serve, and the file in server/deploy. tests/faults/test_ray.py starts replicas."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

import pytest
import yaml
from deployment import DEPLOY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="pip install 'sidelight[ray]'"),
]

# In a process of its own: Ray warns when it is imported, and starts threads.
SCRIPT = """
import json, sys
from ray._common.utils import import_attr
from ray.serve.schema import ServeDeploySchema
from sidelight.server.settings import SettingsError

config, *all_args = json.load(sys.stdin)
schema = ServeDeploySchema.model_validate(config)
for function in schema.grpc_options.grpc_servicer_functions:
    assert callable(import_attr(function))
(application,) = schema.applications
build = import_attr(application.import_path)
(deployment,) = application.deployments
answers = []
for args in [application.args, *all_args]:
    try:
        answers.append(build(args)._bound_deployment.name)
    except SettingsError as error:
        answers.append(str(error))
print(json.dumps([deployment.name, *answers]))
"""

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such setting": ({"insecure": True, "slots": 3}, "args.slots is no setting"),
    "a setting that is up to Ray": ({"insecure": True, "tls_cert": "a.pem"}, "args.tls_cert is up to Ray"),
    "a wrong value": ({"insecure": True, "max_slots": "many"}, "max_slots must be a whole number"),
    "open sockets": ({}, "say insecure = true"),
    "a wrong value of a model": ({"insecure": True, "models": {"a": {"path": "/a", "dtype": "x"}}}, "models.a.dtype"),
}


def test_the_file_names_what_there_is_and_wrong_settings_are_refused():
    config = yaml.safe_load((DEPLOY / "ray-serve.yaml").read_text())
    stdin = json.dumps([config, *(args for args, _ in WRONG.values())])
    run = subprocess.run([sys.executable, "-c", SCRIPT], input=stdin, capture_output=True, text=True, cwd="/")
    assert run.returncode == 0, run.stderr
    name, built, *errors = json.loads(run.stdout)
    assert name == built
    for error, (_, expected) in zip(errors, WRONG.values(), strict=True):
        assert expected in error
