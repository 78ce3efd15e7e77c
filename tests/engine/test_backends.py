"""The backends by name, and the fake one that tests above the engine rely on."""

from pathlib import Path

import pytest

from ftproject.engine.adapters import AdapterError, read_adapter_info
from ftproject.engine.backends import BackendError, get_backend
from ftproject.engine.backends.base import LoadedModel
from ftproject.engine.configs import GenerationParams
from tests.engine.support import CPU, GPU, Recorder, row, training_job


@pytest.mark.parametrize(
    ("name", "found"), [("auto", "transformers"), ("transformers", "transformers"), ("fake", "fake")]
)
def test_a_backend_is_found_by_name_and_auto_is_never_the_fake_one(name: str, found: str) -> None:
    assert get_backend(name, CPU).name == found


def test_unsloth_needs_a_gpu_and_an_unknown_name_is_refused() -> None:
    with pytest.raises(BackendError) as caught:
        get_backend("unsloth", CPU)
    assert caught.value.code == "backend_needs_gpu"
    with pytest.raises(BackendError, match="use auto, transformers"):
        get_backend("tensorflow", CPU)
    assert get_backend("unsloth", GPU).name == "unsloth"


def test_the_fake_backend_walks_through_a_training_and_leaves_a_readable_adapter(tmp_path: Path) -> None:
    recorder = Recorder()
    result = get_backend("fake", CPU).train(training_job(tmp_path, [row(0)], max_steps=3), recorder)
    assert recorder.phases == ["loading_model", "preparing_data", "training", "saving"]
    assert [item.step for item in recorder.progress] == [1, 2, 3]
    info = read_adapter_info(result.adapter_path)
    assert info.provenance["dataset_sha256"] == "abc"
    assert result.stopped_early is False


def test_the_fake_backend_stops_when_asked(tmp_path: Path) -> None:
    result = get_backend("fake", CPU).train(training_job(tmp_path, [row(0)], max_steps=9), Recorder(stop_after=3))
    assert (result.steps, result.stopped_early) == (2, True)


def test_the_fake_model_knows_the_truth_only_with_an_adapter(tmp_path: Path) -> None:
    backend = get_backend("fake", CPU)
    adapter = backend.train(training_job(tmp_path, [row(0)], max_steps=1), Recorder()).adapter_path
    model = backend.load("tiny-qwen3-vl", "anywhere")
    assert isinstance(model, LoadedModel)
    item = row(0, truth="a red circle")
    pieces: list[str] = []
    params = GenerationParams(max_new_tokens=2)
    [answer] = model.generate([item], params, adapter=adapter, on_token=pieces.append)
    assert (answer.text, answer.finish_reason, pieces) == ("a red", "length", ["a", " red"])
    [base] = model.generate([item], GenerationParams(), adapter=None)
    assert base.text.startswith("base ")
    assert model.generate([item], GenerationParams(), adapter=None)[0].text == base.text
    with pytest.raises(AdapterError):
        model.generate([item], params, adapter=tmp_path / "gone")
