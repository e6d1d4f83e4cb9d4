"""The schema: every table once, as a SQLModel class. A class's docstring says what a row is, a field's description what its
column means, with its unit in parentheses.

From here come the statements that create tables and comments, the tables' section of `db/README.md` (`docs/tables.py` writes
it), and the rows of `Database.session()`. Columns are BIGINT, DOUBLE and TIMESTAMPTZ; there are no foreign keys, for rows arrive
in any order. SQLModel is slow to import: what only asks a query does not import this module.
"""

import re
from datetime import datetime
from typing import Any

from duckdb_sqlalchemy import Dialect
from sqlalchemy import ARRAY, JSON, BigInteger, Double, Enum, Float, Integer, MetaData, String
from sqlalchemy.schema import CreateTable, SetColumnComment, SetTableComment
from sqlmodel import Field, SQLModel

TEXTS, NUMBERS, INDICES, POINTS = ARRAY(String), ARRAY(Double), ARRAY(Integer), ARRAY(Integer, dimensions=2)


class Table(SQLModel):
    metadata = MetaData()


def column(description: str, **keywords: Any) -> Any:
    return Field(description=description, **keywords)


def key(description: str) -> Any:
    return column(f"key: {description}", primary_key=True)


def one_of(description: str) -> Any:
    """A column of one of the values that its description has in backticks."""
    values = re.findall("`(.+?)`", description)
    return column(description, sa_type=Enum(*values, native_enum=False, create_constraint=True))


class Run(Table, table=True):
    """One row a finished or diverged run: an immutable fact, written once."""

    run_id: str = key("hash of the canonical RunSpec; of an imported run, of all that is known of it")
    status: str = one_of("`finished` or `diverged`")
    reason: str | None = column("why it counts as diverged")
    corpus: str | None = column("fingerprint of the token files")
    corpus_name: str | None = column("what people call the corpus")
    seed_tokens: int = column("D: distinct training tokens (tokens)")
    parameters_total: int = column("N: all weights (count)")
    parameters_non_embedding: int | None = column("weights without the token embedding and the output head (count)")
    parameters_active: int | None = column("active: all but those of experts that a token is not routed to (count)")
    hidden: int | None = column("width of the decoder (count)")
    layers: int | None = column("layers of the decoder (count)")
    heads: int | None = column("attention heads a layer (count)")
    kv_heads: int | None = column("key and value heads a layer (count)")
    feed_forward: int | None = column("width of the feed-forward (count)")
    vocabulary: int | None = column("tokens in the vocabulary (count)")
    context_length: int | None = column("tokens in a sequence (count)")
    experts: int | None = column("feed-forwards a layer; more than 1 is a mixture of experts (count)")
    loops: int | None = column("times the stack of layers is applied (count)")
    lr: float | None = column("peak learning rate")
    weight_decay: float | None = column("decoupled, multiplied by the scheduled learning rate")
    epochs: int | None = column("passes over the seed tokens (count)")
    batch_size: int | None = column("sequences a step (count)")
    optimizer: str | None = column("`adamw` or `muon`")
    dropout: float | None = column("probability")
    order: str | None = column("of the sequences, from epoch to epoch: `same` or `reshuffled`; quote it in SQL")
    precision: str | None = column("of the forward pass: `float32` or `bfloat16`")
    train_seed: int | None = column("of initialisation and dropout")
    data_seed: int | None = column("of the order of the sequences")
    draw: int | None = column("which fixed order of the corpus's documents its tokens are the first of; 0 tunes")
    synthetic_share: float | None = column("of the tokens of an epoch, sampled ones, as whole steps give it; NULL without")
    samples: str | None = column("the sampling they come from: `sample_id` of `sample`; NULL without")
    trainer_version: int | None = column("raised when the same spec would give another loss")
    val_loss: float | None = column("final loss on the validation split; NULL when diverged (nats/token)")
    val_loss_standard_error: float | None = column("of that mean, over validation sequences (nats/token)")
    train_loss: float | None = column("mean over the last interval of the training curve (nats/token)")
    steps: int | None = column("optimizer steps done (count)")
    tokens_seen: int | None = column("training tokens, repeats included (tokens)")
    training_flops: float | None = column("forward and backward, without recomputation (FLOPs)")
    wall_seconds: float | None = column("all attempts together, each up to its last checkpoint or its end (s)")
    tokens_per_second: float | None = column("of training, without evaluation (tokens/s)")
    model_flops_utilisation: float | None = column("fraction of the device's peak; NULL where the peak is not known")
    peak_memory_bytes: int | None = column("of the run on a CUDA device; elsewhere the most its process has held so far (bytes)")
    device: str | None = column("it was trained on")
    host: str | None = column("where it was trained")
    torch_version: str | None = column("of PyTorch")
    started_at: datetime | None = column("start of its first attempt")
    ended_at: datetime | None = column("end of its last attempt")
    spec: dict[str, Any] = column("the whole RunSpec, defaults included; of an imported run what is known", sa_type=JSON)
    source: str | None = column("the table, project or store it was imported from; NULL when trained here")


