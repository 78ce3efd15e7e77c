"""One set of weights answers as base and as every adapter, alone or in batches, streamed or whole."""

import json
import shutil
import threading
from pathlib import Path

import pytest

from ftproject.engine.adapters import AdapterError
from ftproject.engine.backends import get_backend
from ftproject.engine.backends.base import LoadedModel, RowError
from ftproject.engine.configs import GenerationParams
from ftproject.engine.resident import ADAPTERS_IN_MEMORY, GenerationError, ResidentModel
from tests.engine.conftest import TrainedAdapter
from tests.engine.support import CPU, QUESTION, SHORT, TINY, row, save_image

pytestmark = pytest.mark.slow


def texts(model: ResidentModel, rows: list, adapter: Path | None = None) -> list[str]:  # type: ignore[type-arg]
    return [answer.text for answer in model.generate(rows, SHORT, adapter=adapter)]


def copy_adapter(trained: TrainedAdapter, target: Path) -> Path:
    shutil.copytree(trained.path, target)
    return target


def test_it_is_what_the_seam_asks_for(resident: ResidentModel) -> None:
    assert isinstance(resident, LoadedModel)
    assert (resident.model_name, resident.device) == ("tiny-qwen3-vl", "cpu")
    assert resident.memory_mb() > 100


def test_the_base_answers_as_before_any_adapter_was_loaded(trained: TrainedAdapter) -> None:
    model = get_backend("transformers", CPU).load("tiny-qwen3-vl", TINY)
    rows = list(trained.heldout[:12])
    before = model.generate(rows, SHORT, adapter=None)
    tuned = model.generate(rows, SHORT, adapter=trained.path)
    after = model.generate(rows, SHORT, adapter=None)
    assert [answer.text for answer in before] == [answer.text for answer in after]
    assert [answer.text for answer in before] != [answer.text for answer in tuned]
    assert [answer.text for answer in tuned] == texts(model, rows, trained.path)  # type: ignore[arg-type]


def test_the_fine_tuned_model_answers_digits_where_the_base_does_not(
    resident: ResidentModel, trained: TrainedAdapter
) -> None:
    rows = list(trained.heldout)
    truths = [item.conversation.ground_truth for item in rows]
    right = sum(a == b for a, b in zip(texts(resident, rows, trained.path), truths, strict=True))
    base = sum(a == b for a, b in zip(texts(resident, rows), truths, strict=True))
    assert base <= len(rows) * 0.05
    assert right >= len(rows) * 0.25


def test_an_answer_counts_its_tokens_and_says_why_it_ended(resident: ResidentModel, trained: TrainedAdapter) -> None:
    item = trained.heldout[0]
    [answer] = resident.generate([item], SHORT, adapter=trained.path)
    assert (answer.finish_reason, answer.completion_tokens) == ("stop", 2)
    assert answer.prompt_tokens == len(resident.encode(item, adapter=trained.path))
    assert answer.time_ms > 0
    [cut] = resident.generate([item], GenerationParams(max_new_tokens=1, do_sample=False), adapter=trained.path)
    assert (cut.finish_reason, cut.completion_tokens, cut.text) == ("length", 1, answer.text)


def test_streaming_gives_the_same_text_in_pieces(resident: ResidentModel, tmp_path: Path) -> None:
    item = row(0, "Describe the image.", images=[save_image(tmp_path / "red.png")])
    pieces: list[str] = []
    [answer] = resident.generate([item], SHORT, adapter=None, on_token=pieces.append)
    assert "".join(pieces) == answer.text
    assert len(pieces) > 1


def test_a_listener_that_raises_ends_the_generation_and_frees_the_model(
    resident: ResidentModel, tmp_path: Path
) -> None:
    class GoneError(RuntimeError):
        pass

    def gone(text: str) -> None:
        raise GoneError

    item = row(0, "Describe the image.", images=[save_image(tmp_path / "red.png")])
    with pytest.raises(GoneError):
        resident.generate([item], SHORT, adapter=None, on_token=gone)
    assert texts(resident, [item])


