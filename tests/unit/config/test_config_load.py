"""Layers of settings to one configuration: sources, every mistake in one report, and nothing but reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from segtune.config.layers import SECTIONS, Layer, nest, parse_assignments, read_yaml
from segtune.config.load import difference, load_config, load_data_settings, load_settings
from segtune.config.run import RunConfig
from segtune.errors import SegtuneError, SettingsError, UsageError

BASE = Layer("base", {"model": {"name": "unet"}, "method": {"name": "lora"}})


def load(*assignments: str, base: Layer = BASE) -> RunConfig:
    return load_config([base, parse_assignments(assignments)])


def problems(*assignments: str, base: Layer = BASE) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(*assignments, base=base)
    return caught.value.problems


def problem(*assignments: str, base: Layer = BASE) -> str:
    found = problems(*assignments, base=base)
    assert len(found) == 1, found
    return found[0]


# --- layers and sources -----------------------------------------------------------------------


def test_later_layers_win_and_sources_say_so(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train: {batch_size: 4, seed: 3}\nmethod: {rank: 2}\n", encoding="utf-8")
    config = load_settings(
        flags={"--model": {"model": {"name": "unet"}}, "--method": {"method": {"name": "lora"}}},
        files=[file],
        assignments=["train.seed=5"],
    )
    assert (config.train.batch_size, config.train.seed) == (4, 5)
    assert config.method_parts["lora"].rank == 2  # type: ignore[attr-defined]
    assert config.sources["train.batch_size"] == "run.yaml"
    assert config.sources["train.seed"] == "--set"
    assert config.sources["model.name"] == "--model"
    assert "train.accumulate" not in config.sources


def test_two_files_the_later_wins(tmp_path: Path) -> None:
    for name, seed in (("a.yaml", 1), ("b.yaml", 2)):
        (tmp_path / name).write_text(f"train: {{seed: {seed}, batch_size: {seed}}}\n", encoding="utf-8")
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    config = load_settings(flags={"x": BASE.values}, files=files, assignments=["train.batch_size=7"])
    assert (config.train.seed, config.train.batch_size) == (2, 7)


def test_a_name_alone_is_a_section() -> None:
    config = load("method.rank=8", base=Layer("x", {"model": "unet", "method": "lora", "loss": "dice"}))
    assert (config.model, config.method, config.loss) == ("unet", "lora", "dice")
    assert config.method_parts["lora"].rank == 8  # type: ignore[attr-defined]


def test_a_name_alone_keeps_the_sections_other_settings() -> None:
    config = load("model.depth=2", "loss.auxiliary_weight=0.1", "loss=focal")
    assert config.loss == "focal"
    assert config.loss_common.auxiliary_weight == 0.1
    assert config.model_settings.depth == 2  # type: ignore[attr-defined]


def test_an_empty_section_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("optim:\ntrain:\n  # epochs: 3\n", encoding="utf-8")
    assert load_config([BASE, read_yaml(file)]) == load()


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("", encoding="utf-8")
    assert load_config([BASE, read_yaml(file)]) == load()


# --- values -----------------------------------------------------------------------------------


def test_values_as_typed() -> None:
    config = load(
        "data.crop=256,128",
        "data.window=null",
        "optim.learning_rate=1e-4",
        "method.include=*conv*,decoder.*",
        "data.include=*_day",
        "optim.clip=null",
        "train.precision=32",
        "data.values={0: 0, 7: 1}",
        "data.flip_tta=true",
        "optim.betas=0.8,0.99",
    )
    assert config.data.crop == (256, 128)
    assert config.data.window is None
    assert config.optim.learning_rate == 1e-4
    assert config.method_parts["lora"].include == ("*conv*", "decoder.*")  # type: ignore[attr-defined]
    assert config.data.include == ("*_day",)
    assert config.optim.clip is None
    assert config.train.precision == "32"
    assert config.data.values == {0: 0, 7: 1}
    assert config.data.flip_tta is True
    assert config.optim.betas == (0.8, 0.99)


def test_values_of_a_mapping_one_by_one() -> None:
    assert load("data.values.3=1", "data.values.0=0").data.values == {3: 1, 0: 0}


def test_a_folder_called_like_a_date_is_a_path() -> None:
    assert load("data.path=2024-05-01").data_path == Path("2024-05-01").resolve()


def test_paths_hold_from_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load("data.path=pictures").data_path == tmp_path / "pictures"
    assert load("data.path=~/pictures").data_path == tmp_path / "home" / "pictures"


# --- methods ----------------------------------------------------------------------------------


def test_combined_methods_share_keys_and_have_their_own() -> None:
    config = load(
        "method.name=lora+norm", "method.rank=2", "method.statistics=train", "method.norm.train_bias=true"
    )
    lora, norm = config.method_parts["lora"], config.method_parts["norm"]
    assert list(config.method_parts) == ["lora", "norm"]
    assert lora.rank == 2  # type: ignore[attr-defined]
    assert (lora.statistics, norm.statistics) == ("train", "train")  # type: ignore[attr-defined]
    assert (lora.train_bias, norm.train_bias) == (False, True)  # type: ignore[attr-defined]


def test_a_methods_own_key_wins_over_the_shared_one() -> None:
    config = load("method.name=lora+norm", "method.train_bias=true", "method.norm.train_bias=false")
    assert config.method_parts["lora"].train_bias is True  # type: ignore[attr-defined]
    assert config.method_parts["norm"].train_bias is False  # type: ignore[attr-defined]


def test_wrong_combinations() -> None:
    assert "'lora' stands there twice" in problem("method.name=lora+lora")
    assert "did you mean 'norm'?" in problem("method.name=lora+nrom")
    assert "no such setting of lora+norm; did you mean method.rank?" in problem(
        "method.name=lora+norm", "method.rnak=3"
    )
    wrong = problem("method.name=lora+norm", "method.lora.rank=0")
    assert wrong.startswith("method.rank = 0 (from --set): input should be greater than or equal to 1")
    assert "expected settings such as method.lora.train_head=true" in problem("method.lora=4")


# --- mistakes ---------------------------------------------------------------------------------


def test_every_mistake_in_one_report() -> None:
    found = problems(
        "modle.depth=3",
        "model.dept=3",
        "model.width=-1",
        "method.rnak=8",
        "data.crop=big",
        "loss.name=dicee",
        "optim.learning_rate=-1",
        "train.batch_size=many",
        "train.monitor=mou",
    )
    text = "\n".join(found)
    assert len(found) == 9, text
    for piece in (
        "modle: no such section (from --set); did you mean model?",
        "model.dept = 3 (from --set): no such setting of unet; did you mean model.depth?",
        "model.width = -1 (from --set): input should be greater than or equal to 1",
        "method.rnak = 8 (from --set): no such setting of lora; did you mean method.rank?",
        "data.crop = 'big' (from --set)",
        "loss.name = 'dicee': there is no loss called 'dicee'; did you mean 'dice'?",
        "optim: learning_rate must be greater than 0",
        "train.batch_size = 'many' (from --set)",
        "train.monitor = 'mou': no such metric; did you mean 'miou'?",
    ):
        assert piece in text, f"{piece}\nis not in\n{text}"


def test_missing_names() -> None:
    found = problems(base=Layer("x", {}))
    assert [line.partition(";")[0] for line in found] == ["model.name is missing", "method.name is missing"]


def test_epochs_and_steps_exclude_each_other() -> None:
    assert "train.epochs and train.steps exclude each other" in problem("train.epochs=2", "train.steps=5")


def test_monitors() -> None:
    assert load("train.monitor=dice").train.monitor == "dice"
    assert load("train.monitor=cross_entropy").train.monitor == "cross_entropy"
    assert "metrics are miou" in problem("train.monitor=xyzxyzxyz")
    assert load("train.monitor=s_measure", "train.saliency=true").train.monitor == "s_measure"
    assert "set train.saliency=true" in problem("train.monitor=s_measure")


@pytest.mark.parametrize(
    ("assignment", "piece"),
    [
        ("model=3", "model = 3 (from --set): expected settings such as model.name=..."),
        ("train=3", "train = 3 (from --set): expected settings, not a value"),
        ("model.weights=null", "model.weights = None (from --set): expected a text"),
        ("method.name=[lora]", "method.name = ['lora'] (from --set): expected a text"),
        ("data.path=12", "data.path = 12 (from --set): expected a text; a number is put in quotes"),
        ("data.path=[a]", "data.path = ['a'] (from --set): expected a text"),
        ("model.name=null", "model.name is missing"),
        ("train.seed=" + "x" * 500, "x..."),
    ],
)
def test_values_of_the_wrong_kind(assignment: str, piece: str) -> None:
    found = problem(assignment)
    assert piece in found
    assert len(found) < 400


@pytest.mark.parametrize("text", ["method.rank", "=3", " =3", "a..b=1", ".a=1", "a.=1"])
def test_what_is_no_assignment(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_assignments([text])
    assert repr(text.partition("=")[0].strip() if "." in text and "=" in text else text) in str(caught.value)
    assert caught.value.hint is not None


def test_a_key_inside_of_a_value() -> None:
    with pytest.raises(UsageError, match="rank has a value of its own already"):
        parse_assignments(["method.rank=3", "method.rank.x=4"])


def test_nest_takes_values_as_they_are() -> None:
    assert nest([("a.b", "1"), ("a.c", (2,))], "x") == Layer("x", {"a": {"b": "1", "c": (2,)}})


# --- files ------------------------------------------------------------------------------------


def test_files_that_are_no_settings(tmp_path: Path) -> None:
    cases = {
        "list.yaml": ("- a\n", "holds list, not settings"),
        "text.yaml": ("hello", "holds str, not settings"),
        "broken.yaml": ("a: [1\nb: 2", "is not valid YAML"),
        "tab.yaml": ("a:\n\t- b", "is not valid YAML"),
        "tag.yaml": ("a: !!python/object/apply:os.system [ls]", "is not valid YAML"),
    }
    for name, (text, piece) in cases.items():
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=piece) as caught:
            read_yaml(file)
        assert name in str(caught.value)
        assert caught.value.hint is not None
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(UsageError, match="is not valid YAML"):
        read_yaml(tmp_path / "bytes.yaml")
    with pytest.raises(UsageError, match="No such file"):
        read_yaml(tmp_path / "missing.yaml")
    with pytest.raises(UsageError, match="Is a directory"):
        read_yaml(tmp_path)


def test_data_settings_alone() -> None:
    assert load_data_settings(assignments=["data.limit=3"]).limit == 3
    with pytest.raises(SettingsError, match=r"data\.limt = 3 .*did you mean data\.limit"):
        load_data_settings(assignments=["data.limt=3"])


# --- round trip -------------------------------------------------------------------------------

CASES: list[list[str]] = [
    [],
    ["method.name=lora+norm", "method.rank=2", "method.norm.train_bias=true", "method.kinds=conv"],
    ["data.values={0: 0, 9: 1}", "data.path=/somewhere/else", "data.crop=null", "data.exclude=*_a,b?"],
    ["model.name=smp:unet/resnet18", "model.weights=none", "method=full", "loss=dice_cross_entropy"],
    ["train.steps=7", "optim.clip=null", "optim.learning_rate=0.5", "data.window=64,32", "data.scale=0.5,2"],
    ["data.classes=a,b,c", "train.monitor=cross_entropy", "optim.name=sgd", "optim.schedule=poly"],
    ['data.include=["a,b", "auto"]', "data.group=([a-z]+)_"],
]


@pytest.mark.parametrize("assignments", CASES)
def test_written_and_read_back(assignments: list[str], tmp_path: Path) -> None:
    config = load(*assignments)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")
    back = load_config([read_yaml(file)])
    assert back == config
    assert back.to_dict() == config.to_dict()
    assert difference(config, back) == []


def test_difference_names_key_and_both_values() -> None:
    assert difference(load("train.seed=1"), load("train.seed=2", "method.rank=8")) == [
        "method.rank was 4, now 8",
        "train.seed was 1, now 2",
    ]


# --- nothing but reports ----------------------------------------------------------------------

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.binary(max_size=4)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["name", "path", "weights", "rank", "lora", "norm", "crop", "values", "classes", "precision", "seed",
     "monitor", "learning_rate", "betas", "include", "kinds", "depth", "class_weights"]
) | st.text(max_size=6)  # fmt: skip
SECTION_VALUES = st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=3), max_size=5)
TREES: st.SearchStrategy[dict[Any, Any]] = st.dictionaries(
    st.sampled_from(SECTIONS) | SCALARS, SECTION_VALUES | VALUES, max_size=6
)


@given(TREES, st.sampled_from(["lora", "lora+norm", "head"]))
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_any_values_are_read_or_reported(tree: dict[Any, Any], method: str) -> None:
    base = Layer("base", {"model": {"name": "unet"}, "method": {"name": method}})
    try:
        config = load_config([base, Layer("any", tree)])
    except SegtuneError as error:
        assert str(error)
    else:
        assert load_config([Layer("again", config.to_dict())]) == config


TEXTS = st.text(max_size=30) | st.builds(
    lambda section, key, value: f"{section}.{key}={value}",
    st.sampled_from(SECTIONS),
    KEYS,
    st.text(max_size=20),
)


@given(st.lists(TEXTS, max_size=3))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_any_assignments_are_read_or_reported(texts: list[str]) -> None:
    try:
        load(*texts)
    except SegtuneError as error:
        assert str(error)


@pytest.mark.parametrize(
    "text",
    ["2024-13-45", "9" * 5000, "[" * 3000, "!!binary a", "=", "<<: 1", "*x", "&a [*a]", "\x00", "{[1]: 2}"],
)
def test_texts_that_yaml_chokes_on(text: str) -> None:
    with pytest.raises(SegtuneError):
        load(f"train.seed={text}")


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_any_file_is_read_or_reported(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("any") / "run.yaml"
    file.write_bytes(content)
    try:
        load_config([BASE, read_yaml(file)])
    except SegtuneError as error:
        assert str(error)


def test_settings_of_volumes_are_a_section_of_their_own() -> None:
    config = load("data.volume.crop=brain", "data.volume.modality_names=flair,t1")
    assert config.data.volume.crop == "brain"
    assert config.data.volume.modality_names == ("flair", "t1")
    assert load("data.volume.crop=64,48").data.volume.crop == (64, 48)
    assert config.sources["data.volume.crop"] == "--set"
    text = "\n".join(problems("data.volume.axs=3", "data.volume.slices=some", "data.volume.percentiles=9,3"))
    assert "data.volume.axs = 3 (from --set): no such setting of data.volume; did you mean" in text
    assert "data.volume.slices = 'some' (from --set)" in text
    assert "data.volume.percentiles = '9,3' (from --set): two rising numbers" in text
