"""Runs the sample DAG once where only the wheel is installed; prints how it ended, and whose code it was."""

import json
import runpy
import sys

import bqdispatch_provider

dag = runpy.run_path(sys.argv[1])["dag"]
dag.get_task("detect").timeout = 1
run = dag.test()
state = getattr(run.state, "value", run.state)
print(json.dumps({"state": state, "code": bqdispatch_provider.__file__, "version": bqdispatch_provider.__version__}))
