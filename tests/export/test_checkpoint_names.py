"""Checkpoints as training tools write them: prefixes, wrappers in names, counters, homes; one reading or an error."""

from __future__ import annotations

from typing import Any

import pytest

from convbn.errors import BadInputError, Concern, UsageError
from convbn.export.checkpoints.load import Checkpoint, apply_state, load_state
from convbn.export.checkpoints.names import Naming

torch = pytest.importorskip("torch")
nn = torch.nn


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Conv2d(6, 4, 1)


STATE = Net().state_dict()
OTHER = Net(seed=1).state_dict()


def under(prefix: str, state: Any = STATE) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in state.items()}


def within(part: str) -> dict[str, Any]:
    return {name.replace("stem.", f"stem.{part}."): tensor for name, tensor in STATE.items()}


def loaded(state: dict[str, Any], naming: Naming | None = None) -> tuple[str, ...]:
    module = Net(seed=1)
    notes = apply_state(module, Checkpoint(state), naming=naming or Naming())
    own = module.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in STATE.items())
    return notes


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (STATE, []),
        (under("net."), ["Removed the prefix 'net.' from every name."]),
        (under("model.backbone."), ["Removed the prefix 'model.backbone.' from every name."]),
        (under("module."), ["Removed 'module.' of DataParallel from the names."]),
        (within("_orig_mod"), ["Removed '_orig_mod.' of torch.compile from the names."]),
        (
            within("_checkpoint_wrapped_module"),
            ["Removed '_checkpoint_wrapped_module.' of activation checkpointing from the names."],
        ),
        (
            {**STATE, "total_ops": torch.zeros(1), "stem.total_params": torch.zeros(1)},
            ["Left out counters of thop: total_ops, stem.total_params."],
        ),
        (
            {**under("net."), "loss.weight": torch.ones(4), "accuracy.total": torch.zeros(1)},
            [
                "Removed the prefix 'net.' from every name.",
                "Left out what lies outside of 'net.': loss.weight, accuracy.total.",
            ],
        ),
    ],
)
def test_the_only_reading_is_taken_and_told(state: dict[str, Any], told: list[str]) -> None:
    assert list(loaded(state)) == told


def test_two_readings_are_an_error_until_one_is_said() -> None:
    state = {**under("student.", OTHER), **under("teacher.")}
    with pytest.raises(BadInputError, match=r"student\., teacher\.; .*--strip-prefix student\."):
        loaded(state)
    notes = loaded(state, Naming(strip="teacher"))
    assert notes[0] == "Removed the prefix 'teacher.' from every name."
    assert notes[1].startswith("Left out what lies outside of 'teacher.': student.stem.0.weight, ")
    assert loaded({**OTHER, **under("ema.")}, Naming(strip="ema."))
    with pytest.raises(UsageError, match=r"begins with 'no\.'; they begin with student, teacher"):
        loaded(state, Naming(strip="no"))


def test_shapes_tell_two_readings_apart() -> None:
    wide = {name: torch.zeros(9, *tensor.shape) for name, tensor in STATE.items()}
    assert (
        loaded({**under("other.", wide), **under("net.")})[0] == "Removed the prefix 'net.' from every name."
    )


def test_what_nobody_asks_for_is_named_or_dropped_by_name() -> None:
    state = {**STATE, "loss.weight": torch.ones(4), "ema_decay": torch.zeros(1)}
    with pytest.raises(BadInputError, match=r"2 unexpected: loss\.weight, ema_decay; .*--drop-unexpected"):
        loaded(state)
    assert loaded(state, Naming(drop=True)) == (
        "Left out what the module does not ask for: loss.weight, ema_decay.",
    )


@pytest.mark.parametrize("naming", [Naming(), Naming(drop=True)])
def test_nothing_missing_or_misshapen_is_let_pass(naming: Naming) -> None:
    short = {name: tensor for name, tensor in under("net.").items() if name != "net.head.bias"}
    with pytest.raises(BadInputError, match=r"1 missing: head\.bias"):
        loaded(short, naming)
    with pytest.raises(BadInputError, match=r"1 of another shape: head\.bias \(5 for 4\)"):
        loaded({**under("net."), "net.head.bias": torch.zeros(5)}, naming)


def test_names_that_do_not_fit_change_nothing() -> None:
    module = Net()
    with pytest.raises(BadInputError):
        apply_state(module, Checkpoint({**OTHER, "head.bias": torch.zeros(5)}))
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in module.state_dict().items())


def test_a_module_that_is_wrapped_itself() -> None:
    module = nn.DataParallel(Net(seed=1))
    assert apply_state(module, Checkpoint(STATE)) == ()
    assert torch.equal(module.module.head.bias, STATE["head.bias"])


@pytest.mark.parametrize(
    "home", ["net", "params", "params_ema", "teacher", "network", "G", "state_dict_ema", "weights", "mine"]
)
def test_homes(home: str, tmp_path: Any) -> None:
    torch.save(
        {home: STATE, "optimizer": {"state": {0: {"m": torch.ones(1)}}}, "epoch": 3}, tmp_path / "a.pth"
    )
    checkpoint = load_state(tmp_path / "a.pth")
    assert checkpoint.notes == (f"Took the weights under {home!r}.",)
    assert not isinstance(checkpoint.notes[0], Concern)
    loaded(dict(checkpoint.tensors))


@pytest.mark.parametrize(
    ("kinds", "home", "other"),
    [(("ema", "model"), "model", "ema"), (("params_ema", "params"), "params", "params_ema")],
)
def test_a_choice_between_weights_is_a_warning(kinds: Any, home: str, other: str, tmp_path: Any) -> None:
    torch.save({kind: STATE if kind == home else {"state_dict": OTHER} for kind in kinds}, tmp_path / "a.pth")
    checkpoint = load_state(tmp_path / "a.pth")
    assert isinstance(checkpoint.notes[0], Concern)
    told = f"Took the weights under {home!r}, not {other} (--checkpoint-key {other} would take that)."
    assert checkpoint.notes[0] == told
    assert load_state(tmp_path / "a.pth", key=other).notes[0] == f"Took the weights under {other!r}."


def test_where_weights_may_lie_is_listed_in_full(tmp_path: Any) -> None:
    names = [f"part{index}" for index in range(6)]
    torch.save({"epoch": 3, **dict.fromkeys(names, STATE)}, tmp_path / "a.pth")
    with pytest.raises(BadInputError, match=f"only epoch, {', '.join(names)}; .*such as {', '.join(names)}"):
        load_state(tmp_path / "a.pth")
    torch.save({"epoch": 3}, tmp_path / "b.pth")
    with pytest.raises(BadInputError, match=r"looked for under state_dict, model, .*params_ema, G_ema"):
        load_state(tmp_path / "b.pth")
    torch.save({"runs": {"last": OTHER, "best": STATE}}, tmp_path / "c.pth")
    loaded(dict(load_state(tmp_path / "c.pth", key="runs.best").tensors))
