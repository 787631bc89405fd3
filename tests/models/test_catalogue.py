"""The list of aggregators: what is counted, what is said of options."""

from pathlib import Path

import pytest
import torch

from wsi2d.errors import ConfigError
from wsi2d.models.catalogue import describe_model, list_models
from wsi2d.models.registry import MODELS, build_model, model_class

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture(autouse=True)
def with_torchmil() -> None:
    pytest.importorskip("torchmil.models", reason="torchmil is not installed: pip install 'wsi2d[baselines]'")


def test_every_model_is_listed_with_what_it_is() -> None:
    entries = list_models()
    assert [entry.name for entry in entries] == list(MODELS)
    for entry in entries:
        assert entry.problem == ""
        assert entry.sees in {"set", "sequence", "graph", "grid"}
        assert all((entry.order, entry.cost, entry.paper, entry.source))
        assert entry.paper == "–" or entry.paper.rpartition(" ")[2] in entry.source, "the year"
        assert entry.paper == "–" or entry.paper.partition(" ")[0] in entry.source, "the first author"


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_model(name: str) -> None:
    for in_dim, out_dim in ((7, 2), (12, 5)):
        model = build_model({"name": name}, in_dim=in_dim, out_dim=out_dim)
        expected = sum(p.numel() for p in model.parameters())
        assert describe_model(name, in_dim=in_dim, out_dim=out_dim).parameters == expected


def test_counting_takes_no_memory() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        before = torch.get_rng_state()
        entry = describe_model("mean", in_dim=2**20, out_dim=2**20)
        assert torch.equal(torch.get_rng_state(), before)
    assert entry.parameters == (2**20 + 1) * 128 + 129 * 2**20


@pytest.mark.parametrize("name", MODELS)
def test_every_option_is_explained(name: str) -> None:
    fields = model_class({"name": name}).config_class.model_fields
    options = {option.name: option for option in describe_model(name).options}
    assert set(options) == set(fields) - {"name"}
    for option in options.values():
        assert option.description, f"{name}: {option.name} has no description"
        assert option.default == fields[option.name].default


def test_values_of_options() -> None:
    options = {option.name: option.values for option in describe_model("mamba2d-mil").options}
    assert options["directions"] == "1, 2, 4"
    assert options["conv"] == "2d, raster, none"
    assert options["scan"] == "true, false"
    assert options["dt_min"] == "float, > 0"
    assert options["dropout"] == "float, ≥ 0, < 1"
    states = {option.name: option.values for option in describe_model("s4-mil").options}["state"]
    assert states == "int, ≥ 2, ≤ 4096, multiple of 2"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"name": "mamba-mill"}, "model 'mamba-mill' is unknown; did you mean 'mamba-mil'?"),
        ({"name": "clam"}, "model 'clam' is unknown; did you mean 'torchmil:clam-sb'?"),
        ({"name": "torchmil:ab-mil"}, "model 'torchmil:ab-mil' is unknown; did you mean 'torchmil:abmil'?"),
        ({"name": "mean", "in_dim": 0}, "the width of an embedding must be from 1 to 1048576, got 0"),
        ({"name": "mean", "out_dim": 2**21}, "the number of classes must be from 1 to 1048576, got 2097152"),
    ],
)
def test_what_cannot_be_described(asked: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        describe_model(**asked)  # type: ignore[arg-type]
    assert str(caught.value) == message


@pytest.mark.skipif(not PAGE.exists(), reason="the tests run without the documentation")
def test_the_page_says_the_same() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text("utf-8").splitlines()]
    table = {row[0].strip("`"): row for row in rows if len(row) == 6 and row[0].startswith("`")}
    assert list(table) == list(MODELS)
    for entry in list_models():
        _, sees, order, weights, paper, _ = table[entry.name]
        assert (sees, order, weights) == (entry.sees, entry.order, f"{entry.parameters:,}")
        assert paper in ("the same", entry.paper) or entry.paper.rpartition(" ")[2] in paper
