import csv
import errno
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run_support
import torch
from run_support import OPTIONS, TINY

from fastmix.cli import main
from fastmix.train import files, trainer
from fastmix.train.config import METHODS, Config
from fastmix.train.data import open_data
from fastmix.train.errors import UserError, need
from fastmix.train.trainer import Interrupted, Trainer

for package in ("sklearn", "matplotlib", "tqdm", "yaml", "PIL"):
    pytest.importorskip(package)

PNG = b"\x89PNG\r\n\x1a\n"


def train(*words):
    return main(["train", *OPTIONS, "--quiet", *map(str, words)])


def hear_ctrl_c():
    """A shell that runs the tests in the background makes its children ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def spawned(*words, before=hear_ctrl_c):
    """`python -m fastmix WORDS`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return run_support.spawned([sys.executable, "-m", "fastmix", *words], env=environment, preexec_fn=before)


def parameters(run):
    return {k: v for k, v in run.task.module.state_dict().items() if isinstance(v, torch.Tensor)}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


@pytest.mark.parametrize("method", ["none", "mixup", "cutmix", "puzzlemix", "automix"])
def test_a_run_writes_everything(tmp_path, capsys, method):
    assert train("--method", method, "--steps", 6, "--epoch-steps", 3, "--out", tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert re.search(r"test accuracy \d+\.\d\d % on 1000 images", said)
    assert ("lambda misses" in said) == (method != "none")
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").open()))
    assert [r["step"] for r in rows] == ["3", "6"]
    for row in rows:
        assert 0 <= float(row["test_accuracy"]) <= 100 and float(row["images_per_s"]) > 0
        if method == "automix":
            parts = sum(float(row[k]) for k in ("cls", "mix", "gen", "mask"))
            assert float(row["loss"]) == pytest.approx(parts, rel=1e-4)
    names = {p.name for p in (tmp_path / "run").iterdir()}
    pictures = {"curves.png"} | ({"mixes.png"} if method != "none" else set())
    assert names == {"checkpoint.pt", "config.yaml", "log.csv"} | pictures
    for name in pictures:
        content = (tmp_path / "run" / name).read_bytes()
        assert content.startswith(PNG) and len(content) > 5000


@pytest.mark.parametrize("mode", [None, "sample"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_shows_what_it_mixes(method, mode):
    trainer = Trainer(Config(**TINY, method=method, mode=mode, steps=2))
    assert trainer.fit()[-1]["loss"] > 0
    originals, mixed = trainer.mix(torch.arange(6), torch.full((6,), 0.5), torch.arange(6).flip(0))
    assert mixed.x.shape == originals.shape and mixed.x.isfinite().all()
    assert mixed.weight.shape == (6, *originals.shape[2:])
    assert ((mixed.weight >= 0) & (mixed.weight <= 1)).all()


def test_training_learns(tmp_path):
    config = Config(**{**TINY, "labels_per_class": 20, "width": 8}, method="mixup", steps=120, epoch_steps=60)
    assert Trainer(config).fit()[-1]["test_accuracy"] > 70


@pytest.mark.parametrize("method", ["cutmix", "puzzlemix", "automix"])
@pytest.mark.parametrize("stop_at", [4, 6])
def test_resuming_is_bit_exact(tmp_path, method, stop_at):
    """Stopped inside an epoch (4) or at its end (6), then resumed in a new trainer."""
    config = Config(**TINY, method=method, steps=12, epoch_steps=6)
    whole = Trainer(config)
    whole.fit()

    first = Trainer(config, tmp_path)
    run_support.stop_after(first, stop_at, signal.SIGINT)
    with pytest.raises(Interrupted):
        first.fit()
    assert first.step == stop_at
    torch.manual_seed(99)
    torch.rand(5)

    saved, state = trainer.resume_state(tmp_path)
    second = Trainer(saved, tmp_path)
    second.load(state)
    second.fit()
    assert_same(parameters(second), parameters(whole))
    assert_same(
        {str(k): v["momentum_buffer"] for k, v in second.optimizer.state_dict()["state"].items()},
        {str(k): v["momentum_buffer"] for k, v in whole.optimizer.state_dict()["state"].items()},
    )
    timing = {"images_per_s", "ms_per_step"}
    for one, two in zip(whole.history, second.history, strict=True):
        assert {k: v for k, v in one.items() if k not in timing} == {k: v for k, v in two.items() if k not in timing}


def test_ctrl_c_saves_and_the_command_line_resumes(tmp_path):
    run = tmp_path / "run"
    options = ("--steps", 3000, "--epoch-steps", 4, "--out", run)
    with spawned("train", *OPTIONS, *options) as child:
        deadline = time.monotonic() + 120
        while not (run / "log.csv").exists() and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert re.search(r"stopped after step \d+ of 3000; go on with: fastmix train --resume --out", out)
    assert "Traceback" not in err
    assert 0 < files.load_checkpoint(run / "checkpoint.pt")["step"] < 3000
    assert not [p for p in run.iterdir() if p.name.startswith(".")]


def test_resume_takes_the_saved_settings_and_refuses_others(tmp_path, capsys):
    run = tmp_path / "run"
    assert train("--steps", 4, "--epoch-steps", 2, "--method", "none", "--out", run) == 0
    finished = (run / "log.csv").read_text()
    assert main(["train", "--resume", "--quiet", "--out", str(run)]) == 0
    assert (run / "log.csv").read_text() == finished
    capsys.readouterr()
    assert main(["train", "--resume", "--quiet", "--out", str(run), "--lr", "0.5"]) == 2
    assert "--lr 0.5 differs from the checkpoint's 0.1" in capsys.readouterr().err
    assert main(["train", "--quiet", "--out", str(run)]) == 2
    assert "holds a run already; go on with --resume" in capsys.readouterr().err
    assert main(["train", "--resume", "--quiet", "--out", str(tmp_path / "other")]) == 2
    assert "no checkpoint to resume from" in capsys.readouterr().err
    (run / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:1000])
    assert main(["train", "--resume", "--quiet", "--out", str(run)]) == 2
    assert "checkpoint.pt: damaged checkpoint" in capsys.readouterr().err


def test_a_config_file_is_overridden_by_the_command_line(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("steps: 9\nmethod: cutmix\nmode: sample\namp: off\nlr: 5e-2\n")
    assert train("--config", path, "--steps", 2, "--out", tmp_path / "run") == 0
    config = Config.from_dict(files.load_checkpoint(tmp_path / "run" / "checkpoint.pt")["config"])
    assert (config.steps, config.method, config.mode, config.amp, config.lr) == (2, "cutmix", "sample", "off", 0.05)
    # what a run writes can start another
    again = ["--config", str(tmp_path / "run" / "config.yaml"), "--quiet", "--out", str(tmp_path / "again")]
    assert main(["train", *again]) == 0
    states = [files.load_checkpoint(tmp_path / name / "checkpoint.pt")["module"] for name in ("run", "again")]
    assert_same(*states)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batchsize: 3\n", "unknown key batchsize; did you mean batch_size?"),
        ("zebra: 3\n", "unknown key zebra"),
        ("lr: fast\n", "argument --lr: invalid float value: 'fast'"),
        ("lr: [\n", "not valid YAML"),
        ("- 1\n", "must hold option: value lines"),
        ("method: blur\n", "argument --method: invalid choice: 'blur'"),
    ],
)
def test_a_wrong_config_file_is_one_line(tmp_path, capsys, text, words):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    try:
        code = train("--config", path)
    except SystemExit as error:
        code = error.code
    message = capsys.readouterr().err
    assert code == 2 and words in message and str(path) in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "folder:/nonexistent"], "/nonexistent: no such directory"),
        (["--data", "moons"], "unknown data"),
        (["--model", "resnet99"], "--model resnet99: unknown model"),
        (["--method", "automix", "--feature", "layer9"], "feature must name a submodule"),
        (["--labels-per-class", "500"], "class 0 has only"),
        (["--model", "resnet81"], "--model resnet81: unknown model; did you mean resnet18"),
        (["--model", "vision:resnet18"], "--model vision:resnet18: unknown model"),
        (["--model", ""], "--model : unknown model"),
        (["--batch-size", "0"], "--batch-size must be above 0"),
        (["--epochs", "-1"], "--epochs must be above 0, got -1"),
        (["--epochs", "0"], "--epochs must be above 0, got 0"),
        (["--workers", "-1"], "--workers must not be negative, got -1"),
        (["--image-size", "0", "--data", "folder:."], "--image-size must be above 0, got 0"),
        (["--lr", "nan"], "--lr must be a finite number, got nan"),
        (["--lr", "inf"], "--lr must be a finite number, got inf"),
        (["--lr", "-1"], "--lr must be above 0, got -1.0"),
        (["--alpha", "nan"], "--alpha must be a finite number, got nan"),
        (["--alpha", "inf"], "--alpha must be a finite number, got inf"),
        (["--alpha", "0"], "--alpha must be above 0, got 0.0"),
        (["--weight-decay", "nan"], "--weight-decay must be a finite number, got nan"),
        (["--smoothing", "nan"], "--smoothing must be a finite number, got nan"),
        (["--smoothing", "1"], "--smoothing must be in [0, 1), got 1.0"),
        (["--teacher-momentum", "nan"], "--teacher-momentum must be a finite number, got nan"),
        (["--gamma", "inf"], "--gamma must be a finite number, got inf"),
        (["--seed", "-1"], "--seed must not be negative, got -1"),
        (["--data-seed", "-1"], "--data-seed must not be negative, got -1"),
        (["--max-pixels", "0"], "--max-pixels must be above 0"),
        (["--device", "cuda:99"], "--device cuda:99: cannot be used"),
        (["--method", "manifoldmix", "--layers", "input,layer9"], "--layers layer9: the model has no such layer"),
        (["--method", "manifoldmix", "--compile"], "--compile cannot be used with --method manifoldmix"),
        (["--method", "attentivemix", "--feature", "layer9"], "--feature layer9: the model has no such layer"),
        (["--method", "automix", "--mode", "pair"], "--mode must be batch or sample for automix"),
        (["--method", "automix", "--pairing", "roll"], "--pairing must be perm for automix"),
        (["--cuda-graph", "--device", "cpu"], "--cuda-graph needs one process with a CUDA device, got cpu"),
        (["--cuda-graph", "--method", "mixup"], "--cuda-graph needs --method automix, got mixup"),
        (["--cuda-graph", "--amp", "fp16"], "--cuda-graph cannot be used with --amp fp16"),
        (["--config", "/nonexistent.yaml"], "/nonexistent.yaml: No such file"),
        (["--resume"], "--out DIR"),
    ],
)
def test_errors_are_one_line_with_exit_code_2(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert train("--steps", 2, *words) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("fastmix train: error: ") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train("--steps", 2, "--out", tmp_path / "file" / "run") == 2
    assert f"{tmp_path}/file/run: cannot create the output folder: Not a directory" in capsys.readouterr().err


def test_an_output_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    for words in ((), ("--resume",)):
        assert train("--steps", 2, *words, "--out", tmp_path / "file") == 2
        said = capsys.readouterr().err
        assert said.startswith(f"fastmix train: error: {tmp_path}/file") and said.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_output_folder_that_cannot_be_written_to(tmp_path, capsys):
    tmp_path.chmod(0o500)
    for place, words in ((tmp_path, "cannot write"), (tmp_path / "run", "cannot create the output folder")):
        assert train("--steps", 2, "--out", place) == 2
        said = capsys.readouterr().err
        assert words in said and "Permission denied" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (lambda x, y: {"image": x, "label": y}, "got a dictionary with 'image', 'label'"),
        (lambda x, y: x, r"got a tensor of shape \(8, 1, 16, 16\) without labels"),
        (lambda x, y: (x,), "got 1 values"),
        (lambda x, y: (x, y, y), "got 3 values"),
        (lambda x, y: (x, None), "of tensors, got Tensor and NoneType"),
        (lambda x, y: None, "got NoneType"),
        (lambda x, y: (x.float(), y), "images must be uint8"),
        (lambda x, y: (x[0], y), "images must be uint8"),
        (lambda x, y: (x, y[:3]), r"labels must be int64 \(8,\), got torch.int64 \(3,\)"),
        (lambda x, y: (x, y.float()), "labels must be int64"),
    ],
)
def test_batches_that_are_no_pair_of_images_and_labels(batch, words):
    splits = open_data("digits")
    loader = splits.train.loader
    splits.train.loader = lambda *args: (batch(*pair) for pair in loader(*args))
    with pytest.raises((TypeError, ValueError), match=words):
        Trainer(Config(**{**TINY, "labels_per_class": None}, method="none", steps=2), splits=splits).fit()


