"""torch.optim.Muon for all matrices of one shape at once.

    L matrices of one shape   m, n their sides

torch updates one matrix after the other, so with 24 to 72 small matrices the GPU waits for kernel
launches. A stack of one shape does not fill a GPU either, so each stack has its own CUDA stream.
The method is Muon's (arXiv 2502.16982); a test compares the two.
"""
import functools

import torch


def orthogonalize(updates, coefficients, steps, eps, dtype):
    """Newton-Schulz on a stack (L, m, n), in dtype: all singular values become close to 1."""
    a, b, c = coefficients
    x = updates.to(dtype)
    tall = x.shape[1] > x.shape[2]
    if tall:  # the smaller side makes the smaller Gram matrix
        x = x.transpose(1, 2)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)  # largest singular value at most 1
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)  # (L, m, m)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.transpose(1, 2) if tall else x


@functools.cache
def stream(number, device):
    """-> a CUDA stream, the same one in every call."""
    return torch.cuda.Stream(device)


def side_by_side(functions, device):
    """Call each of the functions, on a GPU each in a stream of its own; later kernels wait for all.

    Memory is safe: what the functions read is not freed before the wait, and what a function frees
    is reused in its own stream only.
    """
    if device.type != "cuda":
        for function in functions:
            function()
        return
    now = torch.cuda.current_stream(device)
    beside = [stream(number, device) for number in range(len(functions))]
    for one, function in zip(beside, functions):
        one.wait_stream(now)
        with torch.cuda.stream(one):
            function()
    for one in beside:
        now.wait_stream(one)


class BatchedMuon(torch.optim.Muon):
    """State and update of torch.optim.Muon with adjust_lr_fn="match_rms_adamw"; lr is a tensor.

    On a CPU in fp32: many CPUs emulate bf16, which takes longer than the rest of a training step
    (LOG.md).
    """

    def __init__(self, params, lr, weight_decay):
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            same_shape = {}
            for p in group["params"]:
                same_shape.setdefault(p.shape, []).append(p)
            updates = [functools.partial(self._update, group, params)
                       for params in same_shape.values()]
            side_by_side(updates, group["params"][0].device)

    def _update(self, group, params):
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
        grads = [p.grad for p in params]
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        momentum = group["momentum"]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        updates = torch._foreach_lerp(grads, buffers, momentum)  # Nesterov
        dtype = torch.bfloat16 if grads[0].is_cuda else torch.float32
        updates = orthogonalize(torch.stack(updates), group["ns_coefficients"], group["ns_steps"],
                                group["eps"], dtype)
        # an update as large as AdamW's would be
        rate = group["lr"] * 0.2 * max(params[0].shape) ** 0.5
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(params, list(updates.float() * rate))
