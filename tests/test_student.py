import copy

import pytest
import torch
from transformers import MusicgenForCausalLM

import tinymusician_core as tm
from tinymusician_core.distill.data import delayed
from tinymusician_core.distill.source import read_teacher
from tinymusician_core.distill.student import Shape, check_copies, logits, make_student, spaced
from tinymusician_core.records import ModelError


@pytest.fixture(scope="module")
def teacher(tiny_family):
    return read_teacher(tiny_family / "teacher")


def tokens(seed=0, shape=(2, 4, 7)) -> torch.Tensor:
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(seed))


def made(teacher, layers):
    """A student's decoder and which layers it has."""
    student = make_student(teacher, Shape(layers))
    assert student.projection is None
    return student.decoder, student.chosen


@pytest.mark.parametrize(
    ("teacher_layers", "layers", "chosen"),
    [
        (8, 3, (0, 4, 7)),
        (8, 2, (0, 7)),
        (8, 4, (0, 2, 5, 7)),
        (8, 1, (0,)),
        (24, 8, (0, 3, 7, 10, 13, 16, 20, 23)),
        (4, 4, (0, 1, 2, 3)),
        (1, 1, (0,)),
    ],
)
def test_layers_are_spaced_from_the_first_to_the_last(teacher_layers, layers, chosen):
    assert spaced(teacher_layers, layers) == chosen


@pytest.mark.parametrize("layers", [0, -1, 9, 2.0])
def test_impossible_layers_are_named(layers):
    with pytest.raises(ValueError, match=f"a student of {layers} layers; 1 to 8 are allowed"):
        spaced(8, layers)


def test_a_student_has_the_teachers_weights_and_fewer_layers(teacher):
    student, chosen = made(teacher.decoder, 2)
    assert chosen == (0, 3)
    ours, theirs = student.model.decoder, teacher.decoder.model.decoder
    assert len(ours.layers) == student.config.num_hidden_layers == 2
    for place, index in enumerate(chosen):
        for name, tensor in ours.layers[place].state_dict().items():
            assert torch.equal(tensor, theirs.layers[index].state_dict()[name])
    for k in range(4):
        assert torch.equal(ours.embed_tokens[k].weight, theirs.embed_tokens[k].weight)
        assert torch.equal(student.lm_heads[k].weight, teacher.decoder.lm_heads[k].weight)
    assert all(p.requires_grad for p in student.parameters())
    assert student.training
    assert not any(p.requires_grad for p in teacher.decoder.parameters())
    assert teacher.decoder.config.num_hidden_layers == 4


def test_a_student_of_all_layers_is_the_teacher(teacher):
    student, _ = made(teacher.decoder, 4)
    states, mask = torch.randn(2, 3, 32), torch.ones(2, 3)
    with torch.no_grad():
        wanted = logits(teacher.decoder, tokens(), states, mask)
        assert torch.equal(logits(student, tokens(), states, mask), wanted)


def test_the_self_check_finds_a_layer_that_is_no_copy(teacher):
    student, chosen = made(teacher.decoder, 2)
    check_copies(teacher.decoder, student, chosen)
    with torch.no_grad():
        student.model.decoder.layers[1].fc1.weight.mul_(1.01)
    with pytest.raises(ModelError, match="the student's layer 1 is off by .* from the teacher's layer 3"):
        check_copies(teacher.decoder, student, chosen)


def test_dropout_is_off_in_a_student(teacher):
    loose = copy.deepcopy(teacher.decoder.config)
    loose.dropout = loose.attention_dropout = loose.layerdrop = 0.5
    student, _ = made(MusicgenForCausalLM(loose), 2)
    states, mask = torch.randn(1, 3, 32), torch.ones(1, 3)
    assert torch.equal(logits(student, tokens(), states, mask), logits(student, tokens(), states, mask))


@pytest.mark.parametrize("name", ["tiny_musicgen", "tiny_family"])
def test_training_and_the_engine_see_the_same_logits(request, name):
    folder = request.getfixturevalue(name)
    folder = folder / "teacher" if name == "tiny_family" else folder
    source, engine = read_teacher(folder), tm.load(folder)
    states, mask = source.text_encoder.encode(["a calm piano", "the lively flute and drums in g major"])
    inputs, _, _ = delayed(tokens(shape=(2, 4, 9)), source.delays, source.start)
    with torch.inference_mode():
        found = logits(source.decoder, inputs, states, mask)
        wanted = engine.decoder.logits(inputs, states, mask)
    assert float((found - wanted).abs().max()) < 1e-4


def test_delayed_codes_stand_behind_a_start_token_and_padding_does_not_count():
    codes = torch.tensor([[[1, 2, 3], [4, 5, -1]]])
    inputs, targets, valid = delayed(codes, (0, 1), 9)
    assert inputs.tolist() == [[[9, 1, 2, 3], [9, 9, 4, 5]]]
    assert targets.tolist() == [[[1, 2, 3, 9], [9, 4, 5, 9]]]
    assert valid.tolist() == [[[True, True, True, False], [False, True, True, False]]]
