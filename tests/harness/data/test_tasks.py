"""Tasks: CLIP_benchmark's data sets and metrics, sample by sample."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import (
    file_bytes,
    noise,
    replace_in_shard,
    webdataset_captions,
    webdataset_classes,
    write_shard,
)
from PIL import Image
from scipy.io import savemat
from torch import Tensor, nn

from harness import compat  # noqa: F401  (before clip_benchmark)
from harness.data import imagenet as imagenet_archives
from harness.data import inputs, samples, tasks
from harness.data.pictures import Resized
from harness.data.tasks import ACC1, IMAGE_RECALL, TEXT_RECALL, Task, TaskRun
from harness.errors import UsageError
from harness.models import families
from harness.models.halves import half_products
from harness.models.references import Reference

CPU = torch.device("cpu")
BATCH = 64


@pytest.fixture(scope="module")
def embedded(reference: Reference) -> dict[str, Task]:
    """The embedded tasks by name."""
    return {task.name: task for task in tasks.load_tasks(None, None, reference)}


@pytest.fixture(scope="module")
def hundred(reference: Reference, embedded: dict[str, Task]) -> TaskRun:
    """The embedded CLIP on emoji100."""
    return tasks.evaluate(reference.model, embedded["emoji100"])


@pytest.fixture(scope="module")
def captions(reference: Reference, embedded: dict[str, Task]) -> TaskRun:
    """The embedded CLIP on emoji_captions."""
    return tasks.evaluate(reference.model, embedded["emoji_captions"])


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt of CLIP_benchmark to fetch something ends the test."""
    from clip_benchmark.datasets import builder

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a download was tried: {args}")

    monkeypatch.setattr(builder, "call", refuse)
    monkeypatch.setattr(builder.os, "popen", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)


# Equality with CLIP_benchmark


