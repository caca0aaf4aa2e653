"""The privacy statement of a run: the content of its privacy.json, parsed and checked.

A statement counts one run or several: its own run first, and then the previous runs that it covers. In the file, `runs`
has the name and the sessions of each run, and the field `run` of each entry of `mechanisms` is the index of its run in
that list.
"""

import json
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..units import RECORD, USER
from .accounting import LooseEpsilonWarning, Mechanism, compute_epsilon
from .counted_runs import CountedRun, all_mechanisms, branches


ADJACENCY = {RECORD: "zero_out_one_record", USER: "zero_out_one_user"}
OLDER_ADJACENCY = "add_or_remove_one_record"  # the name that older versions had for zeroing out one record
BRANCHES = (
    "Copies of one run that were resumed separately are each counted in full, so what they share is counted twice."
)


@dataclass(frozen=True)
class PrivacyStatement:
    """The content of a privacy.json, whether it is true or not; it suffices to recompute epsilon.

    Args:
        epsilon (`float`): The stated epsilon; nan if the file states no number.
        delta (`float`): Delta of all counted runs together.
        accountant (`str`): `"prv"` or `"rdp"`.
        adjacency (`str`): Which data sets count as neighbours.
        scope (`str`): A sentence that says which runs epsilon covers.
        dataset_size (`int`, *optional*):
            N, the number of records or users, which is public; None where it is not known.
        private (`bool`): Whether the run gives privacy, so that it may be published.
        remarks (`tuple[str, ...]`): Sentences that a reader has to know as well.
        runs (`tuple[CountedRun, ...]`): The runs that are counted, with their mechanisms; the own run comes first.
        public_assumptions (`tuple[str, ...]`): What is assumed to be public.
        versions (`dict[str, str]`): The versions of the packages that computed epsilon, by name.
        unit (`str`, *optional*, defaults to `"record"`):
            The unit of privacy: `"record"`, or `"user"`, who has one or several records.
        other (`dict`): Further entries in a file of another version, which are kept when the statement is written.

    Examples:
        >>> from pathlib import Path
        >>> from diffusers_dp_curriculum import PrivacyLedger, PrivacyStatement
        >>> ledger = PrivacyLedger(delta=1e-5)
        >>> length = Path("privacy.json").write_text(ledger.statement(dataset_size=60_000).to_json())
        >>> statement = PrivacyStatement.read("privacy.json")
        >>> statement.epsilon, statement.delta, statement.adjacency
        (0.0, 1e-05, 'zero_out_one_record')
    """

    epsilon: float
    delta: float
    accountant: str
    adjacency: str
    scope: str
    dataset_size: int | None
    private: bool
    remarks: tuple[str, ...]
    runs: tuple[CountedRun, ...]
    public_assumptions: tuple[str, ...]
    versions: dict[str, str]
    unit: str = RECORD
    other: dict[str, Any] = field(default_factory=dict)

    @property
    def num_previous_runs(self) -> int:
        """How many previous runs are counted besides the own run."""
        return len(self.runs) - 1

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "PrivacyStatement":
        """Parse the content of a privacy.json, also of one that an older version wrote.

        Older versions wrote neither runs nor a scope: their statements count one run without a name.

        Args:
            content (`dict`): The parsed JSON.

        Raises:
            InputError: If it is not the content of a privacy.json.
        """
        try:
            runs = _runs(content)
            unit = content.get("unit", RECORD)
            if unit not in ADJACENCY:
                raise ValueError(f"its unit is {unit!r}")
            epsilon = content.get("epsilon")
            return cls(
                epsilon=epsilon if isinstance(epsilon, int | float) else math.nan,
                delta=float(content["delta"]),
                accountant=content["accountant"],
                adjacency=content.get("adjacency", ADJACENCY[unit]),
                scope=content.get("scope", scope_in_words(len(runs) - 1)),
                dataset_size=content.get("dataset_size"),
                private=content.get("private") is True,
                remarks=_sentences(content, "remarks"),
                runs=runs,
                public_assumptions=_sentences(content, "public_assumptions"),
                versions=dict(content.get("versions", {})),
                unit=unit,
                other={name: value for name, value in content.items() if name not in _KEYS},
            )
        except InputError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"This is not the content of a privacy.json ({type(error).__name__}: {error}): give one that this "
                "library wrote."
            ) from error

    @classmethod
    def read(cls, path: str | os.PathLike[str], name: str | None = None) -> "PrivacyStatement":
        """Read a privacy.json without judging what it states.

        Args:
            path (`str` or `Path`): The file.
            name (`str`, *optional*): The name of the statement in messages; its path by default.

        Raises:
            InputError: If the file cannot be read, or does not have the content of a privacy.json.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError(f"it holds a {type(content).__name__}")
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read ({error}): give a privacy.json, or save the pipeline again."
            ) from error
        try:
            return cls.from_dict(content)
        except InputError as error:
            raise InputError(f"{name or path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The content of privacy.json, as JSON can hold it."""
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "accountant": self.accountant,
            "unit": self.unit,
            "adjacency": self.adjacency,
            "scope": self.scope,
            "dataset_size": self.dataset_size,
            "private": self.private,
            "remarks": list(self.remarks),
            "runs": [{"id": run.id, "sessions": run.sessions} for run in self.runs],
            "mechanisms": [
                {"run": number, **asdict(mechanism)}
                for number, run in enumerate(self.runs)
                for mechanism in run.mechanisms
            ],
            "public_assumptions": list(self.public_assumptions),
            "versions": self.versions,
            **self.other,
        }

    def to_json(self) -> str:
        """The text of privacy.json."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


_KEYS = {known.name for known in fields(PrivacyStatement)} - {"other"} | {"mechanisms"}


def make_statement(
    runs: Sequence[CountedRun],
    delta: float,
    accountant: str,
    *,
    scope: str,
    dataset_size: int | None,
    not_private: str | None,
    unit: str,
    remarks: Iterable[str] = (),
    public_assumptions: Iterable[str],
    versions: dict[str, str],
) -> PrivacyStatement:
    """Make the statement about some runs, with the epsilon of all of them together.

    Args:
        runs (`Sequence[CountedRun]`): The runs that are counted.
        delta (`float`): Delta of all runs together.
        accountant (`str`): `"prv"` or `"rdp"`.
        scope (`str`): A sentence that says which runs epsilon covers.
        dataset_size (`int`, *optional*):
            N, the number of records or users, which is public; None where it is not known.
        not_private (`str`, *optional*): The reason why the runs give no privacy; None if they give privacy.
        unit (`str`): The unit of privacy, `"record"` or `"user"`.
        remarks (`Iterable[str]`): Further sentences that a reader has to know.
        public_assumptions (`Iterable[str]`): What is assumed to be public.
        versions (`dict[str, str]`): The versions of the packages that compute epsilon, by name.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        epsilon = compute_epsilon(all_mechanisms(runs), delta, accountant)
    loose = [str(warning.message) for warning in caught if warning.category is LooseEpsilonWarning]
    broken = [f"NOT PRIVATE: {not_private}."] if not_private is not None else []
    return PrivacyStatement(
        epsilon=epsilon,
        delta=delta,
        accountant=accountant,
        adjacency=ADJACENCY[unit],
        scope=scope,
        dataset_size=dataset_size,
        private=not_private is None,
        remarks=tuple(dict.fromkeys([*broken, *loose, *([BRANCHES] if branches(runs) else []), *remarks])),
        runs=tuple(runs),
        public_assumptions=tuple(public_assumptions),
        versions=versions,
        unit=unit,
    )


