import gc
import weakref

import pytest

from tacit.errors import SamplingError
from tacit.sampling import Draw, DrawLog


@pytest.fixture
def log() -> DrawLog:
    return DrawLog()


def test_one_draw_per_step(log):
    for index, records in enumerate([3, 0, 5]):
        log.drawn(records, epoch=1)
        log.used(0, fresh=True, piece=log.at_hand)
        assert log.take() == (Draw(index, 1, records),)
        assert log.current_released


def test_gradients_accumulated_over_draws(log):
    log.drawn(3, 1)
    log.used(0, fresh=True, piece=log.at_hand)
    log.used(0, fresh=False, piece=log.at_hand)  # two backward passes on one draw count once
    log.drawn(4, 1)
    log.used(0, fresh=False, piece=log.at_hand)
    assert log.take() == (Draw(0, 1, 3), Draw(1, 1, 4))


def test_fresh_gradients_forget_earlier_contributions(log):
    log.drawn(3, 1)
    log.used(0, fresh=True, piece=log.at_hand)
    log.drawn(4, 1)
    log.used(0, fresh=True, piece=log.at_hand)
    assert log.take() == (Draw(1, 1, 4),)


def test_noise_only_step_takes_the_current_draw(log):
    log.drawn(3, 1)
    assert log.take() == (Draw(0, 1, 3),)
    log.drawn(0, 1)
    assert log.take() == (Draw(1, 1, 0),)


def test_noise_only_step_after_a_release(log):
    log.drawn(3, 1)
    log.used(0, fresh=True, piece=log.at_hand)
    log.take()
    log.released()
    log.drawn(0, 1)
    assert log.take() == (Draw(1, 1, 0),)


def test_evaluation_pass_does_not_contribute(log):
    log.drawn(3, 1)
    log.used(0, fresh=True, piece=log.at_hand)
    log.take()
    for _ in range(4):
        log.drawn(3, 2)
    log.drawn(2, 3)
    log.used(0, fresh=True, piece=log.at_hand)
    assert log.take() == (Draw(5, 3, 2),)


def test_evaluation_pass_between_backward_and_step(log):
    log.drawn(3, 1)
    log.used(0, fresh=True, piece=log.at_hand)
    log.drawn(3, 2)
    assert log.take() == (Draw(0, 1, 3),)
    assert not log.current_released


def test_discard(log):
    log.drawn(3, 1)
    log.used(0, fresh=True, piece=log.at_hand)
    log.drawn(4, 1)
    log.discard()
    assert log.take() == (Draw(1, 1, 4),)


def test_nothing_drawn_is_refused(log):
    with pytest.raises(
        SamplingError, match="the original DataLoader was iterated, a batch made by hand, or drawn before a checkpoint"
    ):
        log.take()


def test_backward_before_the_first_draw_is_refused_even_if_a_draw_follows(log):
    log.used(0, fresh=True, piece=log.at_hand)
    log.drawn(3, 1)
    log.used(0, fresh=False, piece=log.at_hand)
    with pytest.raises(SamplingError, match="Iterate the loader that make_private returned"):
        log.take()
    log.used(0, fresh=True, piece=log.at_hand)
    assert log.take() == (Draw(0, 1, 3),)


def test_pieces_that_were_overtaken_are_told_apart_from_empty_ones(log):
    for records, empty in ((4, False), (0, True)):
        log.drawn(4, 1)
        log.physical(records)
        log.physical(2)
        assert log.skipped
        assert log.overtaken is not empty
        log.drawn(4, 2)
        log.physical(4)
        assert not log.skipped
        assert not log.overtaken


@pytest.mark.parametrize("backward", [False, True])
def test_two_steps_on_one_draw_are_refused(log, backward):
    log.drawn(3, 1)
    log.used(0, fresh=True, piece=log.at_hand)
    log.take()
    if backward:
        log.used(0, fresh=True, piece=log.at_hand)
    with pytest.raises(SamplingError, match="two optimizer steps on one batch; draw a new batch for each step"):
        log.take()


def test_second_noise_only_step_on_one_draw_is_refused(log):
    log.drawn(3, 1)
    log.take()
    with pytest.raises(SamplingError, match="released already"):
        log.take()


def test_two_steps_are_refused_after_discard(log):
    log.drawn(3, 1)
    log.used(0, fresh=True, piece=log.at_hand)
    log.take()
    log.discard()
    with pytest.raises(SamplingError, match="the original DataLoader was iterated"):
        log.take()


def test_gradient_not_cleared_after_release_is_refused(log):
    log.drawn(3, 1)
    log.used(0, fresh=True, piece=log.at_hand)
    log.take()
    log.released()
    log.drawn(4, 1)
    log.used(0, fresh=False, piece=log.at_hand)
    with pytest.raises(SamplingError, match=r"still in \.grad"):
        log.take()


