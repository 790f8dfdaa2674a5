"""The regression gate for quantized CLIP: what stands between a ModelOpt recipe and its branch.

One module a stage; ``harness.gate.gate`` joins them and ``harness.pytest_plugin.plugin`` shows them to pytest.
"""