def test_a_corrupt_image_and_an_empty_class_folder(tmp_path, capsys):
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (20, 20), (40 * k, 0, 0)).save(tmp_path / "data" / name / f"{k}.jpg")
    words = ["--data", f"folder:{tmp_path}/data", "--image-size", 32, "--labels-per-class", 1, "--quiet"]
    assert train(*words, "--steps", 2, "--out", tmp_path / "fine") == 0
    for path in (tmp_path / "data" / "dog").iterdir():
        path.write_bytes(b"not an image")
    assert train(*words, "--steps", 2, "--workers", 1, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert re.search(r"data/dog/\d\.jpg: not a readable image", said) and said.count("\n") == 1
    assert not (tmp_path / "run").exists()
    (tmp_path / "data" / "emu").mkdir()
    assert train(*words, "--steps", 2, "--out", tmp_path / "run2") == 2
    assert "data/emu: class folder without images" in capsys.readouterr().err


def test_classes_of_odd_names_are_trained_on_and_drawn(tmp_path):
    from PIL import Image

    for name in ("5$ a_{$b", "two\nlines"):
        (tmp_path / "$^$" / name).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (20, 20), (40 * k, 0, 0)).save(tmp_path / "$^$" / name / f"{k}.png")
    words = ["--data", f"folder:{tmp_path}/$^$", "--image-size", 32, "--method", "mixup", "--labels-per-class", 2]
    assert train(*words, "--steps", 2, "--out", tmp_path / "run") == 0
    assert (tmp_path / "run" / "mixes.png").read_bytes().startswith(PNG)