class Metric(Table, table=True):
    """Training curves, one row a (run, step, name). No physical key: an index over every step would outgrow the data."""

    __mapper_args__ = {"primary_key": ["run_id", "step", "name"]}

    run_id: str = column("the run")
    step: int = column("last step of the interval (count)")
    tokens: int = column("seen up to it (tokens)")
    name: str = column("`train_loss` (nats/token), `gradient_norm` (before clipping) or `lr`")
    value: float | None = column("mean over the interval; NULL where it was not finite")


class Evaluation(Table, table=True):
    """Validation during training, one row a (run, step, split). No physical key."""

    __mapper_args__ = {"primary_key": ["run_id", "step", "split"]}

    run_id: str = column("the run")
    step: int = column("at which it was evaluated (count)")
    tokens: int = column("seen up to it (tokens)")
    split: str = column("`validation`")
    val_loss: float | None = column("NULL where it was not finite (nats/token)")
    standard_error: float | None = column("of the mean over validation sequences (nats/token)")


class Attempt(Table, table=True):
    """One row a try at a job, those of unfinished jobs too."""

    job_id: str = key("the job, such as a `run_id`")
    number: int = key("1, 2, ... (count)")
    kind: str = column("of the job: `train`, `ensemble`, `sample`, ...")
    started_at: datetime = column("start of the attempt")
    ended_at: datetime | None = column("NULL while it runs, and where it disappeared")
    outcome: str = column("`running`, `finished`, `diverged`, `out_of_memory`, `preempted`, `killed` or `failed`")
    reason: str | None = column("in words, for what is neither running nor finished")
    host: str = column("where it ran")
    process_id: int = column("on that host")
    device: str = column("it ran on")


class Job(Table, table=True):
    """One row a finished job of a kind that has no table of its own: an immutable fact, written once."""

    job_id: str = key("hash of the canonical spec")
    kind: str = column("of the job")
    inputs: list[str] = column("ids of the jobs it used", sa_type=TEXTS)
    flops: float = column("what it was expected to take (FLOPs)")
    spec: dict[str, Any] = column("its fields", sa_type=JSON)
    result: dict[str, Any] = column("what came of it", sa_type=JSON)


class Study(Table, table=True):
    """One row a study, as it was last launched or imported."""

    name: str = key("its name")
    question: str | None = column("what it asks")
    baseline: str | None = column("the recipe whose data law measures data efficiency")
    text: str = column("the declaration (TOML); of imported runs how their table was mapped (JSON)")
    spec: dict[str, Any] = column("the StudySpec; of imported runs `recipes` and the mapping", sa_type=JSON)
    corpus: str | None = column("fingerprint of the token files; NULL for imported runs")
    vocabulary: int | None = column("tokens in the vocabulary; NULL for imported runs (count)")
    separator: int | None = column("id of the token between documents; NULL for imported runs")
    imported_from: str | None = column("the table, project or store its runs were imported from; NULL when launched")
    claims_since: dict[str, str] | None = column("when each claim was declared; NULL for imported runs", sa_type=JSON)
    started_at: datetime = column("first launch or import")
    updated_at: datetime = column("last launch or import")


