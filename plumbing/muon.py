"""torch.optim.Muon for all matrices of one shape at once.

    L matrices of one shape   m, n their sides

torch's own goes through the matrices one by one: at 24 to 72 small matrices a GPU waits for kernels
to be launched. The stack of one shape does not fill a GPU either, so each has a stream of its own.
The method is Muon's (arXiv 2502.16982); a test holds the two to each other.
"""
import contextlib

import torch


def orthogonalize(updates, coefficients, steps, eps, dtype):
    """Newton-Schulz on a stack of matrices, (L, m, n): singular values to near 1, in dtype."""
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


class BatchedMuon(torch.optim.Muon):
    """Arguments, state and update of torch.optim.Muon with adjust_lr_fn="match_rms_adamw".

    But in fp32 where there is no GPU: many CPUs have no bf16 arithmetic, and imitating it takes
    more time than the rest of the training step (LOG.md).
    """

    def __init__(self, params, **settings):
        super().__init__(params, **settings)
        self.streams = {}  # of a GPU, one for each shape

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            same_shape = {}
            for p in group["params"]:
                same_shape.setdefault(p.shape, []).append(p)
            for shape, params in same_shape.items():
                with self._stream(shape, params[0].device):
                    self._update(group, params)
        for stream in self.streams.values():
            torch.cuda.current_stream().wait_stream(stream)

    def _stream(self, shape, device):
        """A context: what is called in it runs beside the other shapes, on a GPU."""
        if device.type != "cuda":
            return contextlib.nullcontext()
        if shape not in self.streams:
            self.streams[shape] = torch.cuda.Stream()
        stream = self.streams[shape]
        stream.wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(stream)

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
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, list(updates), alpha=-rate)