def recompute_epsilon(statement: PrivacyStatement | dict[str, Any] | str | os.PathLike[str]) -> float:
    """Recompute epsilon from a privacy.json alone; the epsilon that it states is not used.

    Args:
        statement (`PrivacyStatement`, `dict`, `str` or `Path`):
            The statement, the parsed content of its file, or the path of the file. Its mechanisms, delta and accountant
            are used; its adjacency has to be zero-out for its unit, by its present or its older name.

    Raises:
        InputError:
            If this is not the content of a privacy.json, or is for another adjacency, or its accountant cannot bound
            the composition.

    Examples:
        >>> from diffusers_dp_curriculum import Mechanism, MechanismRandomness, PrivacyLedger, recompute_epsilon
        >>> ledger = PrivacyLedger(delta=1e-5)
        >>> mechanism = Mechanism("a_noisy_sum", noise_multiplier=8.0, sample_rate=0.1, steps=1, sensitivity=1.0)
        >>> with ledger.begin(mechanism, MechanismRandomness()).step():
        ...     pass  # sample, sum and add noise
        >>> statement = ledger.statement(dataset_size=60_000)
        >>> recompute_epsilon(statement) == statement.epsilon
        True
    """
    if isinstance(statement, dict):
        statement = PrivacyStatement.from_dict(statement)
    elif not isinstance(statement, PrivacyStatement):
        statement = PrivacyStatement.read(statement)
    known = {ADJACENCY[statement.unit], OLDER_ADJACENCY if statement.unit == RECORD else None}
    if statement.adjacency not in known:
        raise InputError(
            f"The statement is for the adjacency {statement.adjacency}, which this version does not know: use the "
            "version that wrote it."
        )
    return compute_epsilon(all_mechanisms(statement.runs), statement.delta, statement.accountant)


