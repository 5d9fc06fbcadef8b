"""One loop under both stages: a fit that is interrupted ends as one that never was."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_helpers import language_model, latent_model, target_examples

from flr_bench.errors import UsageError
from flr_bench.flr.params import PenaltyWeights
from flr_bench.flr.recommender import FLR, FlrParams
from flr_bench.interface import Budget, FitSpec, Progress
from flr_bench.lm import checkpoint, layers
from flr_bench.lm.checkpoint import RECORD, TENSORS, Checkpoints, Snapshot
from flr_bench.lm.latent_grpo import GrpoJob, LatentGrpo
from flr_bench.lm.layers import prepared_layers
from flr_bench.lm.model import LatentModel, validation_nll
from flr_bench.lm.params import LatentGrpoParams, SftParams
from flr_bench.lm.sft import SftJob, sft_backward, train_sft
from flr_bench.lm.training import Course, Stage, TrainingLog, Updater, Watch, train
from flr_bench.report.figures.curves import MOST_POINTS, thinned
from flr_bench.report.reading import StoreReader
from flr_bench.report.training import training_table
from flr_bench.runner import events
from flr_bench.runner.events import Event
from flr_bench.runner.progress import PlainDisplay
from flr_bench.runner.session import Folders, Frontend, Request, run
from flr_bench.testing.harness import shared_harness, tiny_params
from flr_bench.tracking.content import by_step

ROOT = Path(__file__).parents[2]
WEIGHTS = PenaltyWeights().model_dump()
DATA, VALID = target_examples(22), target_examples(9, seed=3)


class Stop(Exception):
    """Stands in for whatever ends a process."""


def stop_at(epoch: int, step: int) -> Callable[[Progress], None]:
    def progress(now: Progress) -> None:
        if (now.epoch, now.step) == (epoch, step):
            raise Stop

    return progress


def watch(model: LatentModel) -> Watch:
    return Watch("nll", lambda: float(validation_nll(model, VALID, 500).mean()), higher_is_better=False)


def sft(progress=lambda _: None, checkpoints: Checkpoints | None = None, **params: object):
    """Five updates an epoch; patience ends it before the budget does."""
    model = latent_model("factorized")
    fields = SftParams(**{"learning_rate": 3e-2, "batch_size": 5, "micro_batch_tokens": 64, **params})
    job = SftJob(fields, DATA, watch(model), Budget(9, 1, "nll"), 1, progress, WEIGHTS, checkpoints=checkpoints)
    return model, train_sft(model, job)


def rl(progress=lambda _: None, checkpoints: Checkpoints | None = None, fused: bool = False, **params: object):
    model = latent_model("factorized", trains_backbone=False)
    fields = LatentGrpoParams(**{"batch_size": 5, "group_size": 4, "learning_rate": 1e-2, "validations": 2, **params})
    job = GrpoJob(
        params=fields,
        data=DATA,
        valid=VALID,
        watch=watch(model),
        budget=Budget(3, None, "nll"),
        seed=2,
        progress=progress,
        penalties=WEIGHTS,
        fused_optimizer=fused,
        checkpoints=checkpoints,
    )
    return model, LatentGrpo(model, job).train()


def rl_shuffled(*args: object):
    return rl(*args, baseline="shuffled", inner_iterations=2)


def keeping(folder: Path, seconds: float | None = 0.0, **fit: object) -> Checkpoints:
    return Checkpoints(folder / "fit", {"seed": 0, **fit}, seconds=seconds)


def equal(one: tuple[LatentModel, TrainingLog], other: tuple[LatentModel, TrainingLog]) -> bool:
    (first, log), (second, log_of_second) = one, other
    weights = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return log == log_of_second and all(torch.equal(a, b) for a, b in weights)


UNDISTURBED = {}


def undisturbed(run: Callable[..., tuple[LatentModel, TrainingLog]]):
    if run not in UNDISTURBED:
        UNDISTURBED[run] = run()
    return UNDISTURBED[run]


@pytest.mark.parametrize("run", [sft, rl, rl_shuffled])
@pytest.mark.parametrize(
    ("place", "seconds", "behind"),
    [((1, 1), 0.0, None), ((1, 4), 0.0, 3), ((2, 3), 0.0, 7), ((2, 3), None, 5), ((2, 5), 0.0, 9)],
)
def test_an_interrupted_fit_ends_with_the_same_bits(run, place, seconds, behind, tmp_path):
    with pytest.raises(Stop):
        run(stop_at(*place), keeping(tmp_path, seconds))
    torch.manual_seed(12345)  # another process has another global state
    again = keeping(tmp_path, seconds)
    assert equal(run(lambda _: None, again), undisturbed(run))
    per_batch = 2 if run is rl_shuffled else 1
    assert again.resumed_after == (None if behind is None else behind * per_batch)


@pytest.mark.parametrize("run", [sft, rl])
def test_a_fit_interrupted_twice_and_one_that_was_over(run, tmp_path):
    for place in ((1, 3), (2, 2)):
        with pytest.raises(Stop):
            run(stop_at(*place), keeping(tmp_path))
    assert equal(run(lambda _: None, keeping(tmp_path)), undisturbed(run))
    seen = []
    assert equal(run(seen.append, keeping(tmp_path)), undisturbed(run))  # as after a crash in what follows training
    assert not seen
    assert len(list((tmp_path / "fit").iterdir())) == 1


def test_the_undisturbed_supervised_fit_stops_by_patience():
    _, log = undisturbed(sft)
    assert (log.stopped_by, log.epochs) == ("patience", log.best_epoch + 1)


def test_bfloat16_weights_come_back_bit_for_bit(tmp_path):
    def run(checkpoints=None):
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 3).to(torch.bfloat16)
        updater = Updater([(layer.parameters(), 1e-2)], weight_decay=0.1, warmup=1, total=6, max_norm=1.0)
        for step in range(6):
            if step == 3 and checkpoints is not None:
                checkpoints.write(updater.snapshot(), updater.steps)
                updater = Updater([(layer.parameters(), 1e-2)], weight_decay=0.1, warmup=1, total=6, max_norm=1.0)
                with torch.no_grad():
                    layer.weight.zero_()
                updater.resume(checkpoints.read())
            updater.zero()
            layer(torch.ones(2, 4, dtype=torch.bfloat16) * (step + 1)).square().sum().backward()
            updater.step()
        return layer.weight

    assert torch.equal(run(checkpoints=keeping(tmp_path)), run())


class Counting(Stage):
    """Counts its updates in a state of its own."""

    shown = "count"

    def __init__(self) -> None:
        self.count = 0

    def state(self):
        return {"count": self.count}

    def resume(self, state):
        self.count = state["count"]

    def begin_epoch(self):
        pass

    def update(self, updater, rows):
        self.count += len(rows) // 2
        updater.zero()
        updater.parameters[0].grad = torch.ones_like(updater.parameters[0])
        updater.step()
        return {"count": self.count}

    def note_epoch(self, log, epoch, means, watched):
        assert watched == 1.0
        log.note("count", epoch, means["count"])


def test_a_stage_keeps_what_its_updates_change(tmp_path):
    def run(progress=lambda _: None):
        weight = torch.nn.Parameter(torch.zeros(2))
        updater = Updater([([weight], 1e-2)], weight_decay=0, warmup=0, total=8, max_norm=1.0)
        order, still = np.random.default_rng(0), Watch("nll", lambda: 1.0, higher_is_better=False)
        return train(Counting(), Course(8, 2, order, still, Budget(2), progress, keeping(tmp_path)), updater)

    with pytest.raises(Stop):
        run(stop_at(2, 2))
    assert run().curves == {"count": [(1, 2.5), (2, 6.5)]}


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def scramble(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-20:] = b"what is this garbage"
    file.write_bytes(content)


def of_another_format(file: Path) -> None:
    content = json.loads(file.read_text().partition("\n")[2])
    text = json.dumps({**content, "format": 99})
    file.write_text(f"{zlib.crc32(text.encode())}\n{text}\n")


@pytest.mark.parametrize(
    ("damage", "name", "reason"),
    [
        (truncate, TENSORS, f"{TENSORS} is damaged"),
        (scramble, TENSORS, f"{TENSORS} is damaged"),
        (Path.unlink, TENSORS, "No such file"),
        (truncate, RECORD, f"{RECORD} is damaged"),
        (scramble, RECORD, f"{RECORD} is damaged"),
        (Path.unlink, RECORD, "No such file"),
        (lambda file: file.write_bytes(b"\xff\xfe"), RECORD, "decode"),
        (of_another_format, RECORD, "format 99, not 1"),
    ],
)
def test_a_damaged_checkpoint_is_said_and_the_fit_starts_anew(damage, name, reason, tmp_path, caplog):
    with pytest.raises(Stop):
        sft(stop_at(2, 3), keeping(tmp_path))
    [kept] = (tmp_path / "fit").iterdir()
    damage(kept / name)
    again = keeping(tmp_path)
    assert equal(sft(lambda _: None, again), undisturbed(sft))
    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert str(kept) in line
    assert reason in line
    assert line.endswith("the fit starts anew")
    assert again.resumed_after is None


def test_a_checkpoint_of_another_fit_is_not_used(tmp_path, caplog):
    with pytest.raises(Stop):
        sft(stop_at(2, 3), keeping(tmp_path, seed=1))
    assert equal(sft(lambda _: None, keeping(tmp_path)), undisturbed(sft))
    assert "of another fit: other seed" in caplog.text
    other = tmp_path / "other"
    with pytest.raises(Stop):
        sft(stop_at(2, 3), keeping(other))
    rl(lambda _: None, keeping(other))
    assert "of another fit: other generators, parameters" in caplog.text


def test_a_checkpoint_that_cannot_be_written_is_said_once_and_costs_nothing(tmp_path, caplog):
    (tmp_path / "fit").write_text("in the way")
    assert equal(sft(lambda _: None, keeping(tmp_path)), undisturbed(sft))
    [line] = [record.getMessage() for record in caplog.records]
    assert "no checkpoint can be written" in line


def test_the_last_checkpoint_stays_until_the_next_is_whole(tmp_path, monkeypatch):
    kept = keeping(tmp_path)
    kept.write(Snapshot({"at": 1}, {"x": torch.ones(2)}), 1)

    def die(_tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", die)
    with pytest.raises(KeyboardInterrupt):
        kept.write(Snapshot({"at": 2}, {"x": torch.zeros(2)}), 2)
    monkeypatch.undo()
    found = keeping(tmp_path).read()
    assert found.record == {"at": 1}
    assert torch.equal(found.tensors["x"], torch.ones(2))
    keeping(tmp_path).write(Snapshot({"at": 3}, {"x": torch.zeros(2)}), 3)
    assert len(list((tmp_path / "fit").iterdir())) == 1
    assert keeping(tmp_path).read().record == {"at": 3}


def test_seconds_add_up_over_interruptions(tmp_path):
    first = keeping(tmp_path)
    time.sleep(0.05)
    first.write(Snapshot({}, {"x": torch.ones(1)}), 4)
    second = keeping(tmp_path)
    second.read()
    assert 0.05 <= second.earlier_seconds < 1
    assert second.resumed_after == 4
    time.sleep(0.05)
    second.write(Snapshot({}, {"x": torch.ones(1)}), 8)
    third = keeping(tmp_path)
    third.read()
    assert third.earlier_seconds >= second.earlier_seconds + 0.05


def test_checkpoints_within_an_epoch_come_by_the_clock_and_cost_little(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: now[0])
    kept = keeping(tmp_path, 120.0)
    now[0] += 119
    assert not kept.due
    now[0] += 1
    assert kept.due

    def slow(*_: object) -> None:
        now[0] += 30

    monkeypatch.setattr(Checkpoints, "_fill", slow)
    kept.write(Snapshot({}, {}), 1)
    now[0] += 599
    assert not kept.due, "writing takes 30 s, so at most every 600 s"
    now[0] += 1
    assert kept.due


# ---------------------------------------------------------------- the whole recommender
def method(stage: str, **params: object) -> tuple[FLR, FitSpec]:
    rl_params = {"group_size": 4, "learning_rate": 1e-3, "batch_size": 32, "validations": 2}
    given = {**tiny_params("flr"), "learning_rate": 3e-3, "batch_size": 32, "rl": rl_params, **params}
    return FLR(FlrParams.model_validate(given)), FitSpec("flr", given, stage)


def fit(stage: str, folder: Path | None, progress=lambda _: None, **params: object):
    model, _ = method(stage, **params)
    harness = shared_harness()
    inputs = harness._folders(FLR.requires(model.params, stage), 0)
    context = replace(harness._context(0, stage, inputs, "nll"), checkpoints=folder, progress=progress)
    torch.set_num_threads(1)
    return model, model.fit(harness.split, context)


@pytest.mark.parametrize(
    ("stage", "params"),
    [
        ("sft", {}),
        ("sft", {"tune": "lora"}),
        ("sft", {"tune": "reasoner"}),
        ("rl", {}),
        ("rl", {"tune": "lora", "encoding_cache": "file"}),
        ("rl", {"encoding_cache": "off"}),
        ("rl", {"encoding_cache_mib": 1}),
    ],
)
def test_an_interrupted_method_is_stored_and_reported_alike(stage, params, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Stop):
        fit(stage, tmp_path / "kept", stop_at(2, 3), **params)
    with caplog.at_level(logging.INFO, "flr_bench"):
        model, report = fit(stage, tmp_path / "kept", **params)
    assert "resumed from the checkpoint" in caplog.text
    plain, expected = fit(stage, None, **params)
    measured = dict(report.measurements)
    assert measured.pop("resumed_after_updates") == len(shared_harness().split.train) // 32 + 1 + 2
    assert measured.pop("earlier_seconds") > 0
    assert replace(report, measurements=measured) == expected
    folders = []
    for name, fitted in (("a", model), ("b", plain)):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        fitted.save(folders[-1])
    files = sorted(path.relative_to(folders[0]) for path in folders[0].rglob("*") if path.is_file())
    assert Path("reasoner.safetensors") in files
    assert all((folders[0] / file).read_bytes() == (folders[1] / file).read_bytes() for file in files)


def test_other_parameters_do_not_go_on_from_a_checkpoint(tmp_path, caplog):
    with pytest.raises(Stop):
        fit("sft", tmp_path / "kept", stop_at(2, 3))
    _, report = fit("sft", tmp_path / "kept", learning_rate=1e-3)
    assert "other parameters of the method" in caplog.text
    assert "resumed_after_updates" not in report.measurements


# ---------------------------------------------------------------- the runner
SUITE = """\
version: killed@1
data: [ml-100k]
max_history: 5
seeds: 1
k: [10]
primary: ndcg@10
shared:
  llm: {backbone: {width: 16, layers: 1, heads: 2, vocabulary: 400, epochs: 0}}