def test_only_one_conversation_can_be_streamed(resident: ResidentModel) -> None:
    with pytest.raises(GenerationError, match="only one"):
        resident.generate([row(0), row(1)], SHORT, adapter=None, on_token=lambda text: None)
    assert resident.generate([], SHORT, adapter=None) == []


def test_a_seed_makes_sampling_repeatable_and_leaves_the_global_generator_alone(
    resident: ResidentModel, trained: TrainedAdapter
) -> None:
    import torch

    params = GenerationParams(max_new_tokens=8, temperature=2.0, top_p=1.0, seed=5)
    rows = list(trained.heldout[:8])
    state = torch.random.get_rng_state()
    first = [answer.text for answer in resident.generate(rows, params, adapter=None)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert first == [answer.text for answer in resident.generate(rows, params, adapter=None)]
    other = GenerationParams(max_new_tokens=8, temperature=2.0, top_p=1.0, seed=6)
    assert first != [answer.text for answer in resident.generate(rows, other, adapter=None)]


def test_without_sampling_the_sampling_fields_do_not_matter(resident: ResidentModel) -> None:
    wild = GenerationParams(max_new_tokens=8, do_sample=False, temperature=50.0, top_p=0.01, min_p=1.0)
    zero = GenerationParams(max_new_tokens=8, do_sample=True, temperature=0.0)
    expected = texts(resident, [row(0)])
    assert [answer.text for answer in resident.generate([row(0)], wild, adapter=None)] == expected
    assert [answer.text for answer in resident.generate([row(0)], zero, adapter=None)] == expected


def test_a_prompt_longer_than_the_model_reads_is_refused(resident: ResidentModel) -> None:
    with pytest.raises(RowError, match="the model reads 4096"):
        resident.generate([row(0, "why " * 9000)], SHORT, adapter=None)


def test_an_adapter_of_another_base_is_refused(
    resident: ResidentModel, trained: TrainedAdapter, tmp_path: Path
) -> None:
    other = copy_adapter(trained, tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "Qwen/Qwen3-VL-4B"}))
    with pytest.raises(AdapterError, match="was trained on Qwen/Qwen3-VL-4B") as caught:
        resident.ensure_adapter(other)
    assert caught.value.code == "adapter_base_mismatch"


