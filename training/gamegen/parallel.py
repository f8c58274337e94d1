"""One process a GPU: start, equal weights, mean of gradients, and decisions that the first process takes for all."""
import os

import torch
import torch.distributed as dist


class Parallel:
    """This process's place among the processes of a run (one alone where WORLD_SIZE is not set)."""

    def __init__(self):
        self.rank, self.size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.first = self.rank == 0
        if self.size > 1:
            cuda = torch.cuda.is_available()
            if cuda:
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", self.rank)))
            dist.init_process_group("nccl" if cuda else "gloo")

    @torch.no_grad()
    def equalize(self, tensors: list[torch.Tensor]):
        """Everybody gets the first process's values."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    @torch.no_grad()
    def mean_gradients(self, parameters: list[torch.nn.Parameter]):
        """Averages the gradients in one flat message."""
        if self.size == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch._utils._flatten_dense_tensors(grads)
        dist.all_reduce(flat)
        flat.div_(self.size)
        torch._foreach_copy_(grads, list(torch._utils._unflatten_dense_tensors(flat, grads)))

    def decide(self, numbers: list[float], device) -> list[float]:
        """The first process's numbers, for everybody."""
        if self.size == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.broadcast(tensor, 0)
        return tensor.tolist()

    def end(self):
        """Leaves the group."""
        if self.size > 1:
            dist.destroy_process_group()
