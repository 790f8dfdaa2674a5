"""A checkpoint is accepted or refused from its files alone: in one line, at once, without torch."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from harness.errors import UsageError
from harness.models import checkpoint_configs, checkpoint_files, openclip, references
from harness.recipes import names

CPU = torch.device("cpu")
Change = Callable[[Path], object]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The embedded checkpoint in a folder of its own: links to its files, as a hub's cache has
    them.
    """
    folder = tmp_path / "clip"
    folder.mkdir()
    for path in checkpoint_files.EMBEDDED.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def refusal(ref: str | Path) -> str:
    """The line with which the checkpoint is refused."""
    with pytest.raises(UsageError) as caught:
        checkpoint_files.look(str(ref))
    return str(caught.value)


def edited(name: str, *keys: str, value: Any) -> Change:
    """Write *value* at *keys* of the JSON file *name*."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (folder / name).unlink()
        (folder / name).write_text(json.dumps(content))

    return change


def config(*keys: str, value: Any) -> Change:
    """Write *value* at *keys* of config.json."""
    return edited("config.json", *keys, value=value)


def preprocessing(**values: Any) -> Change:
    """Write *values* into preprocessor_config.json."""

    def change(folder: Path) -> None:
        for key, value in values.items():
            edited("preprocessor_config.json", key, value=value)(folder)

    return change


def added(name: str, content: bytes = b"{}") -> Change:
    """Put another file into the folder."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content)

    return change


