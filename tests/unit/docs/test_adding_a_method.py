"""The example of docs/adding-a-method.md, put in place as the page says, keeps the contracts."""

from __future__ import annotations

import pytest
import torch

from segtune.config.layers import Layer
from segtune.config.load import load_config
from segtune.methods import METHODS
from tests.contracts import test_methods as contracts


@pytest.fixture
def method(place):
    return place("adding-a-method.md", METHODS)


def test_the_example_documents_itself(method):
    assert METHODS.summary(method) == "Scales the weights of every output channel"
    assert "\nParameters\n    O, for O output channels." in METHODS.documentation(method)


def test_the_settings_of_the_example_are_known_to_the_command_line(method):
    values = {"model": {"name": "unet"}, "method": {"name": method, "last_blocks": 2}}
    config = load_config([Layer("test", values)])
    assert config.method_parts[method].last_blocks == 2


@pytest.mark.parametrize("model", ["unet", "segformer"])
def test_the_example_keeps_the_contracts(method, model):
    torch.manual_seed(0)
    contracts.test_output_is_unchanged_at_the_start(model, method)
    contracts.test_a_step_moves_what_is_declared_and_nothing_else(model, method)
    contracts.test_the_number_of_parameters_equals_the_formula(model, method)
    contracts.test_merged_equals_unmerged_or_says_why_not(model, method)
    contracts.test_remove_gives_the_base_back(model, method)
    contracts.test_works_in_training_mode_under_autocast(model, method)


def test_the_example_is_refused_where_there_is_nothing_to_attach_to(method):
    contracts.test_a_wrong_kind_of_site_is_refused_with_what_the_model_offers(method)


def test_the_example_combines_with_another_method(method):
    contracts.test_methods_compose("unet", f"{method}+norm")


def test_the_example_is_copied_and_pickled(method):
    contracts.test_an_adapted_model_can_be_copied_and_pickled(method)
