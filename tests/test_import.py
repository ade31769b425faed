"""`fathom import`: the network, the optimizer and the settings that come over, and every way in which none may."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fathom import tokenizer as tokenizers
from fathom.errors import FathomError
from fathom.home import home, run_dir, tokenizer_dir
from fathom.interop.command import import_checkpoint
from fathom.interop.folder import find_checkpoint
from fathom.interop.settings import settings_of
from fathom.interop.weights import translate
from fathom.model.attention import DenseContext
from fathom.model.gpt import GPT
from fathom.model.shape import Shape
from fathom.optim.optimizer import Optimizer
from fathom.optim.rates import Rates, adam_groups
from fathom.record import events, read_config
from fathom.tokenizer import Tokenizer
from fathom.train import checkpoint
from fathom.train.checkpoint import load_model
from fathom.train.progress import load_weights_and_moments
from tests.oracles import reference_layout as layout
from tests.oracles import reference_network
from tests.oracles.tiny_runs import texts

STEP = 300


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizers.train(texts(60), 300)


@pytest.fixture
def base(tmp_path: Path, fathom_home: Path, tokenizer: Tokenizer) -> Path:
    """The reference's own folder, with a tokenizer in it."""
    layout.write_tokenizer(tmp_path / "theirs" / "tokenizer", tokenizer)
    return tmp_path / "theirs"


def written(base: Path, vocab_size: int = 300, step: int = STEP, **more: Any) -> Path:
    """A small checkpoint with everything; `more` replaces its parts."""
    config = more.pop("config", layout.config(vocab_size))
    weights = more.pop("weights", None) or layout.random_weights(config)
    moments = more.pop("moments") if "moments" in more else layout.random_moments(config, step)
    folder = more.pop("folder", base / "base_checkpoints" / "d4")
    return layout.write_checkpoint(folder, config, weights, step, moments, **more)


def brought_in(folder: Path, name: str = "theirs", **more: Any) -> dict[str, Any]:
    return import_checkpoint(str(folder), name, more.get("tokenizer"), more.get("step"))


def everything() -> list[Path]:
    return sorted(path for path in home().rglob("*") if path.name not in ("runs", "tokenizers"))


