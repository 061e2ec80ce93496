"""Every recipe: what it says about itself, its settings, and each of its commands, without data."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest
import yaml

from segtune.cli import cli
from segtune.comparison.plan import make_plan
from segtune.config.layers import Layer, parse_assignments, read_mapping, read_yaml, recipe_path
from segtune.config.load import load_config
from segtune.config.recipes import RECIPES, ROOT, Recipe, fill, places, read_recipe, recipe_names
from segtune.errors import SegtuneError, SettingsError, UnknownNameError, UsageError

NAMES = recipe_names()


def parse(line: str) -> tuple[str, dict[str, object]]:
    """The name of a command and its options; raises where click would refuse them."""
    words = shlex.split(line)[1:]
    command: click.Command = cli
    # options for help are remembered by a command from the first context it sees
    context = click.Context(cli, info_name="segtune", **cli.context_settings)
    names = []
    while isinstance(command, click.Group):
        names.append(words.pop(0))
        found = command.get_command(context, names[-1])
        assert found is not None, f"{line}: there is no command {names[-1]}"
        command = found
    context = command.make_context(names[-1], words, parent=context)
    return " ".join(names), context.params


def layers(options: dict[str, object]) -> list[Layer]:
    """The settings of a command, in the order in which `fit` and `compare` read them."""
    found = [read_yaml(path) for path in options["files"]]  # type: ignore[attr-defined]
    for option, section, key in (("model", "model", "name"), ("method", "method", "name")):
        if options.get(option):
            found.append(Layer(option, {section: {key: options[option]}}))
    found += [
        Layer(option, {"compare": {option: str(options[option]).split(",")}})
        for option in ("methods", "models", "ranks")
        if options.get(option)
    ]
    return [*found, parse_assignments(options["assignments"])]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is_and_its_settings_are_right(name: str) -> None:
    recipe = read_recipe(name)
    own = [read_yaml(recipe_path(name))]
    if recipe.kind == "fit":
        load_config(own)
    else:
        make_plan(own)
    assert name.endswith("-small") == (recipe.scale == "small") or name == "demo-unet-day"
    assert recipe.published or recipe.scale == "small"


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_a_recipe_can_be_typed(name: str) -> None:
    recipe = read_recipe(name)
    used = False
    for line in recipe.command:
        command, options = parse(line)
        if command not in ("fit", "compare") or not options["files"]:
            continue
        used |= Path(f"recipe:{name}") in options["files"]  # type: ignore[operator]
        if command == "fit":
            load_config(layers(options))
        else:
            make_plan(layers(options))
    assert used, "no command uses the recipe"
    assert {place for line in recipe.command for place in places(line)} >= recipe.data.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_result_that_is_named_is_there(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.result is None or (ROOT / recipe.result).is_file()


def test_a_recipe_is_found_by_its_name_or_its_path() -> None:
    by_name = read_yaml(Path("recipe:demo-unet-day"))
    assert by_name.values == read_yaml(RECIPES / "demo-unet-day.yaml").values
    assert "recipe" not in by_name.values
    assert "recipe" in read_mapping(Path("recipe:demo-unet-day"))
    with pytest.raises(UnknownNameError, match="no recipe called 'demo-unet-dya'") as error:
        read_yaml(Path("recipe:demo-unet-dya"))
    assert error.value.hint == "did you mean 'demo-unet-day'?"


def test_a_comparison_given_to_fit_is_answered(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: unet\nmethod: lora\ncompare: {seeds: 2}\n")
    with pytest.raises(SettingsError, match="a file that has it is for `segtune compare`"):
        load_config([read_yaml(file)])


def test_words_in_capitals_become_folders(tmp_path: Path) -> None:
    line = "segtune fit DATA --set model.weights=OUT/a.safetensors --out OUT/DATA1/b"
    assert places(line) == {"DATA", "OUT", "DATA1"}
    folders = {"DATA": tmp_path / "d d", "OUT": tmp_path / "o"}
    assert fill(line, folders) == [
        "segtune", "fit", f"{tmp_path}/d d", "--set", f"model.weights={tmp_path}/o/a.safetensors",
        "--out", f"{tmp_path}/o/DATA1/b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "train"}, "kind"),
        ({"command": ["segtune fit NOWHERE --out OUT/a"]}, "NOWHERE"),
        ({"command": ["rm -r OUT"]}, "command"),
        ({"hardwear": "one"}, "hardwear"),
    ],
)
def test_a_wrong_header_is_refused(change: dict[str, object], said: str) -> None:
    about = yaml.safe_load(recipe_path("demo-unet-day").read_text())["recipe"]
    with pytest.raises(ValueError, match=said):
        Recipe.model_validate({**about, **change})


def test_a_row_of_a_comparison_may_change_any_setting() -> None:
    values = {
        "model": "unet",
        "compare": {"methods": ["lora", {"name": "lora", "data.colour": 0.5, "label": "L"}]},
    }
    plan = make_plan([Layer("test", values)])
    assert [(cell.row.label, cell.config.data.colour) for cell in plan.runs({})] == [
        ("lora", 0.0),
        ("L", 0.5),
    ]
    wrong = {"model": "unet", "compare": {"methods": [{"name": "lora", "data.color": 0.5}]}}
    with pytest.raises(UsageError, match=r"did you mean data\.colour"):
        make_plan([Layer("test", wrong)])
    with pytest.raises(SegtuneError, match="no such section"):
        make_plan(
            [Layer("test", {"model": "unet", "compare": {"methods": [{"name": "lora", "dta.colour": 1}]}})]
        )