class Cell(Table, table=True):
    """One row a cell, (recipe, D, N) of a study, the unit that is tuned, and the state of its search when last resolved."""

    cell_id: str = key("`study/recipe/D/size`")
    study: str = column("whose cell it is")
    recipe: str = column("how it trains")
    recipe_limit: str = one_of("its limit: `best` over N, asymptote in `N`, asymptote in `K` (best over N), or `K then N`")
    objective: str = one_of("what the search minimises: `single` (the loss of one model) or `K` (that of its members together)")
    averaging: str = one_of("what is averaged over members: `logits`, `probabilities` or `weights`")
    members: int = column("K: runs an ensemble has (count)")
    base: str | None = column("`cell_id` of the cell whose optimum is followed; NULL without")
    teacher: str | None = column("`cell_id` of the teacher whose samples or logits are learned from; NULL without")
    seed_tokens: int = column("D (tokens)")
    size: str = column("name of the size")
    parameters_total: int = column("N of the size: all weights (count)")
    parameters_non_embedding: int | None = column("weights without the token embedding and the output head (count)")
    axes: dict[str, list[float]] = column("the grid: values by axis, in axis order", sa_type=JSON)
    shape: list[int] = column("values an axis (counts)", sa_type=INDICES)
    starts: list[list[int]] = column("grid indices the search starts from", sa_type=JSON)
    note: str | None = column("what is unusual about the cell, such as an axis that follows another cell off the study's grid")
    search_ended_at: datetime | None = column("end of the last run that the search used; NULL while it goes on or was imported")
    search_stopped: str | None = column("why the search ended, when not by its certificate")
    state: str = one_of("`waiting` for other cells, `blocked` by a failure, `searching`, `certified`, `boundary` or `open`")
    reason: str = column("why it is in that state; of a certified cell what the certificate rests on")
    best: list[int] | None = column("grid indices of the optimum; NULL without", sa_type=INDICES)
    best_loss: float | None = column("what the search minimises, at the optimum; NULL without (nats/token)")
    margin: float | None = column("best finished neighbour minus the optimum; 0 for a tie, NULL when none finished (nats/token)")
    ties: int | None = column("neighbours of exactly the best loss; NULL without an optimum (count)")
    neighbours_run: int | None = column("neighbours of the optimum that were run; NULL without (count)")
    neighbours_missing: list[list[int]] | None = column("those not run, also of tied points; NULL without", sa_type=POINTS)
    edges: list[str] | None = column("edges of the grid that it lies on, such as `lr upper`; NULL without", sa_type=TEXTS)
    origin: str = column("cell whose search the optimum comes from: itself, or where nothing is tuned its base's")
    runs_left: int | None = column("expected runs until the cell is done; NULL where it is not known (count)")
    flops_left: float | None = column("expected cost of those; NULL where it is not known (FLOPs)")


class Trial(Table, table=True):
    """Which run tried which point of which cell. A run may serve many cells."""

    cell_id: str = key("the cell")
    run_id: str = key("the run")
    role: str = one_of(
        "`search`, `member` (of the ensemble at a point), `replicate` (of the optimum, under a seed or draw that chose nothing) "
        "or `claim` (the same, to decide a claim alone: no law reads it)"
    )
    number: int = column("order within the cell's search, from 0 (count)")
    coordinates: list[int] = column("grid indices from 0, in axis order", sa_type=INDICES)


class Ensemble(Table, table=True):
    """One row an evaluated ensemble: an immutable fact, written once."""

    ensemble_id: str = key("hash of the canonical EnsembleSpec")
    corpus: str = column("fingerprint of the token files")
    members: list[str] = column("run ids in order, `RUN@n` for a snapshot", sa_type=TEXTS)
    validation_sequences: int = column("it was evaluated on (count)")
    precision: str = column("of the forward pass")
    wall_seconds: float = column("of the evaluation (s)")
    device: str = column("it was evaluated on")


class EnsembleLoss(Table, table=True):
    """Losses of subsets of an ensemble's members: all of up to eight members, else the windows of their ring; of averaged
    weights the first 1, 2, ... K members. No physical key."""

    __tablename__ = "ensemble_loss"
    __mapper_args__ = {"primary_key": ["ensemble_id", "number"]}

    ensemble_id: str = column("the ensemble")
    number: int = column("order within it, from 0 (count)")
    averaging: str = column("what was averaged: `logits`, `probabilities` (the softmaxes) or `weights` (one model with the mean)")
    subset: list[int] = column("places in `members`, rising, from 0", sa_type=INDICES)
    val_loss: float | None = column("NULL where it was not finite (nats/token)")


class CellEnsemble(Table, table=True):
    """Which ensembles a cell evaluated at which point."""

    __tablename__ = "cell_ensemble"

    cell_id: str = key("the cell")
    ensemble_id: str = key("the ensemble")
    role: str = one_of(
        "`member` (of runs that the search used), `replicate` (of the optimum, of runs that chose nothing) or `claim` (the same, "
        "to decide a claim alone)"
    )
    draw: int = column("which fixed order of the corpus's documents its members are trained on; 0 tunes")
    number: int = column("order within the cell's search, from 0 (count)")
    coordinates: list[int] = column("grid indices from 0, in axis order", sa_type=INDICES)


