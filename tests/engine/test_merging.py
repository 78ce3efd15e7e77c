"""Merging an adapter: a complete 16-bit model that answers as base + adapter do, or nothing at all."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftproject.engine import merging
from ftproject.engine.backends import get_backend
from ftproject.engine.configs import TINY_MODEL_PATH
from ftproject.engine.merge_check import MergeCheck
from ftproject.engine.merged_weights import shards_of, stochastic_bfloat16, write_merged_weights
from ftproject.engine.merging import FROM_4_BIT, TRAINED_IN_4_BIT, MergeError, MergeResult, merge_adapter, plan_merge
from ftproject.engine.models import check_model_folder, load_base_model
from ftproject.engine.processors import load_processor, pixel_rule_of
from ftproject.engine.tensor_files import TensorFileError, folder_entries, tensor_entries, weight_shapes
from tests.engine.conftest import TrainedAdapter
from tests.engine.support import CPU, SHORT, TINY

pytestmark = pytest.mark.slow
SHARD = 1_000_000


@pytest.fixture(scope="module")
def told() -> list[tuple[int, int, str]]:
    return []


@pytest.fixture(scope="module")
def merged(
    trained: TrainedAdapter, tmp_path_factory: pytest.TempPathFactory, told: list[tuple[int, int, str]]
) -> MergeResult:
    """The trained adapter merged once, in small shards."""
    return merge_adapter(
        trained.path,
        TINY,
        tmp_path_factory.mktemp("models") / "digits-merged",
        provenance={"merge_id": 7},
        on_progress=lambda done, total, message: told.append((done, total, message)),
        shard_bytes=SHARD,
    )


@pytest.fixture
def adapter(trained: TrainedAdapter, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(trained.path, tmp_path / "adapter"))


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """Where a merge would go; whatever happens, nothing half-written stays there."""
    folder = tmp_path / "models"
    yield folder / "merged"
    assert not folder.exists() or list(folder.iterdir()) in ([], [folder / "merged"])


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def code_of(adapter: Path, target: Path, base: str = TINY, **options: Any) -> str:
    with pytest.raises((MergeError, TensorFileError)) as caught:
        merge_adapter(adapter, base, target, **options)
    assert not target.exists()
    return caught.value.code


def test_the_merged_model_answers_as_base_and_adapter_do(merged: MergeResult, trained: TrainedAdapter) -> None:
    rows = list(trained.heldout)
    backend = get_backend("transformers", CPU)
    tuned = backend.load("tiny-qwen3-vl", TINY).generate(rows, SHORT, adapter=trained.path)
    alone = backend.load("digits-merged", str(merged.path)).generate(rows, SHORT, adapter=None)
    same = sum(a.text == b.text for a, b in zip(tuned, alone, strict=True))
    assert same >= len(rows) - 1  # a tie may fall the other way after rounding
    assert merged.check.passed
    assert merged.check.difference < 0.005 < 0.1 < merged.check.effect
    assert merged.check.kept_effect == pytest.approx(1, abs=0.02)


def test_every_weight_is_pefts_merge_rounded_to_a_neighbour_and_the_others_are_untouched(
    merged: MergeResult, trained: TrainedAdapter
) -> None:
    import torch
    from peft import PeftModel

    expected = PeftModel.from_pretrained(load_base_model(TINY, device="cpu"), str(trained.path)).merge_and_unload()
    changed = 0
    base = dict(load_base_model(TINY, device="cpu").named_parameters())
    for name, value in load_base_model(str(merged.path), device="cpu").named_parameters():
        exact = dict(expected.named_parameters())[name]
        step = exact.abs().clamp(min=2.0**-126) * 2.0**-7  # bfloat16 has 8 significant bits
        assert (value - exact).abs().le(step).all(), name
        changed += not torch.equal(value, base[name])
    assert changed == merged.modules == 33


def test_the_folder_is_complete_and_loads_by_stock_classes(merged: MergeResult) -> None:
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    assert check_model_folder(merged.path).quantised is False
    assert merged.shards == 3
    names = {file.name for file in merged.path.iterdir()}
    assert {file.name for file in TINY_MODEL_PATH.iterdir()} - {"model.safetensors", "README.md"} <= names
    assert "model.safetensors.index.json" in names
    assert {entry.dtype for entry in folder_entries(merged.path).values()} == {"BF16"}
    assert weight_shapes(folder_entries(merged.path)) == weight_shapes(folder_entries(TINY_MODEL_PATH))
    model = Qwen3VLForConditionalGeneration.from_pretrained(merged.path, dtype="auto")
    assert model.dtype == torch.bfloat16


def test_it_says_what_was_merged_and_holds_no_path_of_this_machine(
    merged: MergeResult, trained: TrainedAdapter
) -> None:
    text = (merged.path / "provenance.json").read_text()
    facts = json.loads(text)
    assert facts["adapter"] == trained.path.name
    assert facts["base_model_name"] == "tiny-qwen3-vl"
    assert facts["adapter_provenance"]["dataset_sha256"] == "abc"
    assert facts["weights_from"] == merging.FROM_16_BIT
    assert facts["merge_id"] == 7
    assert facts["check"]["kept_effect"] == merged.check.kept_effect
    assert all(str(trained.path.parent) not in file.read_text() for file in merged.path.glob("*.json"))


def test_the_same_merge_gives_the_same_bytes(merged: MergeResult, adapter: Path, target: Path) -> None:
    again = merge_adapter(adapter, TINY, target, shard_bytes=SHARD).path
    for file in merged.path.glob("*.safetensors"):
        assert file.read_bytes() == (again / file.name).read_bytes()


def test_progress_counts_every_tensor_and_ends_at_the_total(
    merged: MergeResult, told: list[tuple[int, int, str]]
) -> None:
    assert [done for done, _, _ in told] == list(range(len(told)))
    assert told[-1][:2] == (len(told) - 1, len(told) - 1)
    assert len(told) == len(folder_entries(TINY_MODEL_PATH)) + merging.CHECK_STEPS + 1


def test_the_pixel_rule_of_the_training_goes_along(trained: TrainedAdapter, adapter: Path, target: Path) -> None:
    provenance = json.loads((adapter / "provenance.json").read_text())
    provenance["pixel_rule"] = {"min_pixels": 16384, "max_pixels": 65536}
    (adapter / "provenance.json").write_text(json.dumps(provenance))
    merge_adapter(adapter, TINY, target)
    rule = pixel_rule_of(load_processor(target))
    assert (rule.min_pixels, rule.max_pixels) == (16384, 65536)


def test_the_plan_knows_the_size_to_the_byte_before_anything_is_written(
    merged: MergeResult, trained: TrainedAdapter
) -> None:
    plan = plan_merge(trained.path, TINY)
    written = sum(e.end - e.start for e in folder_entries(merged.path).values())
    assert plan.model_bytes == written
    assert plan.needed_bytes > merged.size_bytes
    assert plan.modules == 33


def test_a_four_bit_base_is_merged_from_its_own_dequantised_weights(adapter: Path, tmp_path: Path) -> None:
    base = tmp_path / "tiny-4bit"
    load_base_model(TINY, device="cpu", load_in_4bit=True).save_pretrained(base)
    load_processor(TINY).save_pretrained(base)
    assert "quantization_config" in json.loads((base / "config.json").read_text())
    plan = plan_merge(adapter, str(base))
    assert plan.weights_from == FROM_4_BIT
    result = merge_adapter(adapter, str(base), tmp_path / "merged")
    assert "quantization_config" not in json.loads((result.path / "config.json").read_text())
    assert plan.model_bytes == sum(e.end - e.start for e in folder_entries(result.path).values())
    assert result.check.kept_effect == pytest.approx(1, abs=0.05)
    assert json.loads((result.path / "provenance.json").read_text())["weights_from"] == FROM_4_BIT
    # The 16-bit release differs by what the quantisation took away, which is more than the rounding.
    assert weight_shapes(folder_entries(base)).keys() == weight_shapes(folder_entries(result.path)).keys()


def test_an_adapter_trained_in_four_bit_and_merged_into_16_bit_says_so(adapter: Path, target: Path) -> None:
    provenance = json.loads((adapter / "provenance.json").read_text())
    provenance["config"]["model_config_data"]["load_in_4bit"] = True
    (adapter / "provenance.json").write_text(json.dumps(provenance))
    assert merge_adapter(adapter, TINY, target).warnings == [TRAINED_IN_4_BIT]


def test_a_taken_name_is_refused_and_left_alone(adapter: Path, tmp_path: Path) -> None:
    taken = tmp_path / "models" / "merged"
    taken.mkdir(parents=True)
    with pytest.raises(MergeError) as caught:
        merge_adapter(adapter, TINY, taken)
    assert caught.value.code == "model_exists"
    assert list(taken.iterdir()) == []


@pytest.mark.parametrize("step", [1, 20, 87, 88])
def test_a_stop_keeps_nothing(adapter: Path, target: Path, step: int) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > step

    assert code_of(adapter, target, should_stop=stop) == "merge_stopped"
    assert len(asked) == step + 1


def test_too_little_disk_is_known_before_the_first_byte(
    adapter: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(adapter)
    monkeypatch.setattr("ftproject.engine.merging.shutil.disk_usage", lambda path: usage._replace(free=60 * 2**20))
    told: list[str] = []
    code = code_of(adapter, target, on_progress=lambda done, total, message: told.append(message))
    assert (code, told) == ("not_enough_disk", [])


def test_a_full_disk_in_the_middle_leaves_nothing(adapter: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging, "_write_small_files", full)
    with pytest.raises(OSError, match="No space"):
        merge_adapter(adapter, TINY, target)
    assert not target.exists()


@pytest.mark.parametrize(
    "change", [{"use_dora": True}, {"rank_pattern": {"q_proj": 4}}, {"alpha_pattern": {"q_proj": 4}}]
)
def test_a_lora_variant_that_we_would_merge_wrongly_is_refused(
    adapter: Path, target: Path, change: dict[str, Any]
) -> None:
    edit_json(adapter / "adapter_config.json", **change)
    assert code_of(adapter, target) == "merge_not_supported"


@pytest.mark.parametrize("damage", ["unknown", "shape", "strange", "zero", "nan", "cut"])
def test_weights_that_cannot_be_merged_are_refused(adapter: Path, target: Path, damage: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    tensors = load_file(str(file))
    first = next(name for name in tensors if "lora_B" in name)
    if damage == "unknown":
        for side in "AB":
            name = first.replace("lora_B", f"lora_{side}")
            tensors[name.replace("model.model.", "model.nowhere.")] = tensors.pop(name)
    elif damage == "shape":
        tensors[first] = torch.zeros(7, 16)
    elif damage == "strange":
        tensors["base_model.model.lm_head.weight"] = torch.zeros(2, 2)
    elif damage == "zero":
        tensors = {name: value * 0 if "lora_B" in name else value for name, value in tensors.items()}
    elif damage == "nan":
        tensors[first] = torch.full_like(tensors[first], torch.nan)
    save_file(tensors, str(file))
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    expected = {"zero": "adapter_not_effective", "nan": "weights_not_finite", "cut": "weights_unreadable"}
    assert code_of(adapter, target) == expected.get(damage, "merge_not_supported")


def test_a_merge_that_leaves_the_adapter_out_does_not_pass(
    adapter: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = write_merged_weights

    def forgetful(source: Any, *args: Any, **options: Any) -> int:
        source.pairs.clear()
        return real(source, *args, **options)

    monkeypatch.setattr(merging, "write_merged_weights", forgetful)
    assert code_of(adapter, target) == "merge_differs"


def test_a_base_that_is_not_here_has_no_plan(adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(MergeError) as caught:
        plan_merge(adapter, "unsloth/Qwen3-VL-never-fetched")
    assert caught.value.code == "base_not_local"


def test_rounding_by_chance_keeps_updates_below_half_a_step() -> None:
    import torch

    values = torch.ones(40_000) + 2.0**-11  # an eighth of a bfloat16 step above 1
    assert values.to(torch.bfloat16).float().mean() == 1
    rounded = stochastic_bfloat16(values, seed=1)
    assert rounded.float().mean().item() == pytest.approx(1 + 2.0**-11, abs=2e-5)
    assert set(rounded.tolist()) == {1.0, 1.0078125}
    assert torch.equal(rounded, stochastic_bfloat16(values, seed=1))
    exact = torch.tensor([0.0, -1.5, 3.0e38, -(2.0**-126)])
    assert torch.equal(stochastic_bfloat16(exact, seed=3).float()[[0, 1, 3]], exact[[0, 1, 3]])


def test_tensors_are_grouped_in_order_into_shards_of_the_given_size() -> None:
    sizes = {"a": 5, "b": 5, "c": 11, "d": 1}
    assert shards_of(sizes, 10) == [["a", "b"], ["c"], ["d"]]


def test_a_merge_check_tells_noise_from_a_missing_adapter() -> None:
    def check(difference: float, effect: float, kept: float) -> MergeCheck:
        return MergeCheck(difference, effect, kept, True, 0.002)

    assert check(0.001, 0.5, 1.0).passed
    assert check(0.001, 0.003, 0.6).passed
    assert check(0.001, 0.003, 0.6).noisy
    assert not check(0.5, 0.5, 0.0).passed
    assert not check(0.25, 0.5, 0.5).passed
    assert not check(0.2, 0.5, 1.0).passed


def test_an_index_that_names_a_file_elsewhere_is_refused(merged: MergeResult, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(merged.path, tmp_path / "model"))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    with pytest.raises(TensorFileError, match="outside"):
        folder_entries(folder)
    (folder / "broken.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(TensorFileError, match="no complete"):
        tensor_entries(folder / "broken.safetensors")
