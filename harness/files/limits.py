"""Upper bounds on what the files that a user names may hold."""

from __future__ import annotations

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
#: Upper bounds in bytes, each well above the largest file of its kind that is published.
MAX_TEXT = 4 * MIB  # class names, templates, identifiers
MAX_YAML = 256 * KIB  # YAML that people write: budgets, expected differences
MAX_CONFIG = 4 * MIB  # config.json, preprocessor_config.json, tokenizer_config.json
MAX_INDEX = 32 * MIB  # model.safetensors.index.json
MAX_TOKENIZER = 256 * MIB  # tokenizer.json, vocab.json, merges.txt; Gemma's has 34 MB
MAX_ANNOTATIONS = 512 * MIB  # captions_train2017.json has 92 MB
MAX_MEASURED = 32 * MIB  # what the gate's own programs have measured and written
MAX_PICTURE = 256 * MIB  # one picture file, compressed
#: Bounds on what a JSON or YAML document may hold.
MAX_JSON_DEPTH = 64
MAX_JSON_VALUES = 10_000_000
# Each an order of magnitude above the largest file of ModelOpt 0.47's tree
MAX_YAML_DEPTH = 24
MAX_YAML_VALUES = 20_000  # aliases expanded
MAX_DIGITS = 40  # of a whole number; tokenizer_config.json has 1000000000000000019884624838656
MAX_NAMES = 1_000_000  # files of one folder
