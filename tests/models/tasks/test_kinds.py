"""Losses, averages, labels and columns of the tasks, by hand where a hand can do it."""

import numpy as np
import pytest
import torch
from scipy.stats import dirichlet_multinomial

from surveyproc.config.sections import TrainingSection
from surveyproc.errors import ConfigError, InputError
from surveyproc.models.base import build, register
from surveyproc.models.tasks.base import check_targets
from surveyproc.models.tasks.classes import ClassTask
from surveyproc.models.tasks.columns import task_columns, task_pixels
from surveyproc.models.tasks.embedding import EmbeddingTask
from surveyproc.models.tasks.fluxes import FluxOutput, FluxTask
from surveyproc.models.tasks.masks import MaskTask
from surveyproc.models.tasks.redshift import RedshiftTask
from surveyproc.models.tasks.votes import VoteTask

SETTINGS = TrainingSection(source="x", redshifts=[0.1, 2.0])
NAN = torch.nan


def text(*values):
    return np.array(values, object)


def absolute(output, redshift):
    return (output - redshift).abs()


def test_losses_by_hand():
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 5.0]])
    found = ClassTask(("a", "b")).loss(logits, {"class": torch.tensor([1.0, 0.0, NAN])})
    expected = [np.log(2), np.log(1 + np.exp(-2)), 0.0]
    torch.testing.assert_close(found, torch.tensor(expected).float())

    votes = VoteTask(("x", "y"))
    shares = {"votes": torch.tensor([[0.25, NAN], [1.0, 0.0], [NAN, NAN]])}
    found = votes.loss(torch.zeros(3, 2), shares)
    torch.testing.assert_close(found, torch.tensor([np.log(2), 2 * np.log(2), 0.0]).float())
    counts = {"votes_counts": torch.tensor([[10.0, 3.0], [4.0, NAN], [1.0, 1.0]])}
    found = votes.loss(torch.zeros(3, 2), shares | counts)
    torch.testing.assert_close(found, torch.tensor([10 * np.log(2), 4 * np.log(2), 0.0]).float())

    output = FluxOutput(torch.tensor([[10.0, 5.0]] * 2), torch.tensor([[2.0, 1.0]] * 2))
    found = FluxTask(("g", "r")).loss(output, {"fluxes": torch.tensor([[14.0, NAN], [NAN, 5.0]])})
    torch.testing.assert_close(found, torch.tensor([np.log(2) + 2.0, 0.0]).float())

    redshift = RedshiftTask(absolute)
    found = redshift.loss(torch.tensor([0.5, 0.7]), {"redshift": torch.tensor([0.25, NAN])})
    assert found.tolist() == [0.25, 0.0]

    masks = MaskTask(("m",), (1, 2))
    truth = torch.tensor([[[[1.0, NAN]]], [[[NAN, NAN]]]])
    found = masks.loss(torch.tensor([[[[0.0, 9.0]]], [[[1.0, 1.0]]]]), {"masks": truth})
    torch.testing.assert_close(found, torch.tensor([np.log(2), 0.0]).float())


