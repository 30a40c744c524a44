import numpy as np
import pytest

from benchmarks.experiments import statistics
from benchmarks.experiments.statistics import Interval, Scored, over_seeds, over_users, paired, verdict, wider
from trainers.metrics import auc


def resampled_aucs(score, label, user, **options):
    """Of one set of rows."""
    return statistics.resampled_aucs({"rows": Scored(score=score, label=label, user=user)}, **options)["rows"]


def test_the_t_interval_is_the_textbook_one():
    # Mean 3, standard deviation sqrt(2.5), standard error sqrt(0.5); t(0.975, 4) = 2.7764.
    found = over_seeds([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0
    assert found.high == pytest.approx(3.0 + 2.7764 * 0.5**0.5)
    assert found.low == pytest.approx(3.0 - 2.7764 * 0.5**0.5)
    assert found.by == "seeds"


def test_one_seed_tells_no_spread():
    found = over_seeds([0.7])
    assert (found.mean, found.low, found.high, found.by) == (0.7, None, None, "nothing")
    assert verdict(found) == "undecided"


def test_quantiles_of_t_fall_towards_the_normal_one():
    assert len(statistics.T_QUANTILES) == 30
    assert list(statistics.T_QUANTILES) == sorted(statistics.T_QUANTILES, reverse=True)
    assert statistics.T_QUANTILES[-1] > statistics.NORMAL_QUANTILE


def test_the_bootstrap_interval_takes_quantiles_of_what_could_be_told():
    found = over_users(50.0, np.r_[np.arange(101.0), np.nan])
    assert (found.low, found.high, found.by) == (2.5, 97.5, "users")
    assert over_users(0.0, np.array([np.nan])).by == "nothing"


def test_the_wider_interval_counts():
    narrow = Interval(mean=0.0, low=-1.0, high=1.0, by="seeds")
    wide = Interval(mean=0.0, low=-2.0, high=1.0, by="users")
    unknown = Interval(mean=0.0, low=None, high=None, by="nothing")
    assert wider(narrow, wide) is wide
    assert wider(unknown, narrow) is narrow


def test_a_paired_difference_has_no_spread_between_seeds_that_differ_alike():
    """Seeds differ by a lot and both models by the same: only the pairing shows it."""
    reference = [0.60, 0.70, 0.80]
    found = paired([v + 0.01 for v in reference], reference, None, relative=False)
    assert found.mean == pytest.approx(0.01)
    assert found.high - found.low < 1e-9
    relative = paired([v * 1.02 for v in reference], reference, None, relative=True)
    assert relative.mean == pytest.approx(0.02)


def test_a_paired_difference_takes_the_bootstrap_where_it_is_wider():
    ours, reference = [0.71, 0.72], [0.70, 0.71]  # the same difference twice: the t interval has no width
    drawn = np.linspace(-0.05, 0.05, 1001)[None].repeat(2, axis=0)
    found = paired(ours, reference, (0.71 + drawn, np.full_like(drawn, 0.70)), relative=False)
    assert found.by == "users"
    assert found.mean == pytest.approx(0.01)
    assert (found.low, found.high) == (pytest.approx(0.01 - 0.0475), pytest.approx(0.01 + 0.0475))


def test_where_all_seeds_have_one_log_weights_and_users_add_up():
    """Means of 3 seeds whose weights and whose 400 users differ by chance: 95 of 100 intervals hold the truth."""
    rng = np.random.default_rng(0)
    held = {"both": 0, "the wider": 0}
    for _ in range(400):
        user_U = rng.normal(0, 20.0, 400)  # the same for all seeds: a standard error of 1
        weights_S = rng.normal(0, 1.0, 3)
        drawn_K = rng.choice(user_U, (400, 400)).mean(axis=1)
        ours, replicates = weights_S + user_U.mean(), weights_S[:, None] + drawn_K[None]
        nothing = np.zeros_like(replicates)
        for name, one_log in (("both", True), ("the wider", False)):
            told = paired(list(ours), [0.0] * 3, (replicates, nothing), relative=False, one_log=one_log)
            held[name] += told.low <= 0 <= told.high
    assert held["both"] / 400 == pytest.approx(0.95, abs=0.03)
    assert held["the wider"] < held["both"]


@pytest.mark.filterwarnings("error")
def test_a_resample_whose_reference_is_nothing_does_not_count():
    drawn = (np.array([[0.5, 0.6, 0.7]]), np.array([[0.4, 0.0, 0.5]]))
    told = paired([0.6], [0.5], drawn, relative=True)
    assert (told.low, told.high) == (pytest.approx(0.25, abs=0.01), pytest.approx(0.4, abs=0.01))


def test_weights_alone_decide_nothing():
    told = paired([0.72, 0.73, 0.74], [0.70, 0.71, 0.72], None, relative=False, one_log=True)
    assert (told.by, verdict(told)) == ("weights", "undecided")
    assert verdict(paired([0.72, 0.73, 0.74], [0.70, 0.71, 0.72], None, relative=False)) == "above"


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (0.001, 0.004, None, "above"),
        (-0.004, -0.001, None, "below"),
        (-0.001, 0.004, None, "undecided"),
        (-0.0004, 0.0004, 0.001, "equivalent"),
        (0.0002, 0.0004, 0.001, "equivalent"),
        (-0.0004, 0.0014, 0.001, "undecided"),
        (0.0012, 0.0014, 0.001, "above"),
    ],
)
def test_verdicts(low, high, margin, expected):
    assert verdict(Interval(mean=(low + high) / 2, low=low, high=high, by="seeds"), margin) == expected