def test_unreadable_images_can_be_left_out(tmp_path, capsys):
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(20):
            Image.new("RGB", (20, 20), (10 * k, 0, 0)).save(tmp_path / "data" / name / f"{k:02}.jpg")
    for k in range(12):
        (tmp_path / "data" / "dog" / f"{k:02}.jpg").write_bytes(b"not an image")
    words = ["--data", f"folder:{tmp_path}/data", "--image-size", 32, "--labels-per-class", 1, "--unreadable", "skip"]
    assert train(*words, "--steps", 2, "--out", tmp_path / "run") == 0
    said = capsys.readouterr()
    head, *lines = said.err.splitlines()
    assert head == f"fastmix train: left out 12 images that cannot be read; all are in {tmp_path}/run/unreadable.txt"
    assert lines[-1] == "  and 2 more" and len(lines) == 11
    every = (tmp_path / "run" / "unreadable.txt").read_text().splitlines()
    assert [line.strip() for line in lines[:10]] == every[:10]
    assert every[11].startswith(f"{tmp_path}/data/dog/11.jpg: not a readable image")
    assert " on 6 images" in said.out
    assert main(["train", "--resume", "--quiet", "--out", str(tmp_path / "run"), "--unreadable", "stop"]) == 2
    assert "--unreadable stop differs from the checkpoint's skip" in capsys.readouterr().err


