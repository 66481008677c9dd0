"""Where an encoder's logits come from, and what AutoMix leaves of the model it was given."""

from __future__ import annotations

import copy
import types
from collections import OrderedDict, namedtuple

import pytest
import torch
import torch.nn.functional as F
from automix_support import TinyNet, error
from torch import Tensor, nn

from fastmix.methods import ManifoldMixup, PuzzleMix
from fastmix.train import AutoMix, PuzzleMixStep

pytestmark = pytest.mark.usefixtures("one_thread")


def batch(n: int = 4, classes: int = 10) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 16, 16, generator=g), torch.randint(0, classes, (n,), generator=g)


class Trunk(nn.Module):
    """What the models here have in common, and no classifier: features (N, 12, 4, 4)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.layer3 = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.BatchNorm2d(width), nn.ReLU())
        self.block = nn.Conv2d(width, width, 1)

    def features(self, x: Tensor) -> Tensor:
        x = self.layer3(x)
        return x + self.block(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class Last(Trunk):
    """The usual: a linear layer last, here in a sequence."""

    def __init__(self, classes: int = 10, bias: bool = True) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(12, classes, bias))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class Convolution(Trunk):
    """SqueezeNet's: a convolution, a rectifier and pooling."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.num_classes = classes
        self.classifier = nn.Sequential(nn.Conv2d(12, classes, 1), nn.LeakyReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x):
        return self.classifier(self.features(x)).flatten(1)


class Distilled(Trunk):
    """DeiT's: the mean of two heads, of other features each."""

    def __init__(self, classes: int = 10, norm: bool = False) -> None:
        super().__init__()
        self.num_classes, self.distilled_training = classes, False
        self.head, self.head_dist = (
            nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, classes)) if norm else nn.Linear(12, classes)
            for _ in range(2)
        )

    def forward(self, x):
        x = self.features(x)
        one, two = self.head(x.mean((2, 3))), self.head_dist(x.amax((2, 3)))
        return (one, two) if self.training and self.distilled_training else (one + two) / 2


class LogSoftmax(Last):
    def forward(self, x):
        return super().forward(x).log_softmax(1)


class Twice(Last):
    """Has its classifier under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = self.classifier

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


class Output(OrderedDict):
    """As transformers' ModelOutput."""

    @property
    def logits(self):
        return self["logits"]


class Wrapped(Last):
    def forward(self, x):
        features = self.features(x)
        return Output(logits=self.classifier(features.mean((2, 3))), hidden_states=(features,))


CLASSIFIERS = {
    "last": (Last, ("classifier.1",)),
    "no bias": (lambda: Last(bias=False), ("classifier.1",)),
    "convolution": (Convolution, ("classifier.0",)),
    "two heads": (Distilled, ("head", "head_dist")),
    "two heads with norms": (lambda: Distilled(norm=True), ("head.1", "head_dist.1")),
    "log softmax": (LogSoftmax, ("classifier.1",)),
    "two names": (Twice, ("classifier.1",)),
    "model output": (Wrapped, ("classifier.1",)),
}


def logits(model: nn.Module, images: Tensor) -> Tensor:
    output = model(images)
    return output if isinstance(output, Tensor) else output.logits


