"""The imports of the server from which fresh processes are forked: a fork of it is fresh and starts
at once.
"""

from harness.checks import checkpoint  # noqa: F401
from harness.models import families, references  # noqa: F401
from harness.quantization import maps, quantize  # noqa: F401
from harness.quantization.context import quiet

with quiet():
    import modelopt.torch.opt
    import modelopt.torch.quantization
    import modelopt.torch.quantization.plugins.diffusion.diffusers  # noqa: F401
    import transformers.models.clip.modeling_clip  # noqa: F401
