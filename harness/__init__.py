"""The regression gate for quantized CLIP: what stands between a ModelOpt recipe and its branch.

One module a stage; ``harness.gate`` joins them and ``harness.plugin`` shows them to pytest.
"""