def test_averages_are_those_of_the_probabilities():
    one, other = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    classes = ClassTask(("a", "b", "c"))
    found = classes.average([one, other]).softmax(dim=1)
    torch.testing.assert_close(found, (one.softmax(dim=1) + other.softmax(dim=1)) / 2)
    votes = VoteTask(("a", "b", "c"))
    found = votes.average([one, other]).sigmoid()
    torch.testing.assert_close(found, (one.sigmoid() + other.sigmoid()) / 2)
    masks = MaskTask(("a",), (5, 3))
    found = masks.average([one[None, None], other[None, None]]).sigmoid()
    torch.testing.assert_close(found[0, 0], (one.sigmoid() + other.sigmoid()) / 2)
    assert torch.equal(EmbeddingTask(3).average([one, other]), one)
    # Two normal distributions: the variance of their mixture is theirs and that of their means.
    first = FluxOutput(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    second = FluxOutput(torch.tensor([[5.0]]), torch.tensor([[4.0]]))
    flux, error, _ = FluxTask(("g",)).average([first, second])
    assert (flux.item(), error.item()) == (3.0, pytest.approx((10 + 4) ** 0.5))


def test_values_name_the_most_probable_class_or_none():
    task = ClassTask(("Type Ia", "other"))
    values = task.values(torch.tensor([[3.0, 0.0], [0.0, 1.0], [NAN, 0.0]]))
    assert values["class"].tolist() == ["Type Ia", "other", ""]
    assert values["p_Type_Ia"].dtype == np.float32
    np.testing.assert_allclose(values["p_Type_Ia"][:2] + values["p_other"][:2], 1.0)


def test_classes_are_calibrated_if_asked_and_there_are_enough_of_each():
    random = np.random.default_rng(0)
    p = random.dirichlet([1.0, 1.0, 1.0], 300).astype(np.float32)
    index = (random.random((300, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1).astype(float)
    index[0] = np.nan
    task = ClassTask(("a", "b", "c"), calibrate=True)
    sure = torch.from_numpy(3 * np.log(p))
    values, targets = task.values(sure), {"class": index}
    found = task.fit_calibration(values, targets)
    assert found["platt"][0] == pytest.approx(1 / 3, rel=0.25)
    better = task.calibrated(values, found)
    np.testing.assert_allclose(better["p_b"], p[:, 1], atol=0.12)
    assert better["p_b"].dtype == np.float32
    assert better.keys() == values.keys()
    assert ClassTask(("a", "b", "c")).fit_calibration(values, targets) is None
    few = {"class": np.where(index == 2, np.nan, index)}
    few["class"][np.flatnonzero(index == 2)[:9]] = 2.0
    assert task.fit_calibration(values, few) is None
    told = task.metrics(values, {"class": np.nan_to_num(index)})
    assert told["calibration_error"] > 0.1
    assert 0.5 < told["area"] < 1.0


@pytest.mark.parametrize(
    ("classes", "labels", "expected"),
    [
        (("b", "a"), text("a", "b", None, ""), [1, 0, np.nan, np.nan]),
        (("1", "3"), np.array([3.0, 1.0, np.nan, -1.0]), [1, 0, np.nan, np.nan]),
        (("galaxy", "star"), np.array([0.0, 1.0, np.nan]), [0, 1, np.nan]),
        (("1", "2"), text("2", "1"), [1, 0]),
    ],
)
def test_labels_of_classes(classes, labels, expected):
    task = ClassTask(classes)
    found = task.encode({"class": labels}, SETTINGS)
    np.testing.assert_array_equal(found["class"], expected)
    np.testing.assert_array_equal(task.known(found), np.isfinite(expected))


def test_classes_that_the_labels_tell():
    assert ClassTask().learned({"class": text("b", "a", None, "b")}) == ["a", "b"]
    assert ClassTask().learned({"class": np.array([10.0, 9.0, np.nan, 9.0])}) == ["9", "10"]
    assert ClassTask(("a", "b")).learned({"class": text("c")}) is None
    with pytest.raises(InputError, match=r"task 'class': .*holds 1 different classes \('a'\)"):
        ClassTask().learned({"class": text("a")})
    with pytest.raises(InputError, match=r"300 different classes .*, \.\.\.\)"):
        ClassTask().learned({"class": np.arange(300.0)})


@pytest.mark.parametrize(
    ("task", "labels", "match"),
    [
        (ClassTask(("a", "b")), {"class": text("c")}, r"'c' in the column of training\.targets\.c"),
        (ClassTask(("a", "b")), {"class": np.array([2.0])}, "'2' .* none of the classes a, b"),
        (ClassTask(("a", "b")), {"class": np.array([0.5])}, r"'0\.5'"),
        (RedshiftTask(absolute), {"redshift": text("0.5")}, "training.redshift names a column of"),
        (VoteTask(("x", "y")), {"votes": np.zeros(3)}, r"names one column; 'votes' is 2 columns"),
        (VoteTask(("x",)), {"votes": np.array([[1.5]])}, r"holds 1\.5; shares .* 0 and 1"),
        (
            VoteTask(("x",)),
            {"votes": np.ones((1, 1)), "votes_counts": np.array([[-1.0]])},
            "votes_counts holds -1; counts are >= 0",
        ),
        (MaskTask(("x",), (2, 2)), {"masks": np.zeros((1, 1, 2, 2))}, "images of masks"),
        (
            RedshiftTask(absolute, redshifts=(0.0, 0.2)),
            {"redshift": np.array([0.15, 0.5, 3.0])},
            r"1 of 2 training redshifts lie outside the range of the network, 0 to 0\.2",
        ),
    ],
)
def test_labels_of_no_use_are_named(task, labels, match):
    with pytest.raises(InputError, match=match):
        task.encode(labels, SETTINGS)


def test_a_list_of_one_column_is_one():
    found = VoteTask(("x",)).encode({"votes": np.array([0.5, np.nan])}, SETTINGS)
    np.testing.assert_array_equal(found["votes"], [[0.5], [np.nan]])


def test_redshifts_beyond_the_limits_are_missing():
    found = RedshiftTask(absolute).encode({"redshift": np.array([0.1, 0.2, 2.0, -9.0])}, SETTINGS)
    np.testing.assert_array_equal(found["redshift"], [np.nan, 0.2, np.nan, np.nan])


def test_label_columns_and_tasks_that_do_not_fit_are_named():
    tasks = [ClassTask(("a", "b")), RedshiftTask(absolute), VoteTask(("x", "y")), EmbeddingTask(3)]
    check_targets(tasks, ["class", "redshift", "votes"])
    check_targets(tasks, ["class", "redshift", "votes", "votes_counts"])
    with pytest.raises(ConfigError, match=r"task 'redshift' .* set training\.redshift$"):
        check_targets(tasks, ["class", "votes"])
    match = r"task 'votes' .* set training\.targets\.votes to 2 columns"
    with pytest.raises(ConfigError, match=match):
        check_targets(tasks, ["class", "redshift"])
    match = (
        r"training\.targets\.size: no task .* its keys are training\.targets\.class, training\.r"
    )
    with pytest.raises(ConfigError, match=match):
        check_targets(tasks, ["class", "redshift", "votes", "size"])
    with pytest.raises(ConfigError, match="nothing to train"):
        check_targets([EmbeddingTask(3)], [])


def test_columns_of_every_kind():
    def names(task):
        return [column.name for column in task_columns(task.describe(), "m")]

    assert names(RedshiftTask(absolute, pdf=False)) == ["m_z_point"]
    assert names(RedshiftTask(absolute))[-1] == "m_z_quantiles"
    assert names(ClassTask(("E/S0", "b"))) == ["m_p_E_S0", "m_p_b", "m_class"]
    assert names(VoteTask(("x", "y"))) == ["m_x", "m_y"]
    assert names(FluxTask(("g", "r"))) == ["m_flux_g", "m_flux_r", "m_flux_err_g", "m_flux_err_r"]
    (column,) = task_columns(EmbeddingTask(64).describe(), "m")
    assert (column.name, column.length, column.default) == ("m_embedding", 64, False)
    assert (column.dtype, column.searched) == ("int8", True)
    (column,) = task_columns(EmbeddingTask(1280).describe(), "m")
    assert column.length == 64
    assert column.description.endswith("The vector has 1280 numbers.")
    masks = MaskTask(("one", "two"), (8, 9)).describe()
    assert task_columns(masks, "m") == ()
    assert task_pixels([masks, {"name": "x", "kind": "classes"}], "m") == (
        ("m_masks", (2, 8, 9), "float32"),
    )


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"name": "x", "kind": "theirs"}, "task 'x' is of kind 'theirs' and lists no columns"),
        ({"name": "x", "kind": "classes"}, "task 'x': KeyError"),
        # As packages described it when vectors were written as floats.
        ({"name": "x", "kind": "embedding", "length": 3}, "task 'x': KeyError"),
        ({"name": "x", "kind": "theirs", "columns": [{"nam": "a"}]}, "task 'x': TypeError"),
    ],
)
def test_a_damaged_description_is_named(entry, match):
    with pytest.raises(InputError, match=match):
        task_columns(entry, "m")


