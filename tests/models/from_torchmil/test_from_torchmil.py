"""torchmil's models behind the adapter: against torchmil's own answer where it is one, against loops elsewhere."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from wsi2d.data.bags import GridBag, collate
from wsi2d.errors import ConfigError, ModelError
from wsi2d.models.catalogue import list_models
from wsi2d.models.registry import MODELS, build_model

torchmil = pytest.importorskip("torchmil.models", reason="torchmil is not installed: pip install 'wsi2d[baselines]'")

NAMES = [name for name in MODELS if name.startswith("torchmil:")]
DIM, CLASSES = 8, 3

MakeNamed = Callable[..., Any]
MakeBag = Callable[..., GridBag]


@pytest.fixture
def named() -> MakeNamed:
    """A model whose patches go to torchmil as they come: no dropout, no standardisation, in float64."""

    def make(name: str, out_dim: int = CLASSES, **options: Any) -> Any:
        torch.manual_seed(0)
        section = {"name": f"torchmil:{name}", "dim": DIM, "dropout": 0.0, "standardise": False, **options}
        model = build_model(section, in_dim=DIM, out_dim=out_dim).double().eval()
        model.project = nn.Identity()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def bag() -> GridBag:
    """Patches on 6 × 7 cells, in raster order."""
    generator = torch.Generator().manual_seed(3)
    index = (torch.rand(6, 7, generator=generator) < 0.6).nonzero()
    features = torch.randn(len(index), DIM, dtype=torch.float64, generator=generator)
    return GridBag("x", features, index, (6, 7))


def attention_by_loops(pool: Any, patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """torchmil's AttentionPool: weights and weighted mean."""
    layers = [pool.fc1.module, *([pool.fc_gated.module] if pool.gated else [])]
    hidden = [patches @ x.weight.detach().numpy().T + x.bias.detach().numpy() for x in layers]
    value = np.tanh(hidden[0]) * (1 / (1 + np.exp(-hidden[1])) if pool.gated else 1)
    scores = np.exp(value @ pool.fc2.weight.detach().numpy()[0])
    weights: np.ndarray = scores / scores.sum()
    return weights, weights @ patches


def by_linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    out: np.ndarray = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()  # type: ignore[union-attr]
    return out


# --- torchmil's own answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["abmil", "clam-sb", "transmil", "transformer-abmil"])
def test_one_logit_is_torchmils_own(named: MakeNamed, bag: GridBag, name: str) -> None:
    model = named(name, out_dim=1)
    with torch.no_grad():
        ours = model(collate([bag]))
        theirs, scores = model.net(bag.features[None], return_att=True)
    torch.testing.assert_close(ours.logits, theirs.reshape(1, 1))
    weights = scores[0].clamp_min(0) / scores[0].clamp_min(0).sum() if name == "transmil" else scores[0].softmax(0)
    torch.testing.assert_close(ours.attention, weights)


@pytest.mark.parametrize("patches", [1, 2, 3, 7, 30])
def test_the_class_tokens_attention_is_torchmils_at_every_length(named: MakeNamed, patches: int) -> None:
    """Filled up in front to a multiple of the landmarks, behind to a square."""
    model = named("transmil", out_dim=1)
    row = GridBag("x", torch.randn(patches, DIM).double(),
                  torch.stack([torch.zeros(patches).long(), torch.arange(patches)], 1), (1, patches))  # fmt: skip
    with torch.no_grad():
        ours = model(collate([row])).attention
        theirs = model.net(row.features[None], return_att=True)[1][0].clamp_min(0)
    torch.testing.assert_close(ours, theirs / theirs.sum())