def test_refused_take_releases_nothing(log):
    log.drawn(3, 1)
    log.used(0, fresh=True, piece=log.at_hand)
    log.take()
    log.drawn(4, 1)
    log.used(0, fresh=False, piece=log.at_hand)
    with pytest.raises(SamplingError):
        log.take()
    log.used(0, fresh=True, piece=log.at_hand)
    assert log.take() == (Draw(1, 1, 4),)


def test_physical_records(log):
    assert log.physical_records == 0
    assert log.current is None
    log.drawn(5, 1)
    assert log.physical_records == 5
    log.physical(2)
    assert log.physical_records == 2
    assert log.current == Draw(0, 1, 5)


def test_memory_does_not_grow(log):
    first = None
    for _ in range(100):
        log.drawn(1, 1)
        log.used(0, fresh=True, piece=log.at_hand)
        log.take()
        log.released()
        first = first or weakref.ref(log.at_hand.batch)
    gc.collect()
    assert first() is None


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("both", [False, True])
def test_a_released_draw_is_not_released_with_the_next(log, fresh, both):
    log.drawn(3, 1)
    log.used(3, fresh=True, piece=log.at_hand)
    log.take()
    log.released()
    log.used(3, fresh=fresh, piece=log.at_hand)  # once more, which is no harm before a step
    assert not log.contributed
    log.drawn(4, 1)
    if both:
        log.used(4, fresh=False, piece=log.at_hand)
    with pytest.raises(SamplingError, match=r"of draw 0 \(epoch 1\), which was released already.*zero_grad"):
        log.take()
    log.discard()
    log.used(4, fresh=True, piece=log.at_hand)
    assert log.take() == (Draw(1, 1, 4),)


def test_a_release_that_failed_leaves_its_draws_pending(log):
    log.drawn(3, 1)
    log.used(3, fresh=True, piece=log.at_hand)
    log.take()  # and what follows fails: the sum has no noise
    log.drawn(4, 1)
    with pytest.raises(SamplingError, match="or its step failed"):
        log.take()


def test_a_late_backward_is_of_the_draw_of_its_forward(log):
    log.drawn(3, 1)
    first = log.at_hand
    log.drawn(4, 1)
    log.used(4, fresh=True, piece=log.at_hand)
    log.used(3, fresh=False, piece=first)
    with pytest.raises(SamplingError, match="4 samples were differentiated in this step, but .* handed out 3"):
        log.used(1, fresh=False, piece=first)
    assert log.take() == (Draw(0, 1, 3), Draw(1, 1, 4))


def test_a_late_backward_alone_leaves_the_draw_at_hand(log):
    log.drawn(3, 1)
    first = log.at_hand
    log.drawn(4, 1)
    log.used(3, fresh=True, piece=first)
    assert log.take() == (Draw(0, 1, 3),)
    assert not log.current_released


def test_a_late_backward_on_a_released_draw_is_not_forgotten(log):
    log.drawn(3, 1)
    first = log.at_hand
    for _ in range(3):
        log.used(0, fresh=True, piece=log.at_hand)
        log.take()
        log.released()
        log.drawn(4, 1)
    log.used(3, fresh=True, piece=first)
    with pytest.raises(SamplingError, match="released already"):
        log.take()


def test_a_late_backward_does_not_stand_for_the_piece_at_hand(log):
    log.drawn(8, 1)
    log.physical(4)
    first = log.at_hand
    log.used(1, fresh=True, piece=first)
    log.physical(4)
    log.used(3, fresh=False, piece=first)
    log.drawn(4, 1)
    log.physical(4)
    assert log.overtaken


def test_a_forward_from_before_a_restart_is_of_no_draw(log):
    log.drawn(3, 1)
    first = log.at_hand
    log.restart()
    log.drawn(4, 2)
    log.used(3, fresh=True, piece=first)
    with pytest.raises(SamplingError, match="drawn before a checkpoint was loaded"):
        log.take()


def test_a_record_cannot_be_counted_twice():
    draws = DrawLog()
    draws.drawn(4, 1)
    draws.used(3, fresh=True, piece=draws.at_hand)
    draws.used(1, fresh=False, piece=draws.at_hand)
    with pytest.raises(SamplingError, match="5 samples were differentiated in this step"):
        draws.used(1, fresh=False, piece=draws.at_hand)
    draws.discard()
    draws.used(4, fresh=True, piece=draws.at_hand)
    assert [draw.records for draw in draws.take()] == [4]


def test_pieces_of_a_logical_batch_add_up():
    draws = DrawLog()
    draws.drawn(5, 1)
    for size in (3, 2):
        draws.physical(size)
        draws.used(size, fresh=size == 3, piece=draws.at_hand)
    with pytest.raises(SamplingError, match="6 samples"):
        draws.used(1, fresh=False, piece=draws.at_hand)
    draws.drawn(2, 1)
    draws.used(2, fresh=True, piece=draws.at_hand)