def test_names_that_would_meet_are_refused():
    with pytest.raises(ConfigError, match="'E/S0' and 'E S0' would both be column p_E_S0"):
        ClassTask(("E/S0", "E S0"))

    def built(*tasks):
        def make(name, bands, settings):
            network = torch.nn.Module()
            network.tasks = tasks
            return network

        key = f"test-meet-{'-'.join(task.kind for task in tasks)}"
        register(key)(make)
        return build(key, "gr", {})

    with pytest.raises(ConfigError, match="two tasks are called 'class'"):
        built(ClassTask(("a", "b")), ClassTask(("c", "d")))
    with pytest.raises(ConfigError, match="two outputs would be column 'flux_g'"):
        built(FluxTask(("g",)), VoteTask(("flux_g",)))


QUESTIONS = {"shape": ("smooth", "disk"), "arms": ("one", "two", "three")}
ALL = ("smooth", "disk", "one", "two", "three")


def test_votes_of_questions_against_scipy():
    task = VoteTask(ALL, questions=QUESTIONS)
    output = torch.tensor([[0.3, -1.0, 2.0, 0.0, -4.0]])
    counts = np.array([[12, 28, 3, 20, 5]], float)
    cast = np.array([[40.0, 40, 28, 28, 28]])
    targets = {"votes": torch.tensor(counts / cast), "votes_counts": torch.tensor(cast)}
    alpha = 1 + 100 / (1 + np.exp(-output.numpy()[0].astype(float)))
    expected = -sum(
        dirichlet_multinomial(alpha[part], int(counts[0, part].sum())).logpmf(counts[0, part])
        for part in (slice(0, 2), slice(2, 5))
    )
    assert float(task.loss(output, targets)[0]) == pytest.approx(expected, rel=1e-4)
    shares = task.values(output)
    assert shares["smooth"] + shares["disk"] == pytest.approx(1)
    assert shares["two"][0] == pytest.approx(alpha[3] / alpha[2:].sum(), rel=1e-5)
    torch.testing.assert_close(task.average([output, output]), output, rtol=1e-4, atol=1e-4)