def test_a_write_that_fails_is_one_line_and_leaves_no_part(tmp_path):
    """A file size limit makes every large write fail, as a full disk does."""
    limit = 20_000

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    words = ("--steps", 2, "--quiet", "--out", tmp_path / "run")
    with spawned("train", *OPTIONS, *words, before=small_files) as child:
        _, err = child.communicate(timeout=90)
    assert child.returncode == 2, err
    assert err == f"fastmix train: error: {tmp_path}/run/checkpoint.pt: cannot write: File too large\n"
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.yaml"]


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_atomic(path, b"old")

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.txt: cannot write: No space left on device"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_loss_that_diverges_is_one_line(tmp_path, capsys):
    assert train("--method", "none", "--steps", 30, "--lr", "1e30", "--out", tmp_path / "run") == 2
    assert re.search(r"the loss is (nan|inf) at step \d+: try a lower --lr", capsys.readouterr().err)


def test_a_missing_extra_names_the_pip_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert train("--steps", 2, "--out", tmp_path / "run") == 2
    assert (
        "the digits data needs scikit-learn, which is not installed: pip install scikit-learn"
        in capsys.readouterr().err
    )
    with pytest.raises(UserError, match="pip install nowhere-package"):
        need("nowhere_module", "nowhere-package", "this")


def test_tensorboard_holds_the_figures(tmp_path):
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    words = [w for w in OPTIONS if w != "--no-tensorboard"]
    out = tmp_path / "run"
    assert main(["train", *words, "--quiet", "--steps", "4", "--epoch-steps", "2", "--out", str(out)]) == 0
    events = loading.EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    logged = [e.value for e in events.Scalars("test_accuracy")]
    rows = list(csv.DictReader((out / "log.csv").open()))
    assert logged == pytest.approx([float(r["test_accuracy"]) for r in rows])