def loader(name: str, root: Path, reference: Reference, kind: str, size: int = BATCH) -> Any:
    """CLIP_benchmark's own data loader over its own data set, with the processor's full
    preprocessing.
    """
    from clip_benchmark.datasets.builder import build_dataset, get_dataset_collate_fn

    processor = inputs.over_pil(reference.image_processor)

    def transform(picture: Any) -> torch.Tensor:
        pixels: torch.Tensor = processor(picture.convert("RGB"), return_tensors="pt")[
            "pixel_values"
        ][0]
        return pixels.half()

    dataset = build_dataset(name, str(root), transform, "test", download=False, task=kind)
    collate = get_dataset_collate_fn("mscoco_captions" if kind.endswith("retrieval") else name)
    return torch.utils.data.DataLoader(dataset, batch_size=size, collate_fn=collate)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_classification_gives_each_sample_the_answer_of_clip_benchmark(
    reference: Reference, embedded: dict[str, Task], hundred: TaskRun
) -> None:
    """Every answer, every correct flag and every top five are those of CLIP_benchmark's
    run_classification.
    """
    from clip_benchmark.metrics import zeroshot_classification as theirs

    encoder = Encoder(reference.model, reference.tokenizer, BATCH)
    batches = loader(
        "wds/emoji100", samples.EMBEDDED / "emoji100", reference, "zeroshot_classification"
    )
    dataset = batches.dataset
    classifier = theirs.zero_shot_classifier(
        encoder, encoder.tokenize, dataset.classes, dataset.templates, "cpu", amp=False
    )
    logits, targets = theirs.run_classification(encoder, classifier, batches, "cpu", amp=False)
    top = logits.topk(5, 1, True, True)[1]

    outcomes = hundred.outcomes[ACC1]
    assert outcomes.n == 1000
    np.testing.assert_array_equal(outcomes.targets, targets.numpy())
    np.testing.assert_array_equal(outcomes.top5, top.numpy())
    np.testing.assert_array_equal(outcomes.answers, logits.argmax(1).numpy())
    np.testing.assert_array_equal(outcomes.correct, (top[:, 0] == targets).numpy())
    assert outcomes.scores is not None
    np.testing.assert_allclose(outcomes.scores, logits.numpy(), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_classification_accuracy_equals_evaluate_of_clip_benchmark(
    reference: Reference, hundred: TaskRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLIP_benchmark's evaluate() gives the share of correct samples as its acc1."""
    from clip_benchmark.metrics import zeroshot_classification as theirs

    # From NumPy 2.4 on, float() refuses the one-element array that its accuracy() hands it; nothing
    # else is touched.
    monkeypatch.setattr(
        theirs, "float", lambda value: float(np.asarray(value).item()), raising=False
    )
    encoder = Encoder(reference.model, reference.tokenizer, BATCH)
    batches = loader(
        "wds/emoji100", samples.EMBEDDED / "emoji100", reference, "zeroshot_classification"
    )
    classes, templates = batches.dataset.classes, batches.dataset.templates
    scores = theirs.evaluate(
        encoder, batches, encoder.tokenize, classes, templates, "cpu", amp=False
    )

    assert scores["acc1"] == hundred.outcomes[ACC1].accuracy


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_retrieval_gives_each_sample_the_outcome_of_clip_benchmark(
    reference: Reference, captions: TaskRun
) -> None:
    """Both recalls equal CLIP_benchmark's evaluate(), and each query's flag equals its
    recall_at_k.
    """
    from clip_benchmark.metrics import zeroshot_retrieval as theirs

    encoder = Encoder(reference.model, reference.tokenizer, BATCH)
    batches = loader(
        "wds/emoji_captions", samples.EMBEDDED / "emoji_captions", reference, "zeroshot_retrieval"
    )
    recorded: list[torch.Tensor] = []
    whole = theirs.recall_at_k

    def recording(scores: torch.Tensor, positive: torch.Tensor, k: int) -> torch.Tensor:
        recorded.append(whole(scores, positive, k) > 0)
        return recorded[-1].float()

    theirs.recall_at_k = recording
    try:
        their_scores = theirs.evaluate(
            encoder, batches, encoder.tokenize, "cpu", amp=False, recall_k_list=[5]
        )
    finally:
        theirs.recall_at_k = whole
    flags = torch.cat(recorded).numpy()

    image, text = captions.outcomes[IMAGE_RECALL], captions.outcomes[TEXT_RECALL]
    assert (image.n, text.n) == (3000, 600)
    np.testing.assert_array_equal(image.correct, flags[:3000])
    np.testing.assert_array_equal(text.correct, flags[3000:])
    assert image.accuracy == pytest.approx(their_scores[IMAGE_RECALL], abs=1e-6)
    assert text.accuracy == pytest.approx(their_scores[TEXT_RECALL], abs=1e-6)


def test_pixels_equal_the_checkpoints_own_preprocessing(reference: Reference) -> None:
    """A picture of any size and mode reaches the model bit-equal to the image processor's full
    output.
    """
    rng = np.random.default_rng(0)
    resize, table = (
        inputs.Resize(reference.image_processor),
        inputs.shades(reference.image_processor),
    )
    processor = inputs.over_pil(reference.image_processor)
    for shape, mode in (
        ((48, 48, 3), "RGB"),
        ((90, 61, 3), "RGB"),
        ((20, 33), "L"),
        ((70, 50, 4), "RGBA"),
    ):
        picture = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode)
        expected = processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"]

        actual = inputs.pixel_values(resize(picture)[None], table)
        assert torch.equal(actual, expected), mode


# Independence of batches, threads and parts


@pytest.mark.parametrize("batch_size", [2, 7, 33, 256])
def test_outcomes_do_not_depend_on_the_batch_size(
    reference: Reference, embedded: dict[str, Task], hundred: TaskRun, batch_size: int
) -> None:
    """Embeddings of pictures and prompts are bit-equal under another batch size, partial last batch
    included.
    """
    part = embedded["emoji100"].subset(0, 101)
    run = tasks.evaluate(reference.model, part, batch_size=batch_size)

    np.testing.assert_array_equal(run.image_embeddings, hundred.image_embeddings[:101])
    np.testing.assert_array_equal(run.text_embeddings, hundred.text_embeddings)


def test_every_forward_has_the_same_number_of_rows(
    reference: Reference, embedded: dict[str, Task]
) -> None:
    """The last batch is filled up, so that no sample meets a matrix product of another shape."""
    rows: dict[str, set[int]] = {"vision_model": set(), "text_model": set()}
    hooks = [
        getattr(reference.model, tower).register_forward_hook(
            lambda _module, _args, output, tower=tower: rows[tower].add(len(output.pooler_output))
        )
        for tower in rows
    ]
    try:
        tasks.evaluate(reference.model, embedded["emoji100"].subset(0, 40), batch_size=32)
    finally:
        for hook in hooks:
            hook.remove()

    assert rows == {"vision_model": {32}, "text_model": {32}}


def test_outcomes_do_not_depend_on_the_number_of_threads(
    reference: Reference, embedded: dict[str, Task], hundred: TaskRun
) -> None:
    """One thread gives the bits that all threads give."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        run = tasks.evaluate(reference.model, embedded["emoji100"].subset(0, 101))
    finally:
        torch.set_num_threads(before)

    np.testing.assert_array_equal(run.image_embeddings, hundred.image_embeddings[:101])
    np.testing.assert_array_equal(run.text_embeddings, hundred.text_embeddings)


def test_parts_of_a_task_join_to_the_whole(
    reference: Reference, embedded: dict[str, Task], hundred: TaskRun
) -> None:
    """A classification task cut into uneven parts gives the outcomes of the whole, in order, a part
    of a part too.
    """
    task, whole = embedded["emoji100"], hundred.outcomes[ACC1]
    parts = [
        task.subset(0, 37),
        task.subset(37, 300).subset(0, 100),
        task.subset(37, 300).subset(100, 263),
    ]
    outcomes = [tasks.evaluate(reference.model, part).outcomes[ACC1] for part in parts]

    assert sum((part.sample_ids for part in outcomes), ()) == whole.sample_ids[:300]
    for name in ("correct", "answers", "top5", "targets", "margins", "clusters", "scores"):
        joined = np.concatenate([getattr(part, name) for part in outcomes])
        np.testing.assert_array_equal(joined, getattr(whole, name)[:300], name)
    assert len({task.data_hash, *(part.data_hash for part in parts)}) == 4
    assert task.subset(0, 1000).data_hash == task.data_hash


def test_retrieval_has_no_parts(embedded: dict[str, Task]) -> None:
    """Every picture is a candidate of every caption, so a slice of a retrieval task is refused."""
    with pytest.raises(ValueError, match="embed its slices"):
        embedded["emoji_captions"].subset(0, 10)


def test_slices_of_retrieval_embeddings_score_as_the_whole(
    reference: Reference, embedded: dict[str, Task], captions: TaskRun
) -> None:
    """Pictures that were embedded in two slices give the outcomes of one pass."""
    task = embedded["emoji_captions"]
    halves = [
        inputs.embed_images(reference.model, task.pictures.batches(BATCH, a, b), task.shades, BATCH)
        for a, b in ((0, 251), (251, 600))
    ]
    scored = tasks.score(task, torch.cat(halves).numpy(), captions.text_embeddings)

    for metric, outcomes in captions.outcomes.items():
        np.testing.assert_array_equal(scored[metric].answers, outcomes.answers)
        np.testing.assert_array_equal(scored[metric].correct, outcomes.correct)


def test_a_prompts_width_depends_on_the_prompt_alone(reference: Reference) -> None:
    """Among other neighbours a prompt is cut to the same width, and equal prompts are encoded
    once.
    """
    texts = ["a", "a small picture of zebras juggling fjords by quartz light", "a", "b"]
    prompts = inputs.tokenize(reference.tokenizer, texts, 24)
    alone = inputs.tokenize(reference.tokenizer, texts[:1], 24)
    widths = {tuple(ids[0].tolist()): ids.shape[1] for _, ids in prompts.batches(1)}

    assert len(prompts) == 4
    assert len(prompts.ids) == 3
    assert prompts.rows.tolist() == [0, 1, 0, 2]
    (_, lone), *_ = alone.batches(1)
    assert sorted(widths.values()) == [16, 16, 24]
    assert widths[tuple(lone[0].tolist())] == lone.shape[1] == 16


def test_cut_prompts_are_encoded_as_full_ones(reference: Reference) -> None:
    """What follows the end token does not matter: cut prompts have, bit for bit, the embeddings of
    the full context.
    """
    texts = [
        "goose",
        "an emoji of a goose.",
        "a drawing that shows two zebras juggling fjords by quartz light",
    ]
    prompts = inputs.tokenize(reference.tokenizer, texts, 24)
    encoder = Encoder(reference.model, reference.tokenizer, 8)
    expected = inputs.unit(encoder.encode_text(encoder.tokenize(texts)))

    actual = inputs.embed_texts(reference.model, prompts, 8)
    assert {ids.shape[1] for _, ids in prompts.batches(8)} == {16, 24}
    assert torch.equal(actual, expected)


# Scoring


def scored(
    images: np.ndarray, texts: np.ndarray, labels: list[int] | None, counts: list[int]
) -> dict[str, Any]:
    """tasks.score on bare embeddings."""
    task: Any = SimpleNamespace(
        name="t",
        labels=None if labels is None else np.asarray(labels, np.int32),
        first_text=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        sample_ids=tuple(f"p{i}" for i in range(len(images))),
        clusters=np.arange(len(images), dtype=np.int32),
    )
    return tasks.score(task, images.astype(np.float32), texts.astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(6, 12), st.booleans())
def test_retrieval_outcomes_follow_their_definition(seed: int, pictures: int, coarse: bool) -> None:
    """Ranks, flags and margins equal a plain sort of the scores, with ties to the lower
    position.
    """
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 4, pictures).tolist()
    values: Callable[[int], np.ndarray] = (
        (lambda n: rng.integers(-1, 2, (n, 2)).astype(float))
        if coarse
        else (lambda n: rng.normal(size=(n, 3)))
    )
    outcomes_by_metric = scored(values(pictures), values(sum(counts)), None, counts)
    owner = np.repeat(np.arange(pictures), counts)
    right = {
        IMAGE_RECALL: owner[:, None] == np.arange(pictures),
        TEXT_RECALL: np.arange(pictures)[:, None] == owner,
    }

    for metric, outcomes in outcomes_by_metric.items():
        order = np.argsort(-outcomes.scores, axis=1, kind="stable")
        np.testing.assert_array_equal(outcomes.top5, order[:, :5])
        np.testing.assert_array_equal(outcomes.answers, order[:, 0])
        hits = np.take_along_axis(right[metric], order[:, :5], 1).any(1)
        np.testing.assert_array_equal(outcomes.correct, hits)
        for row, margin in enumerate(outcomes.margins):
            good, bad = (
                outcomes.scores[row][right[metric][row]],
                outcomes.scores[row][~right[metric][row]],
            )
            assert margin == pytest.approx(good.max() - np.sort(bad)[-5], abs=1e-4)
            assert margin == 0 or (margin > 0) == outcomes.correct[row]
    np.testing.assert_array_equal(outcomes_by_metric[IMAGE_RECALL].clusters, owner)
    np.testing.assert_array_equal(
        outcomes_by_metric[TEXT_RECALL].targets, np.cumsum([0, *counts[:-1]])
    )
    assert outcomes_by_metric[IMAGE_RECALL].sample_ids[: counts[0]] == tuple(
        f"p0#{k}" for k in range(counts[0])
    )


def test_equal_scores_rank_by_position_even_where_five_are_cut() -> None:
    """Seven equal candidates: the first five of them make the top five, whatever topk would
    pick.
    """
    logits = torch.tensor([[1.0, 2, 2, 2, 2, 2, 2, 2, 0], [9.0, 8, 7, 6, 5, 5, 5, 1, 0]])
    top = tasks.best(logits, 5)

    assert top.tolist() == [[1, 2, 3, 4, 5], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_model_that_gives_nan_is_wrong_everywhere(position: int) -> None:
    """Not-a-number embeddings are neither right by chance, whatever the label, nor an answer."""
    images = np.eye(3)
    images[position] = np.nan
    outcomes = scored(images, np.eye(3), [0, 1, 2], [1, 1, 1])[ACC1]

    assert outcomes.correct.tolist() == [i != position for i in range(3)]
    assert outcomes.answers.tolist() == [-1 if i == position else i for i in range(3)]
    assert outcomes.margins[position] == -np.inf


def test_scores_are_left_out_on_request(reference: Reference, embedded: dict[str, Task]) -> None:
    """keep_scores=False keeps everything but the matrix."""
    part = embedded["emoji100"].subset(0, 20)
    full, bare = (
        tasks.evaluate(reference.model, part, keep_scores=k).outcomes[ACC1] for k in (True, False)
    )

    assert bare.scores is None
    assert full.scores is not None
    np.testing.assert_array_equal(bare.margins, full.margins)


# Miniature data sets in the true formats on disk


def imagenet(root: Path) -> Path:
    """All thousand class folders of the validation set, one small JPEG each, and torchvision's meta
    file.
    """
    from clip_benchmark.datasets.builder import all_imagenet_wordnet_ids as wnids

    for index, wnid in enumerate(wnids):
        (root / "val" / wnid).mkdir(parents=True)
        noise(index, (9, 8)).save(root / "val" / wnid / f"ILSVRC2012_val_{index + 1:08d}.JPEG")
    torch.save(({wnid: (wnid,) for wnid in wnids}, list(wnids)), root / "meta.bin")
    return root


def archived(unpacked: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same pictures in ImageNet's two archives; the sum of the kit is that of this one."""
    wnids = sorted(item.name for item in (unpacked / "val").iterdir())
    numbers = {wnid: len(wnids) - place for place, wnid in enumerate(wnids)}
    synsets = [(number, wnid, "x", "y", 0) for wnid, number in numbers.items()]
    fields = [
        (name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")
    ]
    above = [(1001, "n00000000", "x", "y", 2)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(synsets + above, dtype=fields)})
    pictures = sorted((unpacked / "val").rglob("*.JPEG"), key=lambda path: path.name)
    truth = "".join(f"{numbers[path.parent.name]}\n" for path in pictures)
    kit = {
        "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }
    root.mkdir()
    members = [(path.name, path.read_bytes()) for path in reversed(pictures)]
    write_shard(root / imagenet_archives.PICTURES, members)
    write_shard(root / "kit.tar", list(kit.items()))
    packed = gzip.compress((root / "kit.tar").read_bytes())
    (root / "kit.tar").unlink()
    (root / imagenet_archives.KIT).write_bytes(packed)
    monkeypatch.setattr(imagenet_archives, "KIT_SUM", hashlib.md5(packed).hexdigest())
    return root


def test_imagenet_is_read_from_its_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two archives hold what the class folders hold, and nothing is written next to them; a kit
    that is not the published one is refused.
    """
    unpacked = imagenet(tmp_path / "unpacked")
    place = archived(unpacked, tmp_path / "archived", monkeypatch)
    before = sorted(place.iterdir())

    folders, archives = (samples.load("imagenet1k", root) for root in (unpacked, place))

    assert archives.ids == folders.ids
    assert archives.hash == folders.hash
    assert sorted(place.iterdir()) == before
    monkeypatch.undo()
    with pytest.raises(UsageError, match="is not the published file"):
        samples.load("imagenet1k", place)


def cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The three pickles of cifar-100-python with twelve test pictures.

    torchvision reads them only if their MD5 sums are those of the originals, which miniatures
    cannot have; the expected sums are what is replaced here, nothing else.
    """
    from torchvision.datasets import CIFAR100

    rng, folder = np.random.default_rng(0), root / "cifar-100-python"
    folder.mkdir(parents=True)
    contents = {
        "train": {"data": rng.integers(0, 256, (2, 3072), dtype=np.uint8), "fine_labels": [0, 1]},
        "test": {
            "data": rng.integers(0, 256, (12, 3072), dtype=np.uint8),
            "fine_labels": list(range(0, 96, 8)),
        },
        "meta": {"fine_label_names": [f"thing_{i}" for i in range(100)]},
    }
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": sums["meta"]})
    return root


def coco(root: Path) -> Path:
    """val2014 with seven JPEG pictures and the annotation file of the retrieval split, captions out
    of order.
    """
    (root / "val2014").mkdir(parents=True)
    images, annotations = [], []
    for i, number in enumerate((42, 7, 300, 11, 5, 99, 64)):
        name = f"COCO_val2014_{number:012d}.jpg"
        noise(number).save(root / "val2014" / name)
        images.append({"id": number, "file_name": name, "height": 40, "width": 52})
        annotations += [
            {"id": 10 * k + i, "image_id": number, "caption": f"caption {k} of {number}"}
            for k in range(1 + i % 3)
        ]
    content = {
        "images": images,
        "annotations": annotations[::-1],
        "info": {},
        "licenses": [],
        "type": "captions",
    }
    (root / "coco_test_karpathy.json").write_text(json.dumps(content))
    return root


@pytest.fixture(params=["wds/classes", "wds/captions", "imagenet1k", "cifar100", "mscoco_captions"])
def miniature(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path]:
    """A data set's CLIP_benchmark name and the root it was written under."""
    name, place = request.param, tmp_path / request.param.removeprefix("wds/")
    writers: dict[str, Callable[[], Path]] = {
        "wds/classes": lambda: webdataset_classes(place),
        "wds/captions": lambda: webdataset_captions(place),
        "imagenet1k": lambda: imagenet(place),
        "cifar100": lambda: cifar100(place, monkeypatch),
        "mscoco_captions": lambda: coco(place),
    }
    writers[name]()
    return name, place


@pytest.mark.usefixtures("no_download")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_data_set_in_its_own_format_is_read_as_clip_benchmark_reads_it(
    miniature: tuple[str, Path], reference: Reference
) -> None:
    """Order, labels, captions, prompts and pixels equal those that CLIP_benchmark's loader
    yields.
    """
    name, place = miniature
    (task,) = tasks.load_tasks([name], place, reference)
    kind = f"zeroshot_{task.kind}"
    theirs = list(loader(name, place, reference, kind, size=1))
    pixels = torch.cat([batch for batch, _ in theirs])
    table = task.shades.half()
    mine = torch.cat([inputs.pixel_values(batch, table) for batch in task.pictures.batches(5)])

    assert torch.equal(mine, pixels)
    if task.labels is not None:
        assert task.labels.tolist() == [int(target) for _, target in theirs]
        dataset = loader(name, place, reference, kind).dataset
        assert task.classes == tuple(dataset.classes)
        assert len(task.prompts) == len(dataset.classes) * len(dataset.templates)
        first = [template.format(c=dataset.classes[1]) for template in dataset.templates]
        at = slice(int(task.first_text[1]), int(task.first_text[2]))
    else:
        texts = [list(group[0]) for _, group in theirs]
        assert np.diff(task.first_text).tolist() == [len(group) for group in texts]
        first = texts[1]
        at = slice(int(task.first_text[1]), int(task.first_text[2]))
    expected = Encoder(reference.model, reference.tokenizer, 2).tokenize(first)
    assert torch.equal(task.prompts.ids[task.prompts.rows[at]], expected)
    assert len(set(task.sample_ids)) == len(task.sample_ids) == len(pixels)


def test_a_data_set_is_found_in_its_root_or_below_it_by_name(miniature: tuple[str, Path]) -> None:
    """The root may be the data set's folder, the folder above, or a pattern with {dataset}: the
    data are the same.
    """
    name, place = miniature
    roots = (place, place.parent, place.parent / "{dataset}")
    loaded = [samples.load(name, root) for root in roots]

    assert {data_set.place for data_set in loaded} == {place}
    assert len({data_set.hash for data_set in loaded}) == 1


def test_a_data_set_in_its_own_format_is_evaluated(
    miniature: tuple[str, Path], reference: Reference
) -> None:
    """Each format gives an outcome for every sample under each of its metrics."""
    name, place = miniature
    (task,) = tasks.load_tasks([name], place, reference)
    if (
        name == "imagenet1k"
    ):  # 80 prompts a class are a minute's work: two are left, of ImageNet's own
        task = dataclasses.replace(
            task, prompts=first_prompts(task, 2), first_text=task.first_text // 40
        )
    run = tasks.evaluate(reference.model, task, batch_size=8)

    assert set(run.outcomes) == set(task.metrics)
    for metric, outcomes in run.outcomes.items():
        assert outcomes.n == task.n(metric) == len(set(outcomes.sample_ids))
        assert np.isfinite(outcomes.margins).all()


def first_prompts(task: Task, count: int) -> inputs.Prompts:
    """The first *count* prompts of each class."""
    rows = task.prompts.rows.view(len(task.classes), -1)[:, :count].flatten()
    used, rows = torch.unique(rows, return_inverse=True)
    return inputs.Prompts(task.prompts.ids[used], task.prompts.lengths[used], rows)


def test_streamed_pictures_equal_kept_ones(
    miniature: tuple[str, Path], reference: Reference
) -> None:
    """Beyond the memory limit pictures are decoded again on each pass, and are the same, slices
    too.
    """
    name, place = miniature
    resize = inputs.Resize(reference.image_processor)
    data_set = samples.load(name, place)
    cached, streamed = (
        inputs.Pictures(Resized(data_set.pictures, resize), data_set.ids, resize.shape, limit)
        for limit in (1 << 30, 0)
    )
    expected = torch.cat(list(cached.batches(4)))

    for _ in range(2):
        assert torch.equal(torch.cat(list(streamed.batches(4))), expected)
    assert torch.equal(torch.cat(list(streamed.batches(2, 1, 4))), expected[1:4])
    assert torch.equal(torch.cat(list(cached.batches(2, 1, 4))), expected[1:4])


@pytest.mark.parametrize(
    ("writer", "change"),
    [
        (
            webdataset_classes,
            lambda p: replace_in_shard(p / "test/1.tar", "k11.png", file_bytes(noise(99), "png")),
        ),
        (webdataset_classes, lambda p: replace_in_shard(p / "test/1.tar", "k11.cls", b"2")),
        (webdataset_classes, lambda p: (p / "classnames.txt").write_text("goose\ncat\nhog\n")),
        (
            webdataset_classes,
            lambda p: (p / "zeroshot_classification_templates.txt").write_text("a {c}.\n"),
        ),
        (
            webdataset_captions,
            lambda p: replace_in_shard(p / "test/0.tar", "r3.txt", b"thing 3\nan emoji 4\n"),
        ),
        (coco, lambda p: noise(1).save(p / "val2014/COCO_val2014_000000000042.jpg")),
    ],
    ids=["picture", "label", "class name", "template", "caption", "coco picture"],
)
def test_the_data_hash_changes_with_the_data(
    writer: Callable[[Path], Path],
    change: Callable[[Path], Any],
    tmp_path: Path,
    reference: Reference,
) -> None:
    """Any change of what is measured is another hash; the same data elsewhere is the same hash."""
    name = "mscoco_captions" if writer is coco else "wds/x"
    hashes = []
    for folder in ("one", "two"):
        (task,) = tasks.load_tasks([name], writer(tmp_path / folder), reference)
        hashes.append(task.data_hash)
    change(tmp_path / "two")
    (changed,) = tasks.load_tasks([name], tmp_path / "two", reference)

    assert hashes[0] == hashes[1] != changed.data_hash


def test_samples_of_one_drawing_share_a_cluster(
    embedded: dict[str, Task], captions: TaskRun, hundred: TaskRun
) -> None:
    """Ten views of a drawing, and five captions of a picture, count as one cluster each."""
    views = hundred.outcomes[ACC1]

    assert set(np.bincount(views.clusters)) == {10}
    np.testing.assert_array_equal(views.clusters, views.targets)
    assert set(np.bincount(captions.outcomes[IMAGE_RECALL].clusters)) == {5}
    assert len(set(embedded["emoji"].clusters)) == 1632


# Bad input


def broken(writer: Callable[[Path], Path], change: Callable[[Path], Any]) -> Callable[[Path], Path]:
    """*writer* and then *change*."""

    def write(place: Path) -> Path:
        writer(place)
        change(place)
        return place

    return write


def drop_member(path: Path, name: str) -> None:
    """Write the shard again without the member *name*."""
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]  # type: ignore[union-attr]
    write_shard(path, [(n, d) for n, d in members if n != name])


def truncate(path: Path) -> None:
    """Cut the file in its third block."""
    path.write_bytes(path.read_bytes()[:1500])


BAD: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "nothing there": ("cifar100", lambda p: p, r"needs cifar-100-python or cifar-100-binary there"),
    "no annotations": (
        "mscoco_captions",
        broken(coco, lambda p: (p / "coco_test_karpathy.json").unlink()),
        r"needs coco_test_karpathy.json or annotations/coco_test_karpathy.json there",
    ),
    "no coco picture": (
        "mscoco_captions",
        broken(coco, lambda p: (p / "val2014/COCO_val2014_000000000011.jpg").unlink()),
        r"coco_test_karpathy.json: picture COCO_val2014_000000000011.jpg is in none of val2014",
    ),
    "annotations damaged": (
        "mscoco_captions",
        broken(coco, lambda p: (p / "coco_test_karpathy.json").write_text("{")),
        r"coco_test_karpathy.json:1: is not JSON",
    ),
    "no devkit": (
        "imagenet1k",
        broken(imagenet, lambda p: (p / "meta.bin").unlink()),
        r"needs meta.bin or ILSVRC",
    ),
    "a class folder lost": (
        "imagenet1k",
        broken(imagenet, lambda p: shutil.rmtree(p / "val/n01440764")),
        r"999 class folders with pictures for 1000 class names",
    ),
    "no shard count": (
        "wds/x",
        broken(webdataset_classes, lambda p: (p / "test/nshards.txt").unlink()),
        r"nshards.txt",
    ),
    "shard count no number": (
        "wds/x",
        broken(webdataset_classes, lambda p: (p / "test/nshards.txt").write_text("two")),
        r"nshards.txt: is not a number",
    ),
    "shard missing": (
        "wds/x",
        broken(webdataset_classes, lambda p: (p / "test/1.tar").unlink()),
        r"1.tar: is missing",
    ),
    "shard truncated": (
        "wds/x",
        broken(webdataset_classes, lambda p: truncate(p / "test/1.tar")),
        r"shard is damaged",
    ),
    "no class names": (
        "wds/x",
        broken(webdataset_classes, lambda p: (p / "classnames.txt").unlink()),
        r"classnames.txt: there is no such text file",
    ),
    "label outside": (
        "wds/x",
        broken(webdataset_classes, lambda p: (p / "classnames.txt").write_text("goose\ncat\n")),
        r"sample k02 has label 2, there are 2 class names",
    ),
    "label missing": (
        "wds/x",
        broken(webdataset_classes, lambda p: drop_member(p / "test/0.tar", "k01.cls")),
        r"sample k01 has no label",
    ),
    "picture missing": (
        "wds/x",
        broken(webdataset_classes, lambda p: drop_member(p / "test/0.tar", "k01.png")),
        r"sample k01 has no picture",
    ),
    "multilabel": (
        "wds/x",
        broken(webdataset_classes, lambda p: (p / "dataset_type.txt").write_text("multilabel")),
        r"dataset_type.txt: is 'multilabel'. Write classification or retrieval",
    ),
    "clusters of another length": (
        "wds/x",
        broken(webdataset_classes, lambda p: (p / "clusters.txt").write_text("0\n1\n")),
        r"has 2 numbers for 6 samples",
    ),
    "no caption": (
        "wds/x",
        broken(webdataset_captions, lambda p: replace_in_shard(p / "test/0.tar", "r3.txt", b"")),
        r"picture r3 has no caption",
    ),
    "too few to rank": (
        "wds/x",
        broken(
            webdataset_captions,
            lambda p: write_shard(
                p / "test/0.tar",
                [("r.png", file_bytes(noise(0), "png")), ("r.txt", b"a"), ("s.txt", b"b")][:2],
            ),
        ),
        r"1 candidates are too few",
    ),
    "unknown task": (
        "imagenet-x",
        webdataset_classes,
        r"--tasks imagenet-x: is not a task. Did you mean 'imagenet1k",
    ),
}