def scope_in_words(num_previous: int) -> str:
    """The sentence that says which runs the epsilon of a run covers.

    Args:
        num_previous (`int`): The number of previous runs that it counts.
    """
    counted = "this run alone"
    if num_previous > 0:
        counted = f"this run and the {num_previous} previous run{'s' * (num_previous > 1)} that it counts"
    return scope_of(counted)


def scope_of(counted: str) -> str:
    """The sentence that says which runs an epsilon covers.

    Args:
        counted (`str`): The runs in words, such as "this run alone".
    """
    return f"The figure is for {counted}: further runs on the same records add up."


def _runs(content: dict[str, Any]) -> tuple[CountedRun, ...]:
    """The runs that the content of a privacy.json counts."""
    runs = tuple(_named(run) for run in content.get("runs", [{"id": None, "sessions": {}}]))
    if not runs:
        raise ValueError("it counts no run")
    for entry in content["mechanisms"]:
        number = entry.get("run", 0)
        if not (_is_whole(number) and 0 <= number < len(runs)):
            raise ValueError(f"there is no run {number}")
        runs[number].mechanisms.append(_mechanism(entry))
    return runs


def _named(run: dict[str, Any]) -> CountedRun:
    """A run of a statement, without its mechanisms yet."""
    name, sessions = run["id"], run["sessions"]
    if not (name is None or isinstance(name, str)):
        raise ValueError(f"a run is called {name}")
    if not all(_is_whole(releases) for releases in sessions.values()):
        raise ValueError(f"a session has {sessions} releases")
    return CountedRun(name, dict(sessions), [])


def _mechanism(entry: dict[str, Any]) -> Mechanism:
    if not (isinstance(entry["name"], str) and entry["name"].isprintable() and _is_whole(entry["steps"])):
        raise ValueError(f"{entry['steps']!r} steps of {entry['name']!r}")
    return Mechanism(**{known.name: entry[known.name] for known in fields(Mechanism)})


def _sentences(content: dict[str, Any], name: str) -> tuple[str, ...]:
    sentences = content.get(name, [])
    if not (isinstance(sentences, list) and all(isinstance(sentence, str) for sentence in sentences)):
        raise ValueError(f"its {name} are no list of sentences")
    return tuple(sentences)


def _is_whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