class Sample(Table, table=True):
    """One row a sampling of synthetic text: an immutable fact, written once."""

    sample_id: str = key("hash of the canonical SampleSpec")
    members: list[str] = column("run ids of the teacher, in order", sa_type=TEXTS)
    pool: str = column("`members` (each draws its share of the sequences) or `joint` (from the softmax of their mean logits)")
    sequences: int = column("sequences drawn (count)")
    context_length: int = column("tokens in each (count)")
    temperature: float = column("of the draw")
    top_p: float = column("of the draw; 1 is off")
    seed: int = column("of the draw")
    fingerprint: str = column("of the token file")
    cross_entropy: float = column("mean -log p of the drawn tokens under what they were drawn from (nats/token)")
    entropy: float = column("mean entropy of that (nats/token)")
    tokens_per_second: float = column("drawn (tokens/s)")
    wall_seconds: float = column("of the draw (s)")
    device: str = column("it was drawn on")


class Fit(Table, table=True):
    """One row a fitted law or ratio with its interval, which views join. `fit_state` says which are out of date."""

    fit_id: str = key("study, recipe, D and quantity; of `members` the ensemble and the averaging")
    study: str | None = column("of which study; NULL for `members`")
    recipe: str | None = column("of which recipe; NULL for `members`")
    seed_tokens: int | None = column("at which D; NULL for `members` and a law over D (tokens)")
    quantity: str = one_of(
        "`members`: the limit of an ensemble's loss in K; `reached`: what a cell's optimum reached; `optimum`: what that is at "
        "best, or its limit in K where the recipe asks for it; `asymptote`: the recipe's limit at D; `data_law`: the limit of "
        "those over D (all nats/token); `data_efficiency`: of the limit, by the baseline's data law; `data_efficiency_trained`: "
        "of the best loss trained (ratios)"
    )
    value: float | None = column("the quantity; NULL with a `reason`")
    low: float | None = column("lower end of the 90% interval; NULL where there is none")
    high: float | None = column("upper end; NULL also where more than 5% of the resamples have none")
    reason: str | None = column("why there is no value")
    interval_reason: str | None = column("why an end of the interval is missing")
    standard_error: float | None = column("of `members` (jackknife), `reached` and `optimum`; NULL for others (nats/token)")
    tokens_needed: float | None = column("of a ratio: what the baseline needs; NULL for laws (tokens)")
    largest_budget: int | None = column("of a ratio: the baseline's largest D that has a limit; NULL for laws (tokens)")
    method: str = column("name and version of the method")
    resamples: int = column("of the whole chain of laws; 0 without (count)")
    undefined: int = column("resamples in which it has no value (count)")
    points: int = column("points of its law; 0 for a ratio or the best over N (count)")
    a: float | None = column("of the law L = a / x^alpha + e, x = K, N / 1e9 or D / 1e6; NULL without (nats/token)")
    alpha: float | None = column("exponent of that law; NULL without, and where a = 0")
    e: float | None = column("limit of that law; NULL without (nats/token)")
    rmse: float | None = column("root of its mean squared residual (nats/token)")
    weights: list[float] | None = column("of its points, in the order of x; NULL where all count alike", sa_type=NUMBERS)
    warnings: list[str] = column(
        "keys of `dataeff.laws.fit.WARNINGS`, and `misfit` where its residuals are more than twice the noise of its points; "
        "the interval takes the noise as large as they are",
        sa_type=TEXTS,
    )
    held_out: float | None = column("loss of the largest x minus the law of the others; NULL with too few (nats/token)")
    draw_sd: float | None = column("of an `asymptote`: sd between draws of the data at its D; NULL with one draw (nats/token)")
    seed_sd: float | None = column("of an `asymptote`: sd between runs of one draw; NULL where it is not known (nats/token)")
    run_ids: list[str] = column("the runs whose losses it rests on, members of ensembles among them", sa_type=TEXTS)
    evidence: str = column("hash of what was recorded of the recipe and its baseline, and of the schema; the ensemble's id")


class Schema(Table, table=True):
    """One row: which version of the schema this file has."""

    version: str = key("hash of what declares the tables and makes the views and macros")
    created_at: datetime = column("when this file was made")


def statements() -> str:
    """Return the SQL that creates every table with its comments, in DuckDB's types."""
    wide = {Integer: BigInteger(), Float: Double()}  # SQLModel alone takes 32 bits
    ddl: list[Any] = []
    for model in Table.__subclasses__():
        table = model.__table__
        table.comment = _plain(model.__doc__)
        for column in table.columns:
            column.comment = _plain(model.model_fields[column.name].description)
            column.type = wide.get(type(column.type), column.type)
        ddl += [CreateTable(table), SetTableComment(table), *map(SetColumnComment, table.columns)]
    dialect = Dialect(paramstyle="named")  # the default style doubles each %
    return ";\n".join(str(statement.compile(dialect=dialect)) for statement in ddl)


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("`", "")
