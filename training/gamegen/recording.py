"""Work on batches of one shape as a CUDA graph: launching its kernels one by one takes the processor longer than they run."""
import torch

WARM_RUNS = 3  # before recording: compilers, algorithms and workspaces are chosen then
AGREEMENT = 0.15  # the loss of a recorded pass differs from that of an eager one by less than this share


class Recording:
    """A function of a dictionary of tensors, recorded for the shapes of `example`.

    The results are overwritten by the next call. `parameters` get their gradients from the recording's own memory;
    the function has to fill all of them. Nothing in it may wait for the device.
    """

    def __init__(self, work, example: dict, parameters: list, pool):
        self.inputs = {k: v.clone() if torch.is_tensor(v) else v for k, v in example.items()}
        self.parameters = parameters
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_RUNS):
                self._forget()
                self._load(example)
                work(dict(self.inputs))  # it may put other tensors into the dictionary
        torch.cuda.current_stream().wait_stream(side)
        self._forget()
        self._load(example)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.results = work(dict(self.inputs))
        self.gradients = [p.grad for p in parameters]
        self._forget()

    def _forget(self):
        for p in self.parameters:
            p.grad = None

    def _load(self, example: dict):
        for name, value in self.inputs.items():
            if torch.is_tensor(value):
                value.copy_(example[name])

    def __call__(self, example: dict):
        self._load(example)
        self.graph.replay()
        for p, gradient in zip(self.parameters, self.gradients):
            p.grad = gradient
        return self.results


class Recorder:
    """Records every kind of work at its first use, where there is a CUDA device; what cannot be recorded runs eagerly."""

    def __init__(self, wanted: bool, log):
        self.wanted, self.log, self.recordings = wanted, log, {}
        self.pool = torch.cuda.graph_pool_handle() if wanted else None

    def forget(self):
        """What was recorded no longer holds. Its memory cannot be recorded into again: a pool ends with its last graph."""
        self.recordings.clear()
        self.pool = torch.cuda.graph_pool_handle() if self.wanted else None

    def run(self, name: tuple, work, example: dict, parameters: list = ()):
        """work(example). Works of one name have the same shapes, layout and weights."""
        if not self.wanted:
            return work(example)
        if name not in self.recordings:
            self._record(name, work, example, list(parameters))
        recording = self.recordings.get(name)
        return work(example) if recording is None else recording(example)

    def _record(self, name: tuple, work, example: dict, parameters: list):
        stream = torch.cuda.current_stream()
        try:
            recording = Recording(work, example, parameters, self.pool)
            value = self._compared(recording, work, example, parameters)
            self.log(f"recorded {' '.join(map(str, name))}: {value[0]:.4f}, eager {value[1]:.4f}")
        except Exception as error:  # a failed recording only costs speed
            recording = None
            torch.cuda.set_stream(stream)  # a recording that fails at its beginning leaves its own behind
            torch.cuda.synchronize()
            self.log(f"{name} not recorded: {str(error)[:300]}")
        self.recordings[name] = recording

    @staticmethod
    def _compared(recording: Recording, work, example: dict, parameters: list) -> tuple[float, float]:
        """Mean of the first result of both ways; they draw different noise."""
        first = lambda result: (result[0] if isinstance(result, tuple) else result).float().square().mean().sqrt().item()
        fast = first(recording(example))
        for p in parameters:
            p.grad = None
        slow = first(work({k: v.clone() if torch.is_tensor(v) else v for k, v in example.items()}))
        for p in parameters:
            p.grad = None
        if not abs(fast - slow) <= AGREEMENT * abs(slow):  # also where one is not a number
            raise RuntimeError(f"{fast} recorded, {slow} eager")
        return fast, slow