recommenders:
  - {name: flr, stages: [sft, rl], decodings: [plain], params: {rl: {group_size: 4}}}
profiles:
  cpu:
    threads: 1
    workers: 1
    test_examples: 10
    valid_examples: 20
    budgets:
      sft: {epochs: 3, watch: nll, train_examples: 300}
      rl: {epochs: 3, watch: nll, train_examples: 160}
"""

CODE = """\
import sys
from flr_bench.lm import checkpoint
checkpoint.CHECKPOINT_SECONDS = 0.0
from flr_bench.cli import main
sys.argv = ["flr-bench", "run", "--suite", "suite.yaml", "--no-track"]
main()
"""


def run_suite(folder: Path, interrupted_at: tuple[str, str] | None = None) -> None:
    """Run in this process; an interruption within a fit leaves the temporary folder as a killed process would."""

    class Display(PlainDisplay):
        def __call__(self, event: Event) -> None:
            place = f"{event.values.get('epoch')}:{event.values.get('step')}"
            if interrupted_at is not None and interrupted_at[0] in event.label and place == interrupted_at[1]:
                raise KeyboardInterrupt

    folder.mkdir(exist_ok=True)
    (folder / "suite.yaml").write_text(SUITE)
    folders = Folders(folder / "runs", folder / "cache", folder / "mlruns", folder / "results")
    front = Frontend(lambda count: Display(count, io.StringIO()), lambda: ())
    run(Request(str(folder / "suite.yaml"), "cpu"), folders, "missing", 1, front)


def kill_within(folder: Path, stage: str, place: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "suite.yaml").write_text(SUITE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if f"fit flr · {stage}" in line and place in line:
            break
    process.send_signal(signal.SIGKILL)
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL


def compare(interrupted: Path, plain: Path) -> int:
    """How many fits were resumed; all else is the same."""
    resumed = 0
    for cell in (plain / "runs" / "cells").iterdir():
        other = interrupted / "runs" / "cells" / cell.name
        for file in ("model/reasoner.safetensors", "model/backbone/model.safetensors", "ranking.parquet"):
            if (cell / file).exists():
                assert (cell / file).read_bytes() == (other / file).read_bytes(), file
        ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (other, cell))
        if "report" not in ours:
            assert ours["summary"] == theirs["summary"]
            continue
        measured = ours["report"]["measurements"]
        if measured.pop("resumed_after_updates", None):
            resumed += 1
            assert ours["seconds"] > measured.pop("earlier_seconds") > 0
            assert "resumed from the checkpoint" in (other / "log.txt").read_text()
        assert ours["report"] == theirs["report"]
    return resumed


def test_an_interrupted_run_goes_on_within_the_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(events, "PROGRESS_INTERVAL", 0.0)
    interrupted, plain = tmp_path / "interrupted", tmp_path / "plain"
    kept = interrupted / "runs" / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        run_suite(interrupted, ("fit flr · sft", "2:3"))
    [supervised] = kept.iterdir()
    with pytest.raises(KeyboardInterrupt):
        run_suite(interrupted, ("fit flr · rl", "2:3"))
    [reinforced] = kept.iterdir()  # that of the supervised cell is gone
    assert reinforced != supervised
    run_suite(interrupted)
    assert not list(kept.iterdir())
    run_suite(plain)
    assert compare(interrupted, plain) == 2
    # A checkpoint of a cell that is there is stale.
    reinforced.mkdir()
    run_suite(interrupted)
    assert not reinforced.exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_within_the_fit(tmp_path):
    killed, plain = tmp_path / "killed", tmp_path / "plain"
    kill_within(killed, "sft", "epoch 2/3")
    assert list((killed / "runs" / "checkpoints").glob("*/*/" + TENSORS))
    kill_within(killed, "rl", "epoch 2/3")
    for folder in (killed, plain):
        run_suite(folder)
    assert compare(killed, plain) == 2
    tables = []
    for folder in (killed, plain):
        [view] = StoreReader(folder / "runs").suites(None, None)
        tables.append(training_table(view, "ml-100k"))
    assert tables[0] == tables[1]


# ---------------------------------------------------------------- logs
def test_reinforcement_logs_every_update_and_validates_along_the_way():
    _, log = undisturbed(rl)
    places = [epoch for epoch, _ in log.curves["reward"]]
    np.testing.assert_allclose(places, np.arange(1, 16) / 5)
    for name in ("reward_mean", "reward_spread", "between_prompt_share", "advantage_norm", "noise_over_thought"):
        assert len(log.curves[name]) == 15
    assert {"noise_over_embeddings", "gradient_norm", "penalty_diversity"} <= set(log.curves)
    assert [epoch for epoch, _ in log.curves["valid_nll"]] == pytest.approx([0, 0.4, 1, 1.4, 2, 2.4, 3])


def test_curves_of_every_update_are_drawn_in_few_points_and_mirrored_in_distinct_steps():
    points = [(i / 375, float(i % 2)) for i in range(1, 1001)]
    drawn = thinned(points)
    assert len(drawn) == MOST_POINTS == 40
    assert drawn[-1] == (1000 / 375, 0.48)
    assert thinned(points[:3]) == points[:3]
    assert thinned([]) == []
    name, steps = by_step("reward", points)
    assert name == "epoch/reward by 0.001 epoch"
    assert len(dict(steps)) == 1000
    assert by_step("valid_nll", points[::50])[0] == "epoch/valid_nll by 0.01 epoch"
    assert by_step("loss", [(1, 2.0), (2, 1.0)]) == ("epoch/loss", [(1, 2.0), (2, 1.0)])


# ---------------------------------------------------------------- options
def gradients(kind: str, **options: bool) -> tuple[dict[str, float], torch.Tensor]:
    model = latent_model("factorized", kind)
    with prepared_layers(model.language_model, **options):
        for rows in (np.arange(9), np.arange(3), np.arange(1), np.arange(7)):
            model.zero_grad()
            batch = DATA.batch(rows)
            figures = sft_backward(model, batch, WEIGHTS, tokens=30, examples=len(rows))
    assert all("forward" not in vars(layer) for layer in model.language_model.base_model.layers)
    return figures, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_recomputed_layers_have_the_same_gradients(kind):
    figures, plain = gradients(kind)
    again, recomputed = gradients(kind, recompute=True)
    assert again == figures
    assert torch.equal(plain, recomputed)


PEAK = """\
import sys
sys.path[:0] = ["tests/lm", "."]
import numpy as np, torch
from pathlib import Path
from lm_helpers import language_model, reasoner
from flr_bench.lm.branching import chains, encode_prompts, run_branches
from flr_bench.lm.layers import prepared_layers
torch.set_num_threads(1)
model = language_model(hidden_size=128, intermediate_size=512, num_hidden_layers=8)
ids = torch.zeros(8, 200, dtype=torch.int64)
def peak():
    text = Path("/proc/self/status").read_text()
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith(("VmHWM", "VmRSS"))]
for recompute in (True, False):
    with prepared_layers(model, recompute=recompute):
        for tokens in (2, 200):  # the first time allocates what stays
            Path("/proc/self/clear_refs").write_text("5")
            before = peak()[1]
            prompts = encode_prompts(model, ids[:, :tokens], torch.full((8,), tokens))
            hidden = run_branches(model, prompts, torch.zeros(8, 20, 128), *chains(8, 1, 20))
            hidden.square().sum().backward()
            del prompts, hidden
    print(peak()[0] - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
def test_recomputed_layers_need_less_memory():
    # Freed memory goes back to the system at once, so that what is measured is what is held.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", PEAK]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    recomputed, plain = map(int, done.stdout.split())
    assert recomputed < 0.5 * plain


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"compiled": True}, {"compiled": True, "recompute": True}])
def test_compiled_layers_agree_to_rounding(options):
    figures, plain = gradients("qwen2")
    again, compiled = gradients("qwen2", **options)
    assert again["loss"] == pytest.approx(figures["loss"], rel=1e-5)
    assert float((plain - compiled).norm()) <= 1e-4 * float(plain.norm())