def sharded(*names: str) -> Change:
    """Name files of weights in an index; the weights themselves are in ``a.safetensors``."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        index = {"weight_map": {str(number): name for number, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def cut(length: int) -> Change:
    """Keep the first bytes of the weights."""

    def change(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").write_bytes(data[:length])

    return change


REFUSED: dict[str, tuple[Change, str, str]] = {
    # config.json
    "model_type": (config("model_type", value=["clip"]), "config.json (model_type)", "is ['clip']"),
    "no end token": (
        config("text_config", "eos_token_id", value=None),
        "(text_config.eos_token_id)",
        "is null",
    ),
    "two end tokens": (
        config("text_config", "eos_token_id", value=[1]),
        "(text_config.eos_token_id)",
        "is [1]",
    ),
    "end token": (
        config("text_config", "eos_token_id", value=1200),
        "(text_config)",
        "not in the vocabulary",
    ),
    "ten million layers": (
        config("text_config", "num_hidden_layers", value=10**7),
        "num_hidden_layers)",
        "10000000",
    ),
    "more layers": (
        config("text_config", "num_hidden_layers", value=4),
        "(text_config)",
        "is 4, the weights have 3",
    ),
    "fewer layers": (
        config("vision_config", "num_hidden_layers", value=3),
        "(vision_config)",
        "the weights have 4",
    ),
    "vocabulary": (
        config("text_config", "vocab_size", value=4_000_000),
        "(text_config)",
        "4000000 x 96",
    ),
    "picture": (config("vision_config", "image_size", value=64), "(vision_config)", "65 x 192"),
    "large picture": (
        config("vision_config", "image_size", value=10**6),
        "(vision_config.image_size)",
        "1000000",
    ),
    "sides": (
        config("vision_config", "image_size", value=[48, 48]),
        "(vision_config.image_size)",
        "[48, 48]",
    ),
    "projection": (
        config("projection_dim", value=64),
        "config.json",
        "64 x 192, the weights have 128 x 192",
    ),
    "heads": (
        config("vision_config", "num_attention_heads", value=5),
        "(vision_config)",
        "not a multiple",
    ),
    "a list": (added("config.json", b"[1]"), "config.json", "is [1]"),
    "deep": (added("config.json", b"[" * 100_000), "config.json", "nests deeper"),
    "other weights": (
        config("transformers_weights", value="../x.safetensors"),
        "config.json",
        "'../x.safetensors'",
    ),
    # preprocessing
    "no size": (preprocessing(size=None), "preprocessor_config.json (size)", "shortest_edge"),
    "size 0": (preprocessing(size={"shortest_edge": 0}), "(size.shortest_edge)", "is 0"),
    "size 0, as a number": (preprocessing(size=0), "(size)", "is 0"),
    "large size": (preprocessing(size=10**6), "(size)", "1000000"),
    "one mean": (preprocessing(image_mean=[0.5]), "(image_mean)", "is [0.5]"),
    "no deviation": (preprocessing(image_std=[1.0, 0.0, 1.0]), "(image_std[1])", "is 0"),
    "factor": (preprocessing(rescale_factor="x"), "(rescale_factor)", "is 'x'"),
    "filter": (preprocessing(resample=99), "(resample)", "is 99"),
    "padding": (preprocessing(do_pad=True), "(do_pad)", "is true"),
    "other size": (
        preprocessing(size=224, crop_size=224),
        "preprocessor_config.json",
        "224 x 224 pixels",
    ),
    "smaller size": (
        preprocessing(size=24),
        "preprocessor_config.json",
        "24 pixels and then crops 48",
    ),
    "no crop": (
        preprocessing(do_center_crop=False),
        "preprocessor_config.json",
        "pictures differ in size",
    ),
    # weights
    "a file elsewhere": (
        sharded("a.safetensors", "../other/model.safetensors"),
        "index.json",
        "'../other/model.s",
    ),
    "an absolute path": (sharded("/etc/passwd"), "index.json", "'/etc/passwd'"),
    "a pickle": (sharded("pytorch_model.bin"), "index.json", "pickled weights are not read"),
    "an absent file": (sharded("b.safetensors"), "b.safetensors", "no such file of weights"),
    "cut off": (cut(100_000), "model.safetensors", "is cut off"),
    "cut off in the header": (cut(100), "model.safetensors", "safetensors file"),
    "an adapter": (added("adapter_config.json"), "adapter_config.json", "adapter"),
    # already quantized
    "ModelOpt's state": (added("modelopt_state.pth"), "modelopt_state.pth", "already quantized"),
    "ModelOpt's export": (
        added("hf_quant_config.json"),
        "hf_quant_config.json",
        "already quantized",
    ),
    "quantization_config": (
        config("quantization_config", value={}),
        "config.json",
        "already quantized",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_with_its_place(checkpoint: Path, name: str) -> None:
    """Each wrong value in a file of a checkpoint is refused with the file, the key and the
    value.
    """
    change, place, part = REFUSED[name]
    change(checkpoint)

    line = refusal(checkpoint)

    assert line.startswith(str(checkpoint))
    assert place in line
    assert part in line


def test_a_file_that_is_cut_off_is_told_what_it_needs(checkpoint: Path) -> None:
    """The size is that of the whole file, not of the first tensor that is not there."""
    whole = (checkpoint / "model.safetensors").stat().st_size
    cut(whole // 2)(checkpoint)

    assert f"{whole // 2:,} bytes where its header asks for {whole:,}" in refusal(checkpoint)


ODD: dict[str, Change] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "UTF-16": lambda path: path.write_bytes(b"\xff\xfe{\0}\0"),
    "nothing": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"]
)
def test_a_file_that_is_not_one_is_refused(checkpoint: Path, name: str, kind: str) -> None:
    """A pipe, a device, a folder, a dangling link and an empty file end in one line that names the
    file.
    """
    (checkpoint / name).unlink()
    ODD[kind](checkpoint / name)

    assert refusal(checkpoint).startswith(str(checkpoint / name))


@pytest.mark.parametrize(
    "change",
    [
        preprocessing(size={"height": 48, "width": 48}, do_center_crop=False),
        preprocessing(size=48, crop_size=48, do_convert_rgb=None),
        preprocessing(size=64),
        config("text_config_dict", value=None),
        sharded("a.safetensors"),
        added("training_args.bin"),
    ],
)
def test_other_spellings_are_accepted(checkpoint: Path, change: Change) -> None:
    """What other tools and older releases write for the same model is accepted."""
    change(checkpoint)

    assert checkpoint_files.look(str(checkpoint)).side == 48


def test_nothing_heavy_is_imported() -> None:
    """What config.json alone says needs neither torch nor transformers."""
    code = (
        "import sys; from harness.models import checkpoint_files as m; m.look('embedded'); "
        "print('torch' in "
        "sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("model", "theirs"),
    [
        (checkpoint_configs.ClipVision, "CLIPVisionConfig"),
        (checkpoint_configs.ClipText, "CLIPTextConfig"),
        (checkpoint_configs.Vision, "SiglipVisionConfig"),
        (checkpoint_configs.Text, "SiglipTextConfig"),
        (checkpoint_configs.Siglip2Vision, "Siglip2VisionConfig"),
        (checkpoint_configs.Text, "Siglip2TextConfig"),
    ],
)
def test_defaults_are_those_of_transformers(
    model: type[checkpoint_configs.Encoder], theirs: str
) -> None:
    """A key that config.json leaves out means here what it means there."""
    import transformers

    defaults = getattr(transformers, theirs)().to_dict()
    ours = model().model_dump()

    assert {key: value for key, value in ours.items() if key in defaults} == {
        key: defaults[key] for key in ours if key in defaults
    }
    assert ours.keys() - defaults.keys() <= {"image_size"}


# -- names and places ------------------------------------------------------------------------------


def test_a_folder_gives_its_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``.``, a trailing slash and a suffix leave the name of the folder; a link keeps its own."""
    monkeypatch.chdir(checkpoint)
    (checkpoint.parent / "linked").symlink_to(checkpoint)

    refs = (
        ".",
        f"{checkpoint}/",
        "../clip",
        "../linked",
        ".+outliers",
        "openai/clip-vit+CLIPTextModel",
        "embedded",
    )
    assert [names.of_model(ref) for ref in refs] == [
        "clip",
        "clip",
        "clip",
        "linked",
        "clip+outliers",
        "clip-vit+CLIPTextModel",
        "embedded",
    ]
    assert checkpoint_files.look(".").side == 48