def test_an_auc_under_weights_is_that_of_the_repeated_rows():
    rng = np.random.default_rng(0)
    score, label, user = rng.integers(0, 6, 60).astype(float), rng.integers(0, 2, 60), rng.integers(0, 7, 60)
    times = rng.multinomial(7, np.full(7, 1 / 7))
    rows = np.repeat(np.arange(60), times[user])
    weighted = statistics._Ranked(Scored(score=score, label=label, user=user)).auc(times.astype(float))
    assert weighted == pytest.approx(auc(score[rows], label[rows]))


def test_resamples_are_those_of_the_seed_and_alike_for_all_models():
    """A second model that orders as the first one does has the same replicates; another seed has others."""
    rng = np.random.default_rng(1)
    score, label, user = rng.normal(size=200), rng.integers(0, 2, 200), rng.integers(0, 20, 200)
    first = resampled_aucs(score, label, user, users=20, seed=3, resamples=50)
    np.testing.assert_array_equal(first, resampled_aucs(10 * score, label, user, users=20, seed=3, resamples=50))
    assert not np.array_equal(first, resampled_aucs(score, label, user, users=20, seed=4, resamples=50))


def test_a_resample_of_one_class_is_not_told():
    found = resampled_aucs(np.ones(3), np.array([1, 1, 0]), np.array([0, 0, 1]), users=2, seed=0, resamples=40)
    assert np.isnan(found).any() and not np.isnan(found).all()


def _simulated(seed: int, gain: float) -> tuple[list[float], list[float], tuple[np.ndarray, np.ndarray]]:
    """Two models on three seeds of 60 users whose rows are alike; the first one sees more of the truth by `gain`."""
    rng = np.random.default_rng(seed)
    values: tuple[list[float], list[float]] = ([], [])
    drawn: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for number in range(3):
        user = np.repeat(np.arange(60), 12)
        taste = np.repeat(rng.normal(size=60), 12) + rng.normal(size=720)
        label = (rng.random(720) < 1 / (1 + np.exp(-taste))).astype(int)
        for at, strength in enumerate((1.0 + gain, 1.0)):
            score = strength * taste + rng.normal(size=720)
            values[at].append(auc(score, label))
            drawn[at].append(resampled_aucs(score, label, user, users=60, seed=number, resamples=100))
    return *values, (np.stack(drawn[0]), np.stack(drawn[1]))


def test_a_planted_difference_is_found():
    ours, reference, drawn = _simulated(0, gain=2.0)
    assert verdict(paired(ours, reference, drawn, relative=True)) == "above"
    assert verdict(paired(reference, ours, drawn[::-1], relative=True)) == "below"


def test_intervals_cover_no_difference_at_least_as_often_as_they_say():
    """40 worlds in which both models see as much: at 95 % about two intervals may miss zero; five would be odd."""
    missed = 0
    for seed in range(40):
        ours, reference, drawn = _simulated(seed, gain=0.0)
        missed += verdict(paired(ours, reference, drawn, relative=False)) != "undecided"
    assert missed <= 4
