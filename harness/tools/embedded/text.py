"""The words of the embedded CLIP: prompt templates, captions and the byte-pair vocabulary.

Captions mirror MS-COCO's: several a picture, each another wording of the same thing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from harness.tools.embedded.emoji import Concept

CONTEXT = 24  #: positions of the text tower, begin and end token included
VOCABULARY = 1200
#: What zero-shot classification asks (CLIP_benchmark's ``{c}`` form).
TEMPLATES = ("an emoji of a {c}.", "a small picture of a {c}.", "{c}")
_CAPTIONS = (
    "{c}",
    "{c}.",
    "an emoji of a {c}.",
    "a small picture of a {c}.",
    "the {c} sign.",
    "a drawing that shows {c}.",
    "{c}, an emoji of {g}.",
    "a coloured icon: {c}.",
)


def group(concept: Concept) -> str:
    """The category as words: ``animals and nature``."""
    return concept.category.lower().replace(" & ", " and ")


def caption(concept: Concept, rng: random.Random) -> str:
    """One random wording of *concept*: a template around its name or, in a third of the cases, a
    synonym.
    """
    words = (
        rng.choice(concept.synonyms) if concept.synonyms and rng.random() < 1 / 3 else concept.label
    )
    return rng.choice(_CAPTIONS).format(c=words, g=group(concept))


def captions(concept: Concept, count: int, rng: random.Random) -> list[str]:
    """*count* different wordings of *concept*."""
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[caption(concept, rng)] = None
    return list(texts)


def write_tokenizer(corpus: Sequence[str], folder: Path) -> None:
    """Learn a byte-pair vocabulary from *corpus* and write it as a CLIP tokenizer into *folder*."""
    import json

    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    begin, end = "<|startoftext|>", "<|endoftext|>"
    # Every printable ASCII character, inside a word and at its end, so that no plain text is
    # unknown.
    letters = [chr(code) for code in range(33, 127)]
    learner.train_from_iterator(
        [*corpus, *letters, *(2 * letter for letter in letters)],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - 2, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    model = json.loads(learner.to_str())["model"]
    # Both special tokens come last: CLIP reads the sentence at the highest id.
    vocabulary = {token: index for index, token in enumerate([*model["vocab"], begin, end])}
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=CONTEXT,
    ).save_pretrained(folder)