@pytest.mark.parametrize(
    ("ref", "part"),
    [
        ("embedded+foo", "+foo is not known"),
        ("~nosuchuser/x", "no user 'nosuchuser'"),
        ("x" * 5000, "too long"),
        ("", "is empty"),
        (str(checkpoint_files.EMBEDDED / "config.json"), "is not a directory"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused(ref: str, part: str) -> None:
    """An unknown suffix or user, a file, and a name that cannot be one are refused before a hub is
    asked.
    """
    line = refusal(ref)

    assert line.startswith("--clip-model")
    assert part in line


def test_parts_of_a_pipeline_find_their_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image_encoder finds its preprocessing in either folder, a text_encoder its tokenizer, also
    through a link; both are in the revision.
    """
    pipeline = tmp_path / "pipeline"
    for name, part in (
        ("image_encoder", "CLIPVisionModelWithProjection"),
        ("text_encoder", "CLIPTextModel"),
    ):
        tiny.write(part, pipeline / name)
    (pipeline / "feature_extractor").mkdir()
    (pipeline / "tokenizer").mkdir()
    for path in (pipeline / "image_encoder").glob("*processor*"):
        path.rename(pipeline / "feature_extractor" / path.name)
    for path in [
        p for p in (pipeline / "text_encoder").iterdir() if p.stem not in ("config", "model")
    ]:
        path.rename(pipeline / "tokenizer" / path.name)
    (tmp_path / "mine").symlink_to(pipeline / "text_encoder")

    image = checkpoint_files.look(str(pipeline / "image_encoder"))
    assert image.image_processor == pipeline / "feature_extractor"
    text = checkpoint_files.look(str(tmp_path / "mine"))
    assert text.tokenizer == pipeline.resolve() / "tokenizer"
    assert references.load(str(tmp_path / "mine"), CPU).tokenizer("a photo")["input_ids"]
    before = text.revision()
    (pipeline / "tokenizer" / "more.txt").write_text("x")
    assert text.revision() != before

    (pipeline / "feature_extractor").rename(pipeline / "image_processor")
    monkeypatch.chdir(pipeline / "image_encoder")
    assert checkpoint_files.look(".").image_processor == pipeline.resolve() / "image_processor"


# -- pickles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["clip", "open_clip"])
def test_the_command_that_converts_pickled_weights_works(tmp_path: Path, form: str) -> None:
    """Pickled weights are refused; the command in the message writes the same numbers as
    safetensors.
    """
    import safetensors.torch

    folder = tmp_path / "with blanks" / form
    if form == "clip":
        shutil.copytree(checkpoint_files.EMBEDDED, folder)
    else:
        tiny.open_clip(folder)
    safe = folder / (openclip.WEIGHTS if form == "open_clip" else "model.safetensors")
    pickled = folder / (
        "open_clip_pytorch_model.bin" if form == "open_clip" else "pytorch_model.bin"
    )
    weights = safetensors.torch.load_file(safe)
    torch.save(weights, pickled)
    safe.unlink()

    line = refusal(folder)
    assert line.startswith(f"{pickled}: pickled weights are not read. ")
    command = line.partition("Convert them once: ")[2].replace(
        "python -c", f"{sys.executable} -c", 1
    )
    subprocess.run(command, shell=True, check=True)

    converted = safetensors.torch.load_file(safe)
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[name], weights[name]) for name in weights)
    assert checkpoint_files.look(str(folder)).weights == (safe,)


# -- open_clip -------------------------------------------------------------------------------------

OPEN_CLIP_REFUSED: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "ten million layers": (
        ("model_cfg", "vision_cfg", "layers"),
        10**7,
        "(model_cfg.vision_cfg.layers)",
    ),
    "more layers": (("model_cfg", "vision_cfg", "layers"), 400, "only in the configuration"),
    "width": (("model_cfg", "vision_cfg", "width"), 65_536, "the configuration asks for (65536,)"),
    "sides": (("model_cfg", "vision_cfg", "image_size"), [32, 40], "not square"),
    "a tower of a hub": (
        ("model_cfg", "vision_cfg", "timm_model_name"),
        "hf-hub:a/b",
        "only timm's own",
    ),
    "a text tower of a hub": (
        ("model_cfg", "text_cfg", "hf_model_name"),
        "roberta-base",
        "'roberta-base'",
    ),
    "mean": (("preprocess_cfg", "mean"), [1.0], "(preprocess_cfg.mean)"),
    "other size": (
        ("preprocess_cfg", "size"),
        [3, 64, 64],
        "pictures of 64 pixels, the model needs 32",
    ),
    "interpolation": (("preprocess_cfg", "interpolation"), "random", "is 'random'"),
}


@pytest.mark.parametrize("name", OPEN_CLIP_REFUSED)
def test_an_open_clip_configuration_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    """Sizes are compared with the weights before a model takes memory, and no hub is asked for a
    tower.
    """
    keys, value, part = OPEN_CLIP_REFUSED[name]
    folder = tiny.open_clip(tmp_path / "open_clip")
    edited(openclip.CONFIG, *keys, value=value)(folder)

    with pytest.raises(UsageError) as caught:
        references.load(str(folder), CPU)

    assert part in str(caught.value)


def test_pretrained_towers_are_not_fetched(tmp_path: Path) -> None:
    """A configuration that asks for pretrained weights of a tower gets those of the checkpoint, and
    nothing else.
    """
    folder = tiny.open_clip(tmp_path / "open_clip")
    before = references.load(str(folder), CPU).model.state_dict()
    edited(openclip.CONFIG, "model_cfg", "vision_cfg", "timm_model_pretrained", value=True)(folder)

    after = references.load(str(folder), CPU).model.state_dict()

    assert all(torch.equal(after[name], before[name]) for name in before)
    cfg = tiny.OPEN_CLIP | {
        "vision_cfg": {
            "timm_model_name": "resnet18",
            "timm_model_pretrained": True,
            "image_size": 32,
        }
    }
    openclip.build(cfg)  # would need a network


# -- the hub ---------------------------------------------------------------------------------------

COMMIT = "a" * 40


@pytest.fixture
def half_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub id of which the cache holds everything but the weights."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--someone--small-clip"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(
        checkpoint_files.EMBEDDED, snapshot, ignore=shutil.ignore_patterns("*.safetensors")
    )
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return "someone/small-clip"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub on this machine that has the embedded checkpoint; the paths that it was asked for."""
    from huggingface_hub import constants

    asked: list[str] = []
    stored = sorted(checkpoint_files.EMBEDDED.iterdir())
    answers: dict[str, object] = {  # by the end of the path
        "main": {"id": "someone/small-clip", "sha": COMMIT},
        COMMIT: [
            {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name}
            for p in stored
        ],
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            name = self.path.rpartition("/")[2].partition("?")[0]
            path = checkpoint_files.EMBEDDED / name
            data = (
                path.read_bytes() if path.is_file() else json.dumps(answers.get(name, {})).encode()
            )
            self.send_response(200)
            for key, value in {
                "Content-Length": len(data),
                "ETag": f'"{name}"',
                "X-Repo-Commit": COMMIT,
            }.items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}",
    )
    yield asked
    server.shutdown()
    server.server_close()


def test_a_half_cached_hub_id_is_completed(half_cached: str, hub: list[str]) -> None:
    """What the cache lacks is fetched."""
    checkpoint = checkpoint_files.look(half_cached)

    assert [path.name for path in checkpoint.weights] == ["model.safetensors"]
    assert checkpoint.revision() == checkpoint_files.revision(checkpoint_files.EMBEDDED)
    assert any(path.endswith("model.safetensors") for path in hub)


def test_a_half_cached_hub_id_offline_is_said_to_be_incomplete(
    half_cached: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network the id that the user gave is named, not a folder that nobody gave, with
    what is missing.
    """
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    line = refusal(half_cached)

    assert line.startswith(
        f"--clip-model {half_cached}: its cached copy is incomplete (model.safetensors is missing)"
    )
    assert f"hf download {half_cached}" in line


# -- tokenizers ------------------------------------------------------------------------------------


def test_a_tokenizer_of_another_model_is_refused(checkpoint: Path) -> None:
    """Ids that the model does not know, or an end token that never comes, are refused before they
    are computed with.
    """
    edited("tokenizer.json", "model", "vocab", "a</w>", value=5000)(checkpoint)

    with pytest.raises(UsageError, match="gives the id 5000, the model knows 1200 words"):
        references.load(str(checkpoint), CPU)


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """A SigLIP checkpoint whose tokenizer is of sentencepiece alone."""
    folder = tiny.write("siglip", tmp_path / "siglip")
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "spiece.model").write_bytes(b"")
    return folder


def test_sentencepiece_that_is_not_installed_is_named(
    pieces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer of sentencepiece without that library ends in the command that installs it."""
    monkeypatch.setattr(checkpoint_files, "find_spec", lambda name: None)

    line = refusal(pieces)

    assert line.startswith(f"{pieces / 'spiece.model'}: ")
    assert "pip install sentencepiece" in line


def test_sentencepiece_that_is_installed_is_used(pieces: Path) -> None:
    """With the library the words are split by it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(
            ["a photo of a cat", "an emoji of two dogs", "the quick brown fox"] * 5
        ),
        model_prefix=str(pieces / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )

    assert references.load(str(pieces), CPU).tokenizer("a photo of a cat.")["input_ids"][-1] == 1
