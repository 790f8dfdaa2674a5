"""Makes the gate's options, markers and fixtures known to pytest, wherever it is started from in
this repository.
"""

pytest_plugins = ["harness.pytest_plugin.plugin", "pytester"]