def trained(automix: AutoMix, steps: int = 3) -> AutoMix:
    optimizer = torch.optim.SGD(automix.param_groups(0.1), momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        automix(*batch()).loss.backward()
        optimizer.step()
        automix.update_teacher()
    return automix


@pytest.mark.parametrize("clean_loss", [True, False])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_model_stays_whole_and_is_the_student(name, clean_loss):
    build, names = CLASSIFIERS[name]
    torch.manual_seed(0)
    model = build()
    before, images = copy.deepcopy(model.state_dict()), batch()[0]
    model.eval()
    expected = logits(model, images).detach()
    model.train()
    automix = AutoMix(model, 10, clean_loss=clean_loss)
    assert automix.classifiers == names
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    automix.eval()
    assert not model.training
    # All heads start as the model's own classifier.
    for head in ("student_mix", "teacher_mix") + ("student_one_hot", "teacher_one_hot") * clean_loss:
        assert error(automix(images, head=head), expected) < 1e-6

    trained(automix.train())
    assert model.training and all(not torch.equal(p, before[key]) for key, p in model.named_parameters() if p.dim() > 1)
    own = {id(p) for p in model.parameters()}
    student = {id(p) for p in automix.student.parameters()}
    assert own < student and not own & {id(p) for p in automix.teacher.parameters()}
    automix.eval()
    head = "student_one_hot" if clean_loss else "student_mix"
    assert torch.equal(logits(model, images), automix(images, head=head))
    others = ["student_mix", "teacher_mix"] + ["teacher_one_hot"] * clean_loss
    for other in (other for other in others if other != head):
        exported = automix.export(other)
        assert exported.state_dict().keys() == before.keys()
        assert torch.equal(logits(exported, images), automix(images, head=other))
        assert not torch.equal(logits(exported, images), automix(images, head=head))


@pytest.mark.parametrize("build", [Last, Convolution, Distilled], ids=lambda build: build.__name__)
def test_a_classifier_of_other_classes_is_replaced_in_the_model(build):
    model = build(1000)
    automix = AutoMix(model, 10)
    trained(automix).eval()
    images, _ = batch()
    assert model(images).shape == (4, 10)
    assert torch.equal(model(images), automix(images, head="student_one_hot"))
    assert getattr(model, "num_classes", 10) == 10


def test_a_classifier_under_two_names_is_replaced_under_both():
    class Tied(Trunk):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 1000)
            self.head = self.fc

        def forward(self, x):
            return self.head(self.features(x).mean((2, 3)))

    model = Tied()
    trained(AutoMix(model, 10))
    assert model.head is model.fc and model(batch()[0]).shape == (4, 10)


def test_heads_that_are_zero_still_count():
    model = Distilled()
    for layer in (model.head, model.head_dist):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    assert AutoMix(model, 10).classifiers == ("head", "head_dist")


def test_state_moves_with_the_model():
    """Devices, dtypes, loading: one set of tensors, seen from both sides."""
    model = Last()
    model.scale = nn.Parameter(torch.ones(()))
    model.register_buffer("count", torch.zeros(()))
    automix = AutoMix(model, 10).double()
    assert all(p.dtype is torch.float64 for p in model.parameters()) and model.count.dtype is torch.float64
    state = copy.deepcopy(model.state_dict())
    trained(automix.float())
    model.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    assert automix.student.encoder.scale is model.scale
    assert torch.equal(automix.student.one_hot.weight, state["classifier.1.weight"].float())
    assert {id(p) for p in model.parameters()} < {id(p) for p in automix.student.parameters()}
    automix.to("meta")
    assert all(p.is_meta for p in model.parameters()) and model.count.is_meta


def test_compiled_encoders_with_heads_inside():
    torch.manual_seed(0)
    automix = AutoMix(Distilled(), 10)
    plain = copy.deepcopy(automix)
    automix.compile_encoders(backend="aot_eager")
    draws = dict(lam=(0.3, 0.6), index=(torch.tensor([1, 2, 3, 0]), torch.tensor([3, 2, 1, 0])))
    for _ in range(2):
        out, expected = automix(*batch(), **draws), plain(*batch(), **draws)
        for part in ("cls", "mix", "gen"):
            assert error(getattr(out, part), getattr(expected, part)) < 1e-6


def test_copies_are_whole_and_apart():
    automix = AutoMix(Distilled(), 10)
    other = copy.deepcopy(automix)
    before = copy.deepcopy(automix.state_dict())
    trained(other)
    assert all(torch.equal(value, automix.state_dict()[k]) for k, value in before.items() if k != "_extra_state")
    other.eval()
    images, _ = batch()
    exported = other.export("student_one_hot")
    assert torch.equal(exported(images), other(images, head="student_one_hot"))
    assert not torch.equal(other.student.mix[0].weight, automix.student.mix[0].weight)