def refused(folder: Path | str, match: str, **more: Any) -> None:
    """One sentence, and nothing is left of the attempt."""
    before = everything()
    with pytest.raises(FathomError, match=match) as caught:
        import_checkpoint(str(folder), more.get("name", "theirs"), more.get("tokenizer"), more.get("step"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert everything() == before


# The network


@pytest.mark.parametrize(
    ("changes", "n_tokens"),
    [
        ({"window_pattern": "SSSL", "sequence_len": 192}, 192),
        ({"window_pattern": "L"}, 32),
        ({"n_head": 4, "n_kv_head": 2, "n_layer": 3}, 32),
    ],
)
def test_logits_are_those_of_the_oracle(base: Path, changes: dict[str, Any], n_tokens: int) -> None:
    config = layout.config(300, **changes)
    weights = layout.random_weights(config)
    brought_in(written(base, config=config, weights=weights, moments=None))
    model, _, info = load_model("theirs", dtype="fp32")
    assert (info["step"], info["stage"]) == (STEP, "pretrain")
    ids = np.random.default_rng(0).integers(0, 300, n_tokens).tolist()
    with torch.no_grad():
        found = model.logits(model(torch.tensor([ids]), DenseContext(n_tokens, "cpu")))[0]
    exact = {name: weight.double().numpy() for name, weight in weights.items()}
    expected = reference_network.logits(exact, config, ids)
    assert np.abs(expected).max() > 3  # else the comparison would say little
    assert np.abs(found.numpy() - expected).max() < 1e-4


def test_tables_kept_in_bf16_and_names_of_a_compiled_network_come_in(base: Path) -> None:
    config = layout.config(300)
    weights = layout.random_weights(config, tables=torch.bfloat16)
    compiled = {f"_orig_mod.{name}": weight for name, weight in weights.items()}
    brought_in(written(base, config=config, weights=compiled))
    model, _, _ = load_model("theirs", dtype="fp32")
    assert torch.equal(model.token_embedding, weights["transformer.wte.weight"].float())
    assert torch.equal(model.blocks[3].value_gate, weights["transformer.h.3.attn.ve_gate.weight"])


def test_a_configuration_without_windows_means_the_whole_context(base: Path) -> None:
    config = layout.config(300)
    del config["window_pattern"]
    brought_in(written(base, config=config, weights=layout.random_weights(config)))
    assert read_config("theirs")["model"]["window_pattern"] == "L"


def test_missing_residual_scalars_are_one_and_zero(base: Path) -> None:
    weights = layout.random_weights(layout.config(300))
    del weights["resid_lambdas"], weights["x0_lambdas"]
    brought_in(written(base, weights=weights))
    model, _, _ = load_model("theirs", dtype="fp32")
    assert model.keep.tolist() == [1] * 4
    assert model.add_first.tolist() == [0] * 4


def test_the_seeds_model_is_recognised_by_its_shapes() -> None:
    config = layout.config(32_768, n_layer=12, n_head=6, n_kv_head=6, n_embd=768, sequence_len=2048)
    theirs = {name: torch.empty(shape, device="meta") for name, shape in layout.shapes(config).items()}
    shape = Shape(12, 6, 6, 128, 32_768, 2048, "L")
    ours = translate(theirs, shape, Path("model.pt"))
    assert sum(weight.numel() for weight in ours.values()) == 286_261_730 == shape.parameters["total"]
    with torch.device("meta"):
        wanted = GPT(shape).state_dict()
    assert {name: weight.shape for name, weight in ours.items()} == {name: one.shape for name, one in wanted.items()}


def older(theirs: layout.Weights, gate: int, is_gated: bool = True) -> layout.Weights:
    """As a version before 14 March 2026 would have saved it."""
    kept = {name: weight for name, weight in theirs.items() if not name.startswith(("smear", "backout"))}
    gates = [name for name in kept if "ve_gate" in name]
    for name in gates:
        kept[name] = torch.zeros(kept[name].shape[0], gate)
    return kept if is_gated else {n: w for n, w in kept.items() if n not in gates and "value_embeds" not in n}


def test_versions_that_compute_otherwise_are_refused_with_the_reason(base: Path) -> None:
    weights = layout.random_weights(layout.config(300))
    for one, why in (
        (older(weights, 12), r"9 to 14 March 2026 \(no smear, no backout\).*1\.15"),
        (older(weights, 32), r"before 9 March 2026 \(gates of 32 channels\).*rotary base is 10,000"),
        (older(weights, 32, is_gated=False), r"before 9 March 2026 \(no gated value embeddings\)"),
    ):
        refused(written(base, weights=one), why)


# The optimizer


def loaded(name: str) -> tuple[GPT, Optimizer]:
    shape = Shape(**read_config(name)["model"])
    model = GPT(shape)
    optimizer = Optimizer(model.parameter_kinds(), adam_groups(Rates(), 1.0, 1.0), 0.02, torch.float32)
    load_weights_and_moments(checkpoint.find(name), model, optimizer)
    return model, optimizer


def named_moments(model: GPT, optimizer: Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """What the optimizer holds of each parameter, under the reference's words."""
    kinds = model.parameter_kinds()
    matrices = kinds.pop("matrices")
    state, found = optimizer.state(), dict[int, dict[str, Any]]()
    for i, weight in enumerate(weight for kind in kinds.values() for weight in kind):
        found[id(weight)] = dict(state["adam"][str(i)])
    for i, shape in enumerate(sorted({weight.shape for weight in matrices})):
        stack = [weight for weight in matrices if weight.shape == shape]
        for j, weight in enumerate(stack):
            momentum, second = (state["muon"][str(i)][key][j] for key in ("momentum", "second"))
            found[id(weight)] = {"momentum_buffer": momentum, "second_momentum_buffer": second}
    return {name: found[id(weight)] for name, weight in model.named_parameters()}


OUR_NAMES = {
    "lm_head.weight": "head",
    "transformer.wte.weight": "token_embedding",
    "value_embeds.1.weight": "value_embeddings.1",
    "value_embeds.3.weight": "value_embeddings.3",
    "resid_lambdas": "keep",
    "x0_lambdas": "add_first",
    "smear_gate.weight": "smear_gate",
    "smear_lambda": "smear_scale",
    "backout_lambda": "backout_scale",
} | {
    f"transformer.h.{layer}.{their}.weight": f"blocks.{layer}.{our}"
    for layer in range(4)
    for their, our in {
        "attn.c_q": "q",
        "attn.c_k": "k",
        "attn.c_v": "v",
        "attn.c_proj": "out",
        "attn.ve_gate": "value_gate",
        "mlp.c_fc": "up",
        "mlp.c_proj": "down",
    }.items()
}


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("n_kv_head", [1, 2])
def test_the_optimizers_state_is_the_same_from_any_number_of_ranks(base: Path, ranks: int, n_kv_head: int) -> None:
    config = layout.config(300, n_kv_head=n_kv_head)
    moments = layout.random_moments(config, STEP)
    assert brought_in(written(base, config=config, moments=moments, ranks=ranks))["optimizer_ranks"] == ranks
    found = named_moments(*loaded("theirs"))
    assert found.keys() == {OUR_NAMES[name] for name in moments}
    for name, expected in moments.items():
        for key, value in expected.items():
            assert torch.equal(found[OUR_NAMES[name]][key], torch.as_tensor(value).float()), (name, key)


def test_without_optimizer_files_it_is_for_all_but_further_training(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert brought_in(written(base, moments=None))["optimizer_ranks"] == 0
    said = capsys.readouterr().err
    assert "not trained further" in said and "next      fathom sft theirs --data FILE" in said
    assert not checkpoint.has_moments(checkpoint.find("theirs"))


@pytest.mark.parametrize("lost", [0, 2, 3])
def test_a_missing_rank_is_named(base: Path, lost: int) -> None:
    folder = written(base, ranks=4)
    (folder / f"optim_{STEP:06d}_rank{lost}.pt").unlink()
    refused(folder, f"no .*rank{lost}.pt" if lost < 3 else "80 of 320 rows .*, not what one of 3 ranks keeps; bring")


def test_optimizer_files_of_another_network_are_refused(base: Path) -> None:
    folder = written(base)
    other = layout.config(300, n_embd=128)
    theirs = layout.shard(other, layout.random_moments(other, STEP), 0, 1)
    torch.save(theirs, folder / f"optim_{STEP:06d}_rank0.pt")
    refused(folder, "exp_avg of parameter 0 in .*rank0.pt is 320×128 where the metadata means 320×64")
    torch.save({"state": {}}, folder / f"optim_{STEP:06d}_rank0.pt")
    refused(folder, "has no step of parameter 0")


# The settings


D12 = {"n_layer": 12, "n_head": 6, "n_kv_head": 6, "n_embd": 768, "sequence_len": 2048, "window_pattern": "L"}


def settings_for(tmp_path: Path, shape: Shape, user_config: Any, step: int = 35_729, **meta: Any) -> Any:
    (tmp_path / f"model_{step:06d}.pt").touch()
    told = {"model_config": {}, "user_config": user_config} | meta
    (tmp_path / f"meta_{step:06d}.json").write_text(json.dumps(told))
    return settings_of(find_checkpoint(str(tmp_path), step), shape)


def test_settings_of_the_seeds_run(tmp_path: Path) -> None:
    shape = Shape(12, 6, 6, 128, 32_768, 2048, "L")
    flags = {"num_iterations": 87_000, "total_batch_size": 65_536, "depth": 12, "window_pattern": "L"}
    found = settings_for(tmp_path, shape, flags)
    assert found.steps == 87_000
    assert found.lr_scale == pytest.approx(0.3536, abs=1e-4)
    assert found.weight_decay == pytest.approx(0.0989949, abs=1e-7)
    schedule = found.schedule
    assert schedule.lr(35_729) == pytest.approx(0.911317, abs=1e-6)
    assert schedule.momentum(35_729) == pytest.approx(0.963465, abs=1e-6)
    assert schedule.decay(35_729) == pytest.approx(0.0632055, abs=1e-7)


@pytest.mark.parametrize("user_config", [None, {}, {"num_iterations": None, "matrix_lr": None}])
@pytest.mark.parametrize(
    ("depth", "batch", "steps", "decay"), [(4, 262_144, 528, 1.889903), (12, 524_288, 2520, 0.28), (24, 2**20, 8352, 0)]
)
def test_without_flags_they_are_the_references_defaults(
    tmp_path: Path, user_config: Any, depth: int, batch: int, steps: int, decay: float
) -> None:
    shape = Shape(depth, depth // 2, depth // 2, 128, 32_768, 2048, "SSSL")
    found = settings_for(tmp_path, shape, user_config, step=100)
    assert (found.batch_tokens, found.steps, found.warmup_steps) == (batch, steps, 40)
    assert (found.warmdown_share, found.final_lr) == (0.65, 0.05)
    assert found.rates == Rates(matrix_lr=0.02, embedding_lr=0.3, head_lr=0.008, scalar_lr=0.5)
    assert found.lr_scale == pytest.approx(math.sqrt(batch / 2**19))
    if decay:
        assert found.weight_decay == pytest.approx(decay, rel=1e-5)


def test_flags_are_followed(tmp_path: Path) -> None:
    shape = Shape(4, 4, 4, 64, 8192, 512, "L")
    flags = {
        "target_param_data_ratio": -1,
        "num_iterations": 1000,
        "unembedding_lr": 0.004,
        "weight_decay": 0.14,
        "warmup_steps": 0,
        "warmdown_ratio": 0.2,
        "final_lr_frac": 0,
    }
    found = settings_for(tmp_path, shape, flags, step=10, total_batch_size=16_384)
    other = settings_for(tmp_path, shape, {"num_iterations": 1000}, step=10, total_batch_size=16_384)
    assert (found.steps, found.batch_tokens, found.rates.head_lr) == (1000, 16_384, 0.004)
    assert found.weight_decay == pytest.approx(other.weight_decay / 2)
    assert (found.warmup_steps, found.warmdown_share, found.final_lr) == (0, 0.2, 0)
    by_flops = settings_for(tmp_path, shape, {"target_flops": 1e15, "num_iterations": -1, "total_batch_size": 16_384})
    assert by_flops.steps == max(35_729, round(1e15 / (shape.flops_per_token * 16_384)))


def test_past_its_horizon_it_ends_where_it_is(base: Path) -> None:
    brought_in(written(base, user_config={"num_iterations": 100}))
    assert read_config("theirs")["config"]["steps"] == STEP
    assert [line["event"] for line in events(run_dir("theirs"))] == ["started", "saved", "finished"]


@pytest.mark.parametrize("flags", [{"matrix_lr": "0.02"}, {"warmdown_ratio": 7}, {"num_iterations": 1e300}, [1], "x"])
def test_flags_that_make_no_sense_are_named(base: Path, flags: Any) -> None:
    refused(written(base, user_config=flags), "user_config|sets (matrix_lr|warmdown_ratio|num_iterations) to")


@pytest.mark.parametrize(("place", "flags"), [("chatsft_checkpoints", {}), ("elsewhere", {"init_lr_frac": 0.8})])
def test_a_fine_tuned_checkpoint_comes_in_as_that(base: Path, place: str, flags: dict[str, Any]) -> None:
    flags |= {"matrix_lr": None, "total_batch_size": None, "num_iterations": 5000, "warmdown_ratio": 0.5}
    brought_in(written(base, folder=base / place / "d4", user_config=flags))
    tables = read_config("theirs")
    assert tables["run"]["stage"] == "sft"
    assert tables["config"]["steps"] == STEP
    assert tables["config"]["matrix_lr"] == 0.02


# What the run's folder says


def test_the_run_says_where_it_came_from(base: Path, tokenizer: Tokenizer) -> None:
    loop = {"min_val_bpb": 1.4, "smooth_train_loss": 2.5, "total_training_time": 77.0}
    flags = {"num_iterations": 1000, "total_batch_size": 1024}
    result = brought_in(written(base, user_config=flags, loop_state=loop))
    assert {key: result[key] for key in ("run", "tokenizer", "stage", "step", "steps")} == {
        "run": "theirs",
        "tokenizer": "theirs",
        "stage": "pretrain",
        "step": STEP,
        "steps": 1000,
    }
    tables = read_config("theirs")
    assert tables["origin"]["run"] == f"imported from {base / 'base_checkpoints' / 'd4'}, step {STEP}"
    assert tables["origin"]["steps"] == "the reference's num_iterations"
    assert tables["origin"]["matrix_lr"] == "the reference's default"
    assert tables["run"]["tokenizer_digest"] == tokenizer.digest == tokenizers.load("theirs").digest
    meta = checkpoint.read_meta(checkpoint.find("theirs"))
    assert (meta["step"], meta["seconds"], meta["loss_average"]) == (STEP, 77.0, 2.5)
    assert [line["event"] for line in events(run_dir("theirs"))] == ["started", "saved", "stopped"]


def test_the_newest_step_unless_another_is_asked_for(base: Path) -> None:
    folder = written(base, step=100)
    written(base, step=1_000_000, weights=layout.random_weights(layout.config(300), seed=9))
    assert brought_in(folder)["step"] == 1_000_000
    assert brought_in(folder, name="early", step=100)["step"] == 100
    late, early = (load_model(name, dtype="fp32")[0] for name in ("theirs", "early"))
    assert not torch.equal(late.head, early.head)
    refused(folder, "no model_000200.pt; the steps there are 100, 1000000", step=200, name="other")


# What is not there, or damaged


def test_a_missing_folder_or_file_is_named(base: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no folder .*nowhere")
    folder = written(base)
    refused(base, f"holds no model_NNNNNN.pt; did you mean {folder}")
    refused(tmp_path, "did you mean|no model_NNNNNN")
    shutil.move(base / "tokenizer", tmp_path / "tokenizer")
    refused(folder, r"there is no .*tokenizer\.pkl; say with --tokenizer")
    refused(folder, r"there is no .*tokenizer\.pkl", tokenizer=str(folder))
    brought_in(folder, name="found", tokenizer=str(tmp_path / "tokenizer"))
    (folder / f"meta_{STEP:06d}.json").unlink()
    refused(folder, f"there is no .*meta_{STEP:06d}.json")


@pytest.mark.parametrize("name", ["model_000300.pt", "meta_000300.json", "optim_000300_rank1.pt"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(base: Path, name: str, share: float) -> None:
    path = written(base, ranks=2) / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path.parent, name)


@pytest.mark.parametrize("name", ["tokenizer.pkl", "token_bytes.pt"])
def test_a_truncated_tokenizer_is_named(base: Path, name: str) -> None:
    path = base / "tokenizer" / name
    path.write_bytes(path.read_bytes()[:-40])
    refused(written(base), name)


@pytest.mark.parametrize(
    ("meta", "why"),
    [
        ("{", "damaged"),
        ("[]", "no model_config"),
        ('{"step": 300}', "no model_config"),
        ('{"step": 299, "model_config": {}}', "is of step '299'"),
        ('{"model_config": {}}', "no whole number for sequence_len"),
        ("[" * 100_000, "damaged"),
    ],
)
def test_metadata_that_is_none(base: Path, meta: str, why: str) -> None:
    folder = written(base)
    (folder / "meta_000300.json").write_text(meta)
    refused(folder, why)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"n_layer": 10**12}, "describes no network: n_layer is 1000000000000"),
        (
            {"n_layer": 1000, "n_embd": 100_000 * 2, "n_head": 2000, "n_kv_head": 2000},
            "more than model_000300.pt has room",
        ),
        ({"vocab_size": 10**8}, "more than model_000300.pt has room"),
        ({"n_embd": 10**400}, "describes no network"),
        ({"n_embd": -64}, "describes no network"),
        ({"n_head": 0}, "describes no network"),
        ({"n_head": 3}, "describes no network: 64 channels for 3 heads"),
        ({"n_kv_head": True}, "no whole number for n_kv_head"),
        ({"n_layer": 4.0}, "no whole number for n_layer"),
        ({"window_pattern": "SSXL"}, "window pattern 'SSXL'"),
        ({"window_pattern": 7}, "window pattern 7"),
        ({"n_layer": 2}, "files of different checkpoints may have been mixed"),
        ({"n_embd": 32}, "is .* where the metadata means .*×32"),
        ({"rope_base": 5}, "sets 'rope_base'"),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused(base: Path, changes: dict[str, Any], why: str) -> None:
    weights = layout.random_weights(layout.config(300))
    refused(written(base, config=layout.config(300) | changes, weights=weights, moments=None), why)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda w: w.pop("lm_head.weight"), "lacks lm_head.weight"),
        (lambda w: w.update(surprise=torch.zeros(3)), "holds 'surprise'"),
        (lambda w: w.update({"lm_head.weight": torch.zeros(1, 1).expand(320, 64)}), "320×64"),
        (
            lambda w: w.update({"lm_head.weight": torch.zeros(320, 64, dtype=torch.int64)}),
            "no tensor of floating-point",
        ),
        (
            lambda w: w.update({"lm_head.weight": torch.zeros(320, 64).to_sparse()}),
            "model_000300.pt|no tensor of floating",
        ),
        (lambda w: w.update({"lm_head.weight": 5}), "no tensor of floating-point"),
    ],
)
def test_weights_that_are_none_are_refused(base: Path, change: Any, why: str) -> None:
    weights = layout.random_weights(layout.config(300))
    change(weights)
    refused(written(base, weights=weights), why)


def test_a_tokenizer_that_does_not_fit_is_refused(base: Path) -> None:
    config = layout.config(310)
    folder = written(base, config=config, weights=layout.random_weights(config))
    refused(folder, "has 300 tokens, and the network was trained with 310")


def test_a_name_that_is_taken_is_refused(base: Path, tokenizer: Tokenizer) -> None:
    folder = written(base)
    brought_in(folder)
    before = checkpoint.find("theirs").stat().st_mtime
    refused(folder, "the run 'theirs' exists already")
    assert checkpoint.find("theirs").stat().st_mtime == before
    tokenizers.train(texts(60, seed=5), 280).save(tokenizer_dir("taken"))
    refused(folder, "holds another vocabulary", name="taken")
    refused(folder, "cannot be the name of a run", name="../up")
    tokenizer.save(tokenizer_dir("same"))
    brought_in(folder, name="same")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 704 vs 598")])
def test_a_full_disk_leaves_nothing(base: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*arguments: Any) -> None:
        raise error

    folder = written(base)
    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises((OSError, FathomError), match="No space|GB of the run could not be written to a disk with"):
        brought_in(folder)
    assert not list(home().glob("*/*"))