def test_without_a_compiler_there_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setattr(layers.torch._inductor.config.cpp, "cxx", ("/nowhere/g++",))
    torch._dynamo.reset()
    model = language_model()
    wanted = pytest.raises(UsageError, match=r"compile: true .* install a C\+\+ compiler or leave it out")
    with wanted, prepared_layers(model, compiled=True):
        pass
    assert all("forward" not in vars(layer) for layer in model.base_model.layers)


def test_a_model_without_decoder_layers_is_refused():
    wanted = pytest.raises(UsageError, match="activation_checkpointing knows no decoder layers")
    with wanted, prepared_layers(torch.nn.Linear(2, 2), recompute=True):
        pass


def test_fused_optimiser_differs_by_rounding_only():
    (plain, _), (fused, _) = sft(fused_optimizer=False), sft(fused_optimizer=True)
    for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    used = Updater([(plain.parameters(), 1e-3)], weight_decay=0, warmup=0, total=1, max_norm=1, fused=True)
    assert used._optimizer.defaults["fused"] is True


def test_options_of_the_run_enter_the_hash_only_where_they_are_set():
    plain = FLR.stage_params(FlrParams(), "sft")
    assert not {"fused_optimizer", "activation_checkpointing", "compile"} & set(plain)
    chosen = FlrParams(activation_checkpointing=True, fused_optimizer=True)
    assert FLR.stage_params(chosen, "sft") == {**plain, "activation_checkpointing": True, "fused_optimizer": True}
    assert FLR.stage_params(chosen, "rl")["activation_checkpointing"] is True
    assert "activation_checkpointing" not in FLR.stage_params(chosen, "untuned")
    assert FLR.requires(chosen, "rl")["model"].params["fused_optimizer"] is True


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_methods_take_the_options(stage):
    plain, expected = fit(stage, None)
    found, report = fit(stage, None, activation_checkpointing=True)
    assert report == expected
    states = found._state.model.state_dict(), plain._state.model.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    seen = []
    init = Updater.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Updater, "__init__", lambda self, *a, **k: (seen.append(k["fused"]), init(self, *a, **k))[1])
        fit(stage, None, fused_optimizer=True)
    assert set(seen) == {True}
