"""What belongs to which backward."""

import threading

import torch

from tacit.capture.passes import current_task, within_task


class Nested(torch.autograd.Function):
    """Its backward runs one of its own, and looks meanwhile which one runs, here and in another thread."""

    @staticmethod
    def forward(ctx, x, seen):
        ctx.seen = seen
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        ctx.seen["outer"] = current_task()
        with torch.enable_grad():
            inner = torch.ones((), requires_grad=True)
            value = inner * 2
        value.register_hook(lambda _: ctx.seen.update(inner=current_task()))

        def look():
            ctx.seen["elsewhere"] = current_task()

        with within_task():
            torch.autograd.grad(value, inner)
            other = threading.Thread(target=look)
            other.start()
            other.join()
        ctx.seen["after"] = current_task()
        return g, None


def test_a_backward_of_our_own_belongs_to_the_one_around_it_in_its_thread_alone():
    seen = {}
    Nested.apply(torch.ones((), requires_grad=True), seen).backward()
    assert seen["outer"] != -1
    assert seen["inner"] == seen["after"] == seen["outer"]
    assert seen["elsewhere"] == current_task() == -1