@pytest.mark.parametrize("damage", ["shape", "name", "cut"])
def test_weights_that_do_not_fit_are_refused_and_the_base_still_answers(
    trained: TrainedAdapter, tmp_path: Path, damage: str
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    model = get_backend("transformers", CPU).load("tiny-qwen3-vl", TINY)
    expected = texts(model, [row(0)])  # type: ignore[arg-type]
    broken = copy_adapter(trained, tmp_path / "broken")
    file = broken / "adapter_model.safetensors"
    tensors = load_file(str(file))
    first = next(name for name in tensors if "lora_A" in name)
    if damage == "shape":
        tensors[first] = torch.zeros(16, 7)
    elif damage == "name":
        tensors["base_model.model.nowhere.lora_A.weight"] = tensors.pop(first)
    save_file(tensors, str(file))
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(AdapterError) as caught:
        model.ensure_adapter(broken)
    assert caught.value.code in ("adapter_mismatch", "adapter_unreadable")
    assert texts(model, [row(0)]) == expected  # type: ignore[arg-type]


def test_an_adapter_replaced_under_the_same_path_is_loaded_anew(
    resident: ResidentModel, trained: TrainedAdapter, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    rows = list(trained.heldout[:6])
    path = copy_adapter(trained, tmp_path / "adapter")
    tuned = texts(resident, rows, path)
    shutil.rmtree(path)
    copy_adapter(trained, path)
    file = path / "adapter_model.safetensors"
    zeroed = {name: tensor * 0 if "lora_B" in name else tensor for name, tensor in load_file(str(file)).items()}
    save_file(zeroed, str(file))
    assert texts(resident, rows, path) == texts(resident, rows)
    assert tuned != texts(resident, rows)


def test_only_a_few_adapters_stay_in_memory(resident: ResidentModel, trained: TrainedAdapter, tmp_path: Path) -> None:
    for number in range(ADAPTERS_IN_MEMORY + 2):
        resident.ensure_adapter(copy_adapter(trained, tmp_path / f"adapter{number}"))
    assert len(resident._peft.peft_config) == ADAPTERS_IN_MEMORY
    rows = list(trained.heldout[:4])
    assert texts(resident, rows, tmp_path / "adapter0") == texts(resident, rows, trained.path)


def test_a_load_that_fails_half_way_leaves_the_base_and_the_other_adapters_as_they_were(
    trained: TrainedAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft.peft_model

    def no_memory(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory")

    rows = list(trained.heldout[:4])
    model = get_backend("transformers", CPU).load("tiny-qwen3-vl", TINY)
    assert isinstance(model, ResidentModel)
    base = texts(model, rows)
    for name in ("the first adapter of all", "one beside others"):
        broken = copy_adapter(trained, tmp_path / name)
        with monkeypatch.context() as patch:
            patch.setattr(peft.peft_model, "set_peft_model_state_dict", no_memory)
            with pytest.raises(RuntimeError, match="out of memory"):
                model.generate(rows, SHORT, adapter=broken)
        assert texts(model, rows) == base
        tuned = texts(model, rows, trained.path)
        assert tuned != base
        assert texts(model, rows, broken) == tuned


def test_several_adapters_answer_by_turns_and_each_as_pefts_own_switch_would(
    trained: TrainedAdapter, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    other = copy_adapter(trained, tmp_path / "half")
    file = other / "adapter_model.safetensors"
    save_file({name: value * 0.5 if "lora_B" in name else value for name, value in load_file(file).items()}, file)
    rows = list(trained.heldout[:6])
    model = get_backend("transformers", CPU).load("tiny-qwen3-vl", TINY)
    assert isinstance(model, ResidentModel)
    wanted: list[Path | None] = [None, trained.path, other]
    first = {place: texts(model, rows, place) for place in wanted}
    assert len({tuple(answers) for answers in first.values()}) == 3
    for place in [other, None, other, trained.path, None, trained.path, trained.path, None]:
        assert texts(model, rows, place) == first[place]
    model._peft.set_adapter(model._adapters[next(key for key in model._adapters if key[0] == other.resolve())])
    model._active = "unknown"
    assert texts(model, rows, other) == first[other]
    with model._peft.disable_adapter():
        assert texts(model, rows, trained.path) == first[None]


def test_switching_costs_next_to_nothing(resident: ResidentModel, trained: TrainedAdapter) -> None:
    import time

    resident.ensure_adapter(trained.path)
    spent = []
    for _ in range(20):
        for name in (None, resident._adapters[next(reversed(resident._adapters))]):
            started = time.process_time()
            resident._activate(name)
            spent.append(time.process_time() - started)
    assert sorted(spent)[len(spent) // 2] < 0.002  # 33 layers; PEFT's own way takes 10 ms here


def test_an_adapter_sees_images_by_the_rule_it_was_trained_with(
    resident: ResidentModel, trained: TrainedAdapter, tmp_path: Path
) -> None:
    path = copy_adapter(trained, tmp_path / "large")
    provenance = json.loads((path / "provenance.json").read_text())
    provenance["pixel_rule"] = {"min_pixels": 16384, "max_pixels": 16384}
    (path / "provenance.json").write_text(json.dumps(provenance))
    item = trained.heldout[0]
    assert len(resident.encode(item, adapter=path)) == len(resident.encode(item)) + 12
    resident.preload([item, row(1, images=[tmp_path / "gone.png"])], adapter=path)
    assert resident.generate([item], SHORT, adapter=path)


def test_two_threads_get_the_answers_they_would_get_alone(resident: ResidentModel, trained: TrainedAdapter) -> None:
    rows = list(trained.heldout[:4])
    expected = {None: texts(resident, rows), trained.path: texts(resident, rows, trained.path)}
    wrong: list[object] = []

    def ask(adapter: Path | None) -> None:
        for _ in range(4):
            if texts(resident, rows, adapter) != expected[adapter]:
                wrong.append(adapter)

    threads = [threading.Thread(target=ask, args=(adapter,)) for adapter in (None, trained.path, None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_text_without_an_image_is_answered_too(resident: ResidentModel) -> None:
    [answer] = resident.generate([row(0, QUESTION)], SHORT, adapter=None)
    assert answer.completion_tokens >= 1