@pytest.mark.parametrize("name", ["sm-abmil", "sm-transformer-abmil", "patch-gcn"])
def test_graphs_are_those_of_torchmils_data_sets(named: MakeNamed, bag: GridBag, name: str) -> None:
    from torchmil.utils import build_adj, normalize_adj

    edges, weights = build_adj(bag.index.numpy(), dist_thr=1.5)
    adjacency = torch.zeros(len(bag), len(bag), dtype=torch.float64)
    adjacency[edges[0], edges[1]] = torch.from_numpy(normalize_adj(edges, weights, len(bag))).double()
    model = named(name, out_dim=1)
    with torch.no_grad():
        ours = model(collate([bag, bag]))
        theirs, scores = model.net(bag.features[None], adjacency[None], return_att=True)
    torch.testing.assert_close(ours.logits, theirs.reshape(1, 1).expand(2, 1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.attention[: len(bag)], scores[0].softmax(0), rtol=1e-6, atol=1e-6)


# --- what torchmil has for one class -------------------------------------------------------------------------------


def test_dsmil_has_a_critical_patch_a_class(named: MakeNamed, bag: GridBag) -> None:
    model = named("dsmil", nonlinear=False)
    patches, net = bag.features.numpy(), model.net
    of_patches, queries = by_linear(net.inst_classifier, patches), by_linear(net.q_nn, patches)
    attention, vectors = [], []
    for k in range(CLASSES):
        likeness = np.exp(queries @ queries[of_patches[:, k].argmax()] / np.sqrt(queries.shape[1]))
        attention.append(likeness / likeness.sum())
        vectors.append(attention[-1] @ patches)
    weight, bias = net.bag_classifier.weight.detach().numpy(), net.bag_classifier.bias.detach().numpy()
    of_bag = np.einsum("okd,kd->o", weight, np.array(vectors)) + bias
    with torch.no_grad():
        output = model(collate([bag]))
    np.testing.assert_allclose(output.logits[0].numpy(), (of_bag + of_patches.max(0)) / 2, rtol=1e-10)
    np.testing.assert_allclose(output.trained[0].numpy(), [of_bag, of_patches.max(0)], rtol=1e-10)
    np.testing.assert_allclose(output.attention.numpy(), np.mean(attention, 0), rtol=1e-10)
    assert model.loss_weights == (0.5, 0.5)


@pytest.mark.parametrize("groups", [1, 4, 99])
def test_dtfd_pools_pseudo_bags_by_hand(named: MakeNamed, bag: GridBag, groups: int) -> None:
    model = named("dtfd", groups=groups)
    patches, net, count = bag.features.numpy(), model.net, min(groups, len(bag))
    members = [np.arange(k, len(patches), count) for k in range(count)]
    shares, vectors = zip(*(attention_by_loops(net.attention_pool, patches[m]) for m in members), strict=True)
    among, pooled = attention_by_loops(net.u_attention_pool, np.array(vectors))
    attention = np.zeros(len(patches))
    for mine, share, weight in zip(members, shares, among, strict=True):
        attention[mine] = share * weight
    with torch.no_grad():
        output = model(collate([bag]))
    np.testing.assert_allclose(output.logits[0].numpy(), by_linear(net.u_classifier, pooled), rtol=1e-10)
    np.testing.assert_allclose(output.attention.numpy(), attention, rtol=1e-10)
    tier = by_linear(net.classifier, np.array(vectors))
    assert output.trained.shape == (1, 1 + groups, CLASSES)
    np.testing.assert_allclose(output.trained[0, 0].numpy(), output.logits[0].numpy(), rtol=1e-10)
    np.testing.assert_allclose(output.trained[0, 1 : 1 + count].numpy(), tier, rtol=1e-10)
    assert model.loss_weights == pytest.approx((1.0, *[1 / groups] * groups))


def test_pseudo_bags_are_drawn_anew_while_training_and_leave_numpy_alone(named: MakeNamed, bag: GridBag) -> None:
    model, before = named("dtfd").train(), np.random.get_state()[1].copy()  # type: ignore[union-attr] # noqa: NPY002
    torch.manual_seed(5)
    first, second = (model(collate([bag])).logits for _ in range(2))
    torch.manual_seed(5)
    again = model(collate([bag])).logits
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[arg-type] # noqa: NPY002


def svm_by_hand(logits: np.ndarray, target: int) -> float:
    """log Σ_j exp(s_j − s_target + [j ≠ target])."""
    return float(np.log(sum(np.exp(s - logits[target] + (j != target)) for j, s in enumerate(logits))))


@pytest.mark.parametrize("instances", [1, 3, 999])
def test_clams_clustering_by_hand(named: MakeNamed, bag: GridBag, instances: int) -> None:
    model = named("clam-sb", instances=instances, instance_weight=2.0)
    patches, net, count = bag.features.numpy(), model.net, min(instances, len(bag))
    order = attention_by_loops(net.pool, patches)[0].argsort()
    most, least = patches[order[::-1][:count]], patches[order[:count]]
    expected = []
    for true in range(CLASSES):
        losses = []
        for k, classifier in enumerate(net.inst_classifiers):
            low = least if k == true else most
            pairs = [*((x, 1) for x in most if k == true), *((x, 0) for x in low)]
            losses.append(np.mean([svm_by_hand(by_linear(classifier, x), target) for x, target in pairs]))
        expected.append(2.0 * np.mean(losses))
    with torch.no_grad():
        output = model(collate([bag]))
    np.testing.assert_allclose(output.penalties[0].numpy(), expected, rtol=1e-10)


# --- the adapter ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("out_dim", [1, 2, 5])
def test_any_number_of_logits(name: str, out_dim: int, make_bag: MakeBag) -> None:
    model = build_model({"name": name, "dim": DIM}, in_dim=6, out_dim=out_dim)
    output = model(collate([make_bag((3, 4)), make_bag((1, 1))]))
    assert output.logits.shape == (2, out_dim)
    assert output.trained_logits.shape == (2, len(model.loss_weights), out_dim)


def test_neighbours_do_not_reach_around_the_grids_edge_or_into_another_bag(make_bag: MakeBag) -> None:
    from wsi2d.models.from_torchmil.graph import grid_neighbours

    bags = [make_bag((4, 3), seed=1), make_bag((1, 1)), make_bag((5, 6), seed=2)]
    batch = collate(bags)
    found = {tuple(pair) for pair in grid_neighbours(batch).T.tolist()}
    expected = {
        (i, j)
        for i in range(len(batch.bag))
        for j in range(len(batch.bag))
        if i != j and batch.bag[i] == batch.bag[j] and (batch.index[i] - batch.index[j]).abs().max() <= 1
    }
    assert found == expected
    assert grid_neighbours(batch).shape[1] == len(expected)


def test_heads_must_share_the_width() -> None:
    for name in ("transmil", "transformer-abmil"):
        with pytest.raises(ConfigError, match="heads must divide dim, got 3 and 128"):
            build_model({"name": f"torchmil:{name}", "heads": 3}, in_dim=4, out_dim=2)


@pytest.mark.parametrize("missing", ["torchmil.models", "tensordict"])
def test_what_is_not_installed_is_named_with_its_remedy(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m.startswith("torchmil")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    package = missing.partition(".")[0]
    line = f"model 'torchmil:abmil' needs {package}, which is not installed; pip install 'wsi2d[baselines]'"
    with pytest.raises(ModelError) as caught:
        build_model({"name": "torchmil:abmil"}, in_dim=4, out_dim=2)
    assert str(caught.value) == line
    entries = {entry.name: entry for entry in list_models()}
    assert [name for name, entry in entries.items() if entry.parameters is None] == NAMES
    assert entries["torchmil:abmil"].problem == line
    assert entries["abmil"].problem == ""


def test_a_model_can_be_made_without_memory() -> None:
    """As when a checkpoint is checked before its weights are read."""
    with torch.device("meta"):
        for name in NAMES:
            assert all(p.is_meta for p in build_model({"name": name}, in_dim=4, out_dim=2).parameters())
