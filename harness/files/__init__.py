"""The one gateway through which everything that a user names is read.

A path from a command line, a configuration or an index is untrusted input: it may be a pipe that
never ends, a device, a folder, a link to nowhere, terabytes of zeros, or text in no encoding.
Whatever it is, the functions here return usable content or raise one
:class:`~harness.errors.UsageError` that names the file, the place in it, what is wrong and the fix.
No other module under ``harness`` opens such a path.

Files are opened without waiting (a named pipe without a writer would block for ever), their type is
read from the open descriptor, and sizes are bounded before and while they are read: files below
``/proc`` say that they are empty.
"""

from harness.files.content import opened, read_bytes, read_lines, read_text, write_whole
from harness.files.fitting import validate_python
from harness.files.json_text import read_json, validate_json
from harness.files.limits import (
    GIB,
    KIB,
    MAX_ANNOTATIONS,
    MAX_CONFIG,
    MAX_INDEX,
    MAX_MEASURED,
    MAX_PICTURE,
    MAX_TOKENIZER,
    MIB,
)
from harness.files.messages import shown
from harness.files.paths import (
    exists,
    expand,
    folder,
    is_file,
    is_folder,
    names,
    regular_file,
)
from harness.files.yaml_text import (
    NotYamlError,
    PlaceOf,
    YamlLimitError,
    load_documents,
    read_yaml_with_places,
)

__all__ = [
    "GIB",
    "KIB",
    "MAX_ANNOTATIONS",
    "MAX_CONFIG",
    "MAX_INDEX",
    "MAX_MEASURED",
    "MAX_PICTURE",
    "MAX_TOKENIZER",
    "MIB",
    "NotYamlError",
    "PlaceOf",
    "YamlLimitError",
    "exists",
    "expand",
    "folder",
    "is_file",
    "is_folder",
    "load_documents",
    "names",
    "opened",
    "read_bytes",
    "read_json",
    "read_lines",
    "read_text",
    "read_yaml_with_places",
    "regular_file",
    "shown",
    "validate_json",
    "validate_python",
    "write_whole",
]