def test_no_memory_for_a_second_encoder():
    model = Last()
    automix = AutoMix(model, 10)
    elements = {t.data_ptr(): t.numel() for t in (*model.state_dict().values(), *automix.student.state_dict().values())}
    assert sum(elements.values()) == sum(t.numel() for t in automix.student.state_dict().values())


def test_evaluation_of_the_model_alone_is_noticed():
    model = TinyNet()
    automix = AutoMix(model, 10)
    model.eval()
    with pytest.raises(RuntimeError, match=r"is in evaluation mode; call automix\.train\(\)"):
        automix(*batch())
    automix.train()
    automix(*batch())
    assert model.training


def test_readme_goes_on_with_the_same_model():
    model = TinyNet()
    trained(AutoMix(model, 10), 1)
    step = PuzzleMixStep(model, PuzzleMix(blocks=4))
    step(*batch()).loss.backward()
    manifold = ManifoldMixup(layers=("layer1",))
    mixed = manifold(*batch())
    mixed.loss(manifold.forward(model, mixed)).backward()


@pytest.mark.parametrize("clean_lam", [0.0, 1.0])
def test_puzzlemix_leaves_the_model_as_it_was(clean_lam):
    model = TinyNet()
    model.layer2.eval()
    modules, keys = dict(model.named_modules()), model.state_dict().keys()
    step = PuzzleMixStep(model, PuzzleMix(blocks=4), clean_lam)
    step(*batch()).loss.backward()
    assert dict(model.named_modules()) == modules and model.state_dict().keys() == keys
    assert model.training and not model.layer2.training and model.layer3.training
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    with pytest.raises(RuntimeError):
        step.saliency(torch.zeros(2, 5, 16, 16))  # of another number of channels
    assert model.training and not model.layer2.training


def test_manifold_mixup_leaves_no_hook_even_after_an_error():
    model, manifold = TinyNet(), ManifoldMixup(layers=("layer1",))
    mixed = manifold(*batch())
    with pytest.raises(ValueError, match="stop"), manifold.mixing(model, mixed):
        raise ValueError("stop")
    assert not any(m._forward_hooks for m in model.modules())
    x = batch()[0]
    assert torch.equal(model.eval()(x), model(x))


