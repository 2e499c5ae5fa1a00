"""A finished experiment as the figures read it: which run plays which role, and their outputs, computed once.

study = Study(open_experiment("workdir/demo"))
study.roles.augmented                                        # 'augmented_rgb'
study.outputs("augmented_rgb", 0)["test_003"].features       # [T, H], of the first seed
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from kd_jax.analysis import style
from kd_jax.analysis.finished import FinishedExperiment
from kd_jax.config import PUBLISHED_WEIGHTS
from kd_jax.evaluation.protocols import Truth
from kd_jax.evaluation.scoring import Scoring, make_truth
from kd_jax.types import Outputs

_CACHE_BYTES = 2 * 2**30  # of outputs; beyond it, all are dropped and computed again when they are needed
NUM_CLASSES = 12  # that a figure shows by default


class Unavailable(ValueError):
    """A figure cannot be made from this experiment; the message is one sentence that says why."""


class Drawing(NamedTuple):
    """What a figure function returns."""

    figure: Figure
    table: list[dict]  # the numbers of the figure, a row each
    sentences: list[str]  # what they say


@dataclass(frozen=True)
class Roles:
    """Which rows of the table play which role; '' or () if no row does."""

    vanilla: str = ""  # the plain student
    augmented: str = ""  # the distilled student: the one with most of the three levels
    teachers: tuple[str, ...] = ()  # of the augmented student; runs or fusions
    two_stream: str = ""  # the fusion of the plain student with others
    distilled: tuple[str, ...] = ()  # all distilled students, the augmented one first, then single terms

    def of(self, name: str) -> str:
        """Returns the role of a row, a key of `style.ROLES`."""
        named = {self.two_stream: "two_stream", self.vanilla: "vanilla", self.augmented: "augmented"}
        return "teacher" if name in self.teachers else named.get(name, "other")

    def compared(self, *, all_distilled: bool = False) -> list[str]:
        """Returns the teachers, the plain and the augmented student, and the other distilled ones if asked for."""
        students = self.distilled if all_distilled else (self.augmented,)
        return list(dict.fromkeys(name for name in (*self.teachers, self.vanilla, *students) if name))


def find_roles(results: Mapping) -> Roles:
    """Finds the roles in the content of an experiment's results.json.

    The plain student is the baseline; without one, that of the first row that has a gain. Distilled students have
    teachers, and modality and baseline of the plain one. The augmented student is the one whose weights name most of
    the paper's three levels; of several, the one with the best mean validation score. The test videos choose nothing.
    """
    rows = {row["run"]: row for row in results["rows"]}
    baselines = [results["baseline"], *(row["baseline"] for row in rows.values() if row.get("gain"))]
    vanilla = next((name for name in baselines if name in rows), "")
    if not vanilla:
        return Roles()
    alike = {"modality": rows[vanilla]["modality"], "baseline": vanilla}
    distilled = [
        name
        for name, row in rows.items()
        if row["teachers"] and name != vanilla and all(row[key] == value for key, value in alike.items())
    ]

    def quality(name: str) -> tuple[int, float]:
        validation = [score for score in rows[name]["scores"].get("validation") or [] if score is not None]
        levels = len(PUBLISHED_WEIGHTS.keys() & rows[name]["weights"].keys())
        return levels, float(np.mean(validation)) if validation else -np.inf

    augmented = max(distilled, key=quality, default="")
    others = sorted((n for n in distilled if n != augmented), key=lambda n: (len(rows[n]["weights"]), -quality(n)[1]))
    teachers = tuple(name for name in rows[augmented]["teachers"] if name in rows) if augmented else ()
    fused = [name for name, row in rows.items() if vanilla in (row.get("members") or [])]
    first = ([augmented] if augmented else []) + others
    return Roles(vanilla, augmented, teachers, fused[0] if fused else "", tuple(first))


@dataclass
class Study:
    """An experiment, its roles, the choices of the user, and the outputs that several figures share."""

    experiment: FinishedExperiment
    classes: Sequence[str] = ()  # that the figures show; () = the most interesting ones
    perplexity: float | None = None  # of t-SNE; None = 30, or less where there are few snippets
    _outputs: dict[tuple[str, int], Mapping[str, Outputs]] = field(default_factory=dict)

    def __post_init__(self):
        known = self.experiment.source.info.classes
        written = {style.readable(name): name for name in known}  # as figures show them
        self.classes = [written.get(name, name) for name in self.classes]
        if unknown := [name for name in self.classes if name not in known]:
            raise ValueError(f"--classes: there is no class {unknown[0]!r}; known classes: {', '.join(known)}")
        if absent := [name for name in self.classes if not self._occurs[known.index(name)]]:
            occurring = ", ".join(name for name, occurs in zip(known, self._occurs, strict=True) if occurs)
            raise ValueError(f"--classes: {absent[0]!r} does not occur in the test videos; these do: {occurring}")

    @functools.cached_property
    def roles(self) -> Roles:
        return find_roles(self.experiment.results)

    @functools.cached_property
    def truth(self) -> Truth:
        """The ground truth of the test videos, in seconds."""
        return make_truth(self.experiment.source.videos("test", []), self.experiment.source.info)

    @functools.cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """{test video: `[T, C]` uint8 labels} at the resolution of the features."""
        name = next(iter(self.experiment.runs))
        lengths = {video: len(table) for video, table in self.logits(name, 0).items()}
        return dict(zip(self.truth.segments, self.truth.labels(lengths), strict=True))

    @functools.cached_property
    def _occurs(self) -> np.ndarray:
        none = np.zeros(len(self.experiment.source.info.classes), bool)
        return np.any([none, *(table.any(axis=0) for table in self.labels.values())], axis=0)

    @property
    def head(self) -> str:
        return self.experiment.source.info.head

    @property
    def num_seeds(self) -> int:
        return len(self.experiment.seeds)

    @functools.cached_property
    def scoring(self) -> Scoring:
        """How the experiment was scored; the first protocol is the main one."""
        return Scoring.from_json(next(iter(self.experiment.runs.values()))[0].results["scoring"])

    @property
    def detecting(self) -> Scoring:
        """How detections are made, with a protocol that needs them."""
        return dataclasses.replace(self.scoring, protocols=("event_map_strict",))

    def logits(self, name: str, index: int) -> dict[str, np.ndarray]:
        """Returns {test video: `[T, C]`} of a run or fusion for the seed at `index`, in the order of the videos."""
        tables = self.experiment.logits(name, index)
        return {video: tables[video] for video in self.truth.segments}

    def outputs(self, name: str, index: int) -> Mapping[str, Outputs]:
        """Returns {test video: Outputs} of a run or fusion, for the seed at `index`.

        The outputs of a fusion are the means of those of its members, as for a run that learns from it. Raises
        Unavailable if the members have features of different widths.
        """
        if (name, index) in self._outputs:
            return self._outputs[name, index]
        if members := self.experiment.row(name).get("members"):
            streams = [self.outputs(member, index) for member in members]
            widths = [next(iter(stream.values())).features.shape[1] for stream in streams]
            if len(set(widths)) > 1:
                sizes = ", ".join(f"{member} {width}" for member, width in zip(members, widths, strict=True))
                raise Unavailable(f"the members of {name} have features of different widths ({sizes})")
            found = {video: _mean([stream[video] for stream in streams]) for video in streams[0]}
        else:
            computed = self.experiment.outputs(self.experiment.runs[name][index])
            found = {video: computed[video] for video in self.truth.segments}
        self._keep(name, index, found)
        return found

    def _keep(self, name: str, index: int, found: Mapping[str, Outputs]) -> None:
        def size(outputs: Mapping[str, Outputs]) -> int:
            return sum(each.features.nbytes + each.logits.nbytes for each in outputs.values())

        if sum(map(size, self._outputs.values())) + size(found) > _CACHE_BYTES:
            self._outputs.clear()
        self._outputs[name, index] = found

    def need(self, **roles: object) -> None:
        """Raises Unavailable unless each of these roles is taken."""
        names = {"vanilla": "plain student (config.baseline)", "augmented": "distilled student of the plain one"}
        names |= {"two_stream": "fusion with the plain student", "teachers": "teacher among its runs and fusions"}
        if missing := [role for role, taken in roles.items() if not taken]:
            raise Unavailable(f"the experiment has no {names[missing[0]]}")


def _mean(outputs: Sequence[Outputs]) -> Outputs:
    means = [np.mean([getattr(each, name) for each in outputs], axis=0) for name in ("features", "logits")]
    return Outputs(*means)


FigureFunction = Callable[[Study], Drawing]