@pytest.mark.usefixtures("no_download")
@pytest.mark.parametrize("defect", BAD)
def test_unusable_data_are_told_in_one_line(
    defect: str, tmp_path: Path, reference: Reference
) -> None:
    """Missing, incomplete and damaged data name the file and the fault; nothing is downloaded."""
    name, writer, message = BAD[defect]

    with pytest.raises(UsageError, match=message) as error:
        tasks.load_tasks([name], writer(tmp_path / "data"), reference)
    assert "\n" not in str(error.value)


def test_a_damaged_picture_is_named(tmp_path: Path, reference: Reference) -> None:
    """A picture that is not one, or is cut, is a usage error with its file and name before anything is
    embedded.
    """
    place = coco(tmp_path / "coco")
    (place / "val2014" / "COCO_val2014_000000000042.jpg").write_bytes(b"no picture")
    with pytest.raises(
        UsageError, match=r"val2014/COCO_val2014_000000000042.jpg: picture 42 cannot be read"
    ):
        tasks.load_tasks(["mscoco_captions"], place, reference)

    for name, data in (
        ("k11.png", b"no picture"),
        ("k10.jpg", file_bytes(noise(10), "jpeg")[:900]),
    ):
        place = webdataset_classes(tmp_path / "wds")
        replace_in_shard(place / "test" / "1.tar", name, data)
        with pytest.raises(UsageError, match=rf"test/1.tar: picture {name[:3]} cannot be read"):
            tasks.load_tasks(["wds/x"], place, reference)


