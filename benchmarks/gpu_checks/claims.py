"""Claims about oncofed on CUDA GPUs, with their checks.

Where a document makes a claim, the sentence ends in a link to the claim's row in ``benchmarks/README.md``, whose text
``make bench-table`` writes, for example ``[on a GPU: not confirmed](benchmarks/README.md#gpu-restart)``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A sentence about GPUs that a check confirms or refutes.

    Attributes:
        name: in links, and in the lines that a check leaves.
        check: the module of this package that checks it.
        says: the claim in one sentence.
        settings: of a job, whose descriptions say it too, such as "training.precision".
        on_cpu: a run on a CPU can refute it; otherwise such a run only shows that the check works.
        target: an aim rather than what a document promises.
    """

    name: str
    check: str
    says: str
    settings: tuple[str, ...] = ()
    on_cpu: bool = False
    target: bool = False


CLAIMS = (
    Claim("fork", "facts", "Jobs are forks of a process that has imported torch, and each can use the GPU"),
    Claim(
        "found", "facts", "The site's tools find the GPU, and the doctor finds it well", ("resources.gpu_memory_gb",)
    ),
    Claim("first", "facts", "The first CUDA GPU is used"),
    Claim(
        "precision",
        "facts",
        "Training is in bfloat16 where the GPU computes in it, else in float16; on the CPU in float32",
        ("training.precision",),
        on_cpu=True,
    ),
    Claim("trains", "training", "Each job's network learns", on_cpu=True),
    Claim("as-on-cpu", "training", "In float32 a step's loss is the CPU's, within a thousandth", on_cpu=True),
    Claim("held", "training", "Prepared cases are held on the GPU where they fit", ("data.cache",)),
    Claim("augmentation", "training", "Batches are changed at random on the GPU"),
    Claim("no-waits", "training", "No step of a turn makes the host wait for the GPU"),
    Claim(
        "restart",
        "restart",
        "A process that is killed goes on from its checkpoint to the same bits",
        on_cpu=True,
    ),
    Claim("confined", "confined", "An engineer's own code trains on the GPU in its confined process", on_cpu=True),
    Claim("memory-16", "step", "The default CT job trains and is scored on a GPU with 16 GB"),
    Claim("input", "step", "The input of the default CT job is there before the step that needs it ends"),
    Claim("profile", "step", "A profile names the largest kernels, and the parts of a step"),
    Claim(
        "step-limit",
        "step",
        "A step of the default CT job takes at most 1.15 times forward and backward alone on resident data",
        target=True,
    ),
    Claim(
        "step-loop", "step", "The default CT job trains at least 5 times as fast as MONAI's tutorial loop", target=True
    ),
    Claim(
        "round-busy", "rounds", "In a round of 100 CT cases the GPU is busy for at least 90 % of the time", target=True
    ),
    Claim("scores", "scoring", "Scores on the GPU are the CPU's, within a hundredth of Dice", on_cpu=True),
    Claim(
        "many-classes",
        "scoring",
        "105 classes at 512×512×400 are scored within 12 GB of the GPU's memory",
        target=True,
    ),
    Claim(
        "halving",
        "memory",
        "A batch that does not fit into the GPU's memory is taken in halves, with the same result",
        ("training.micro_batch",),
        on_cpu=True,
    ),
    Claim(
        "checkpointing",
        "memory",
        "training.recompute_activations keeps less of a pass, for at most half as much time again",
        ("training.recompute_activations",),
    ),
    Claim("sharing", "sharing", "All sites of one machine share its GPU", on_cpu=True),
    Claim(
        "same-bits",
        "determinism",
        "training.deterministic gives the same bits again on the same machine",
        ("training.deterministic",),
        on_cpu=True,
    ),
    Claim(
        "compiling",
        "compiling",
        "training.compile: auto, where bits need not repeat, compiles where that pays within the job's own steps",
        ("training.compile",),
    ),
    Claim(
        "graphs",
        "compiling",
        "A step that is bound by launches takes less time as CUDA graphs, with the same losses",
        ("training.compile",),
    ),
    Claim("tiles", "slides", "5,000 tiles a second from a slide to features", target=True),
    Claim("bags", "bags", "Bags of features are there before the step that needs them ends"),
    Claim("corrections", "strategies", "A strategy's correction adds at most a tenth to a step"),
    Claim("group", "groups", "Several processes train as one group, each on a GPU", ("resources.gpus",), on_cpu=True),
)


def claim_named(name: str) -> Claim:
    """Return a claim.

    Raises:
        KeyError: there is none of this name.
    """
    return {claim.name: claim for claim in CLAIMS}[name]