class Caches(Last):
    """Keeps in evaluation what it has computed from a parameter, until it trains (timm's LeViT does)."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.kept = nn.Parameter(torch.randn(12)), {}

    def train(self, mode: bool = True):
        if mode:
            self.kept = {}
        return super().train(mode)

    def forward(self, x):
        bias = self.bias * 2 if self.training else self.kept.setdefault("bias", self.bias * 2)
        return self.classifier(self.features(x).mean((2, 3)) + bias)


def test_what_a_model_keeps_for_evaluation_is_not_left_stale():
    model, (images, targets) = Caches(), batch()
    automix = AutoMix(model, 10)
    trained(automix).eval()
    first = automix(images)
    trained(automix.train(), 2).eval()
    exported = automix.export()
    assert torch.equal(exported(images), automix(images)) and not torch.equal(first, automix(images))
    fresh = Caches().eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(images), model(images))

    step = PuzzleMixStep(model.train(), PuzzleMix(blocks=4))
    optimizer = torch.optim.SGD(step.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        step(images, targets).loss.backward()
        optimizer.step()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.train().eval()(images), step.eval()(images))


# Encoders that return features.


@pytest.mark.parametrize("declared", [None, 0])
def test_features_get_two_heads(declared):
    model = Trunk()
    model.num_classes = declared
    automix = AutoMix(model, 10)
    assert automix.classifiers == () and automix.student.encoder is model
    assert automix.student.one_hot.in_features == 12
    trained(automix)
    assert automix.eval()(batch()[0]).shape == (4, 10)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_maps_of_features_are_averaged_over_positions(last):
    class Maps(Trunk):
        def forward(self, x):
            x = self.features(x)
            return x.permute(0, 2, 3, 1) if last else x

    torch.manual_seed(0)
    model = Maps()
    automix = AutoMix(model, 10, "layer3")
    assert automix.student.one_hot.in_features == 12
    trained(automix).eval()
    images, _ = batch()
    expected = automix.student.one_hot(model.features(images).mean((2, 3)))
    torch.testing.assert_close(automix(images, head="student_one_hot"), expected)
    torch.testing.assert_close(automix.export("student_one_hot")(images), expected)


def test_as_many_features_as_classes_must_be_told_apart():
    model = Trunk()
    with pytest.raises(ValueError, match="returns 12 numbers, as many as classes, but no classifier was found"):
        AutoMix(model, 12)
    assert AutoMix(model, 12, classifier=None).student.one_hot.in_features == 12


def test_classifier_of_a_kind_of_its_own():
    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(10, 12))

        def forward(self, x):
            return 8 * F.normalize(x) @ F.normalize(self.weight).t()

    class Net(Trunk):
        def __init__(self) -> None:
            super().__init__()
            self.out = Cosine()

        def forward(self, x):
            return self.out(self.features(x).mean((2, 3)))

    with pytest.raises(ValueError, match="no classifier was found"):
        AutoMix(Net(), 10)
    model = Net()
    automix = trained(AutoMix(model, 10, classifier="out")).eval()
    images, _ = batch()
    assert automix.student.one_hot is model.out and automix.student.mix is not model.out
    assert torch.equal(model(images), automix(images, head="student_one_hot"))
    with pytest.raises(ValueError, match=r"must have num_classes=7 outputs, .*'out'.*got 10"):
        AutoMix(Net(), 7, classifier="out")
    with pytest.raises(
        ValueError, match="classifier must name a submodule of the encoder, got 'outs'; close names: out"
    ):
        AutoMix(Net(), 10, classifier="outs")
    with pytest.raises(ValueError, match="classifier must name the layers that the logits come from, got 'block'"):
        AutoMix(Net(), 10, classifier="block")


# What cannot be right.


def test_tokens_as_output_are_refused():
    class Tokens(Trunk):
        def forward(self, x):
            return self.features(x).flatten(2).transpose(1, 2)

    with pytest.raises(ValueError, match=r"return logits \(N, K\) or features .* got \(2, 64, 12\)"):
        AutoMix(Tokens(), 10)

    class Cube(Trunk):
        def forward(self, x):
            if x.shape[2] != 32:
                raise AssertionError("of one size")
            return self.features(x)

    with pytest.raises(ValueError, match=r"returns \(2, 8, 8, 8\), of which it cannot be told .* let it return"):
        AutoMix(Cube(width=8), 10, feature_layout="nchw", example=torch.zeros(2, 3, 32, 32))


def test_several_outputs_are_refused():
    class Aux(Last):
        def forward(self, x):
            found = super().forward(x)
            return namedtuple("Outputs", "logits aux_logits")(found, found) if self.training else found

    automix = AutoMix(Aux(), 10)
    with pytest.raises(ValueError, match=r"got Outputs; auxiliary classifiers must be off \(aux_logits=False"):
        automix(*batch())
    distilled = Distilled()
    distilled.distilled_training = True
    with pytest.raises(ValueError, match=r"got tuple; .*distilled_training=False"):
        AutoMix(distilled, 10)(*batch())

    class Dense(Last):
        def forward(self, x):
            return {"out": super().forward(x)}

    with pytest.raises(ValueError, match=r"return logits .* got dict"):
        AutoMix(Dense(), 10)


def test_a_classifier_out_of_reach_is_refused():
    model = Last()
    whole = type(model).forward
    model.forward = types.MethodType(whole, model)
    with pytest.raises(ValueError, match=r"runs its classifier classifier\.1 by another way than its submodules"):
        AutoMix(model, 10)

    class Listed(Last):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [self.classifier[1]]

        def forward(self, x):
            return self.parts[0](self.features(x).mean((2, 3)))

    with pytest.raises(ValueError, match="by another way than its submodules"):
        AutoMix(Listed(), 10)


def test_wrapped_models_are_refused():
    with pytest.raises(TypeError, match="got DataParallel; wrap the AutoMix module instead"):
        AutoMix(nn.DataParallel(TinyNet()), 10)
    with pytest.raises(TypeError, match="got a ScriptModule"):
        AutoMix(torch.jit.script(TinyNet()), 10)