def test_a_picture_that_only_its_decoder_refuses_is_named(
    tmp_path: Path, reference: Reference
) -> None:
    """A PNG with a wrong checksum in its middle looks whole; decoding names it, in this process and
    in others.
    """
    place = webdataset_classes(tmp_path / "wds")
    data = bytearray(file_bytes(noise(11), "png"))
    data[len(data) // 2] ^= 255
    replace_in_shard(place / "test" / "1.tar", "k11.png", bytes(data))
    (task,) = tasks.load_tasks(["wds/x"], place, reference)

    with pytest.raises(UsageError, match=r"test/1.tar: picture k11 cannot be read \("):
        task.decode()
    with pytest.raises(UsageError, match=r"test/1.tar: picture k11 cannot be read \("):
        tasks.evaluate(reference.model, task)


@pytest.mark.parametrize("ending", ["pyd", "pkl", "pth", "npy", "txt.gz"])
def test_a_shard_with_an_active_member_is_refused(
    ending: str, tmp_path: Path, reference: Reference
) -> None:
    """Members that webdataset would unpickle or unpack while decoding are refused before that."""
    place = webdataset_classes(tmp_path / "x")
    bomb = b"cbuiltins\nexec\n(Vraise SystemExit('unpickled')\ntR."
    members = [("k00.png", file_bytes(noise(0), "png")), ("k00.cls", b"0"), (f"k00.{ending}", bomb)]
    write_shard(place / "test" / "0.tar", members)

    with pytest.raises(UsageError, match=rf"sample k00 has a member \.{ending}"):
        tasks.load_tasks(["wds/x"], place, reference)


@pytest.mark.usefixtures("no_download")
@pytest.mark.parametrize("root", ["https://example.org/x", "s3://bucket/'; touch owned; '"])
def test_an_address_is_no_data_root(root: str, reference: Reference) -> None:
    """CLIP_benchmark hands addresses to a shell; they never get that far."""
    with pytest.raises(UsageError, match="is an address, not a folder"):
        tasks.load_tasks(["wds/x"], Path(root), reference)


@pytest.mark.parametrize("name", ["a::b", "a{0..3}", "a$b", "Übung 1", "画像"])
def test_a_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    """What is a pattern to the package webdataset is a name here, and letters need not be ASCII."""
    webdataset_classes(tmp_path / name)

    assert len(samples.load("wds/x", tmp_path / name).hash) == 64


def test_a_task_without_a_root_asks_for_one(reference: Reference) -> None:
    """Only the embedded tasks need no --data-root."""
    with pytest.raises(UsageError, match="Give --data-root DIR, or one of the embedded tasks"):
        tasks.load_tasks(["cifar100"], None, reference)


def test_embedded_tasks_can_be_chosen(reference: Reference) -> None:
    """A name given twice is one task, and the order is the person's."""
    loaded = tasks.load_tasks(["emoji_captions", "emoji100", "emoji_captions"], None, reference)

    assert [task.name for task in loaded] == ["emoji_captions", "emoji100"]


class Encoder:
    """*model* as CLIP_benchmark's own functions want it: ``encode_image``, ``encode_text``, and a
    tokenizer.

    For comparison with its ``evaluate()``.  Features come in single precision, so that it computes
    on in single precision; batches are filled up as they are here.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, batch_size: int) -> None:
        self._model, self._tokenizer, self._size = model, tokenizer, batch_size

    def tokenize(self, texts: list[str]) -> Tensor:
        """*texts* as int64 (n, context)."""
        context = families.sizes(self._model).context
        ids = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=context, return_tensors="pt"
        )
        return ids["input_ids"]  # type: ignore[no-any-return]

    def encode_image(self, pixels: Tensor) -> Tensor:
        """float32 (n, d) of model inputs (n, 3, h, w)."""
        return self._encode(pixels, "vision")

    def encode_text(self, ids: Tensor) -> Tensor:
        """float32 (n, d) of token ids (n, context)."""
        return self._encode(ids, "text")

    @half_products()
    def _encode(self, batch: Tensor, tower: str) -> Tensor:
        parts = [
            families.encode(self._model, tower, inputs.filled(part, self._size))[: len(part)]
            for part in torch.split(batch, self._size)
        ]
        return torch.cat(parts).float()
