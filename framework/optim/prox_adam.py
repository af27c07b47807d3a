"""ProxAdam: Adam on f, then the prox of g in Adam's own metric, for mini-batches."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from framework.optim.arguments import check_positive
from framework.optim.proximal import ProximalOptimizer
from framework.penalties import Penalty


class ProxAdam(ProximalOptimizer):
    """Adam's step on f followed by the prox of g in the diagonal metric of that step.

    With m and v Adam's bias-corrected averages (Kingma & Ba 2015, alg. 1) and D = sqrt(v) + eps,

        w+ = argmin_w <m, w> + ||w - w_k||_D^2 / (2 lr) + g(w) = prox_{(lr / D) g}(w_k - lr m / D),

    elementwise: entries with large gradients move less and are thresholded less. With a threshold lr * lam for all
    entries, the stationary points would not be those of f + g. (Duchi, Hazan & Singer 2011, sec. 5, for Adagrad.)

    It evaluates once per step, so closures, clipping and gradient scaling work as with Adam. A step whose gradients
    are not all finite changes nothing; such steps are counted in the state of each parameter as `skipped`, without
    waiting for the device.

    Args:
        params: Tensors, all penalized, or groups that each carry `penalized`.
        happy_lambda: Weight of the penalty; also a per-group option. Default: the module's, in a trainer.
        penalty: g. Default: the module's in a trainer, otherwise `L1()`.
        lr: Learning rate; also a per-group option, as are `betas` and `eps`.
        betas: Decay rates of the two averages.
        eps: Added to sqrt(v).
    """

    reevaluates = False
    expects_gradients = True

    def __init__(
        self,
        params: ParamsT,
        happy_lambda: float | None = None,
        penalty: Penalty | None = None,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        check_positive(lr=lr, eps=eps)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas!r} is not allowed: pass two numbers in [0, 1)")
        super().__init__(params, happy_lambda, penalty, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return what the closure returned, as Adam does: f at the point before the step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updated = [
            (p, p.grad.to_dense() if p.grad.is_sparse else p.grad, group, self.weight(group, p))
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if not updated:
            return loss
        norms = torch._foreach_norm([grad for _, grad, _, _ in updated])
        finite = torch.stack([norm.to(norms[0].device) for norm in norms]).isfinite().all()
        for p, grad, group, lam in updated:
            self._update(p, grad, group, lam, finite.to(p.device))
        return loss

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any], lam: float | Tensor, finite: Tensor) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state["step"], state["skipped"] = torch.zeros((), device=p.device), torch.zeros((), device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        step, m, v = state["step"], state["exp_avg"], state["exp_avg_sq"]
        step.add_(finite)
        state["skipped"].add_(~finite)
        share = (1 - beta1).to(m) if isinstance(beta1, Tensor) else 1 - beta1
        m.copy_(torch.where(finite, m.lerp(grad, share), m))
        v.copy_(torch.where(finite, v * beta2 + (1 - beta2) * grad * grad, v))
        # Until the first finite gradient `step` is 0, so the corrections are 0, and quotients by them are not used.
        correction1, correction2 = 1 - beta1 ** step.double(), 1 - beta2 ** step.double()
        t = group["lr"] / ((v / correction2.to(v)).sqrt() + group["eps"])
        w = p - t * m / correction1.to(m)
        if isinstance(lam, Tensor) or lam > 0:
            w = self.penalty_in_force.prox(w, t, lam) + 0.0
        p.copy_(torch.where(finite, w, p))