def test_a_question_that_nobody_was_asked_teaches_nothing():
    task = VoteTask(ALL, questions=QUESTIONS)
    output = torch.randn(3, 5, requires_grad=True)
    shares = torch.tensor([[0.5, 0.5, NAN, NAN, NAN], [0.5, 0.5, 0, 0, 0], [NAN] * 5])
    cast = torch.tensor([[10.0, 10, 0, 0, 0], [10, 10, NAN, NAN, NAN], [NAN] * 5])
    losses = task.loss(output, {"votes": shares, "votes_counts": cast})
    losses.sum().backward()
    assert losses[2] == 0
    assert (output.grad[:2, :2] != 0).all()
    assert output.grad[:, 2:].abs().max() == 0
    assert output.grad[2].abs().max() == 0


def test_few_votes_say_little():
    task = VoteTask(("a", "b"), questions={"q": ("a", "b")})
    grads = []
    for n in (2.0, 40.0):
        output = torch.zeros(1, 2, requires_grad=True)
        shares = torch.tensor([[1.0, 0.0]])
        task.loss(output, {"votes": shares, "votes_counts": torch.full((1, 2), n)}).backward()
        grads.append(output.grad[0, 0].abs())
    assert grads[1] > 5 * grads[0]


def test_rows_without_votes_are_no_labels():
    shares = np.array([[0.4, 0.6, 0, 0, 0], [0, 0, 0, 0, 0], [np.nan] * 5, [1, 0, 0.5, 0.5, 0]])
    cast = np.array([[40.0] * 5, [40] * 5, [40] * 5, [20, 20, 0, 0, 0]])
    task = VoteTask(ALL, questions=QUESTIONS)
    labels = {"votes": shares, "votes_counts": cast}
    found = task.encode(labels, SETTINGS)
    assert task.known(found).tolist() == [True, False, False, True]
    assert np.isnan(found["votes"][3]).tolist() == [False, False, True, True, True]
    assert shares[1, 0] == 0
    # Of answers for themselves, none may be right.
    assert VoteTask(ALL).known(VoteTask(ALL).encode({"votes": shares}, SETTINGS)).sum() == 3
    with pytest.raises(InputError, match=r"all shares in training\.targets\.votes are 0"):
        VoteTask(ALL).encode({"votes": np.zeros((3, 5))}, SETTINGS)
    with pytest.raises(ConfigError, match="votes_counts"):
        task.encode({"votes": shares}, SETTINGS)


@pytest.mark.parametrize("worst", [1.2, -0.1])
def test_shares_outside_of_0_and_1_are_named(worst):
    shares = np.full((3, 5), 0.5)
    shares[1, 2] = worst
    with pytest.raises(InputError, match=f"holds {worst:g}; shares of votes lie within 0 and 1"):
        VoteTask(ALL).encode({"votes": shares}, SETTINGS)


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"questions": {"q": ("a",)}}, "answer 'b' must be one of the 2 answers"),
        ({"questions": {"q": ("a", "b"), "r": ("b",)}}, "answer 'b'"),
        ({"questions": {"q": ("a", "b", "c")}}, "answer 'c'"),
        ({"thresholds": {"c": 0.5}}, "thresholds: 'c' is no answer"),
    ],
)
def test_questions_must_fit_the_answers(keys, match):
    with pytest.raises(ConfigError, match=match):
        VoteTask(("a", "b"), **keys)