@pytest.mark.parametrize(
    "words",
    [
        ["--amp", "--method", "cutmix"],
        ["--amp", "bf16", "--method", "automix"],
        ["--amp", "--method", "manifoldmix", "--layers", "layer1,layer3", "--pairing", "flip"],
        ["--amp", "--method", "attentivemix", "--feature", "layer2", "--mode", "pair", "--alpha", "1"],
        ["--method", "switch", "--mode", "pair", "--smoothing", "0.1"],
        ["--amp", "--method", "puzzlemix", "--mode", "sample", "--clean-loss", "--smoothing", "0.1"],
        ["--method", "mixup", "--clean-loss", "--no-channels-last", "--smoothing", "0.1", "--mode", "sample"],
        ["--method", "automix", "--released", "--no-clean-loss"],
        ["--method", "automix", "--sequential", "--gen-every", "2", "--upsample", "nearest", "--lam-embed", "v"],
    ],
)
def test_options_run(tmp_path, words):
    assert train("--steps", 3, "--out", tmp_path / "run", *words) == 0


def test_sequential_changes_nothing_but_memory():
    runs = [Trainer(Config(**TINY, method="automix", steps=3, sequential=s)) for s in (False, True)]
    for run in runs:
        run.fit()
    for name, value in parameters(runs[0]).items():
        torch.testing.assert_close(parameters(runs[1])[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("extra", [[], ["--amp", "--sequential"], ["--gen-every", "2"]])
def test_a_run_as_cuda_graphs(tmp_path, extra):
    words = ["--device", "cuda", "--steps", 16, "--epoch-steps", 8, *extra]
    assert train(*words, "--cuda-graph", "--out", tmp_path / "graph") == 0
    assert train(*words, "--out", tmp_path / "eager") == 0
    graph, eager = (list(csv.DictReader((tmp_path / name / "log.csv").open())) for name in ("graph", "eager"))
    for one, two in zip(graph, eager, strict=True):
        assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cutmix", "puzzlemix", "automix"])
def test_two_processes_train_the_same_weights(tmp_path, method):
    code = (
        "import sys, torch; from fastmix.train.distributed import join; from fastmix.train.config import Config;"
        "from fastmix.train.trainer import Trainer; from pathlib import Path; p = join('cpu');"
        f"t = Trainer(Config(**{TINY!r}, method={method!r}, steps=3), None, p); t.fit();"
        "torch.save({n: v for n, v in t.task.module.named_parameters()}, sys.argv[1] + str(p.rank)); p.close()"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "w")], env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    assert_same(*(torch.load(tmp_path / f"w{rank}") for rank in (0, 1)))


def test_the_command_line_itself(capsys):
    assert main([]) == 2 and "commands:" in capsys.readouterr().out
    assert main(["--help"]) == 0 and "train" in capsys.readouterr().out
    assert main(["--version"]) == 0 and re.match(r"fastmix \d", capsys.readouterr().out)
    assert main(["dance"]) == 2 and "no command 'dance'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["train", "--nonsense"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "unrecognized arguments: --nonsense" in said and said.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0 and "--labels-per-class" in capsys.readouterr().out


def test_importing_the_command_line_needs_no_torch():
    code = "import sys; import fastmix.cli; main = fastmix.cli.main; main(['--help']); print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


@pytest.mark.slow
def test_the_demo_on_a_few_steps(tmp_path, capsys):
    words = ["--data", "digits", "--seeds", "2", "--steps", "2", "--labels-per-class", "2"]
    assert main(["demo", *words, "--out", str(tmp_path / "demo")]) == 0
    said = capsys.readouterr().out
    for name in ("plain", "MixUp", "CutMix", r"MixUp\+clean", "AutoMix"):
        assert re.search(rf"^{name} +\d", said, re.MULTILINE)
    rows = list(csv.DictReader((tmp_path / "demo" / "results.csv").open()))
    assert len(rows) == 10 and {r["seed"] for r in rows} == {"0", "1"}
    mixup = [r for r in rows if r["method"] == "MixUp"]
    assert all(float(r["object_share"]) == pytest.approx(0.5, abs=1e-4) for r in mixup)
    assert all(float(r["lam_mismatch"]) < 1e-4 for r in mixup)
    for name in ("curves.png", "mixes.png"):
        assert (tmp_path / "demo" / name).read_bytes().startswith(PNG)


@pytest.mark.slow
def test_ctrl_c_ends_the_demo(tmp_path):
    with spawned("demo", "--data", "digits", "--out", tmp_path / "demo", "--steps", 100000) as child:
        child.stdout.readline()
        time.sleep(4)
        os.killpg(child.pid, signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert err == "\nfastmix demo: interrupted\n"
