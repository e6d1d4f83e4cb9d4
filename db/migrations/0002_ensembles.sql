-- Ensembles and samples beside runs, recipes tuned for the limit of ensembles, and the new axes that people compare by.
-- DuckDB cannot change a CHECK, so `cell` and `trial` are made anew around their rows.

CREATE TEMP TABLE cell_before AS FROM cell;
DROP TABLE cell;
CREATE TABLE cell (
    cell_id VARCHAR NOT NULL PRIMARY KEY,
    study VARCHAR NOT NULL,
    recipe VARCHAR NOT NULL,
    recipe_limit VARCHAR NOT NULL CHECK (recipe_limit IN ('best', 'N', 'K', 'K then N')),
    objective VARCHAR NOT NULL CHECK (objective IN ('single', 'K')),
    averaging VARCHAR NOT NULL CHECK (averaging IN ('logits', 'probabilities', 'weights')),
    members BIGINT NOT NULL,
    base VARCHAR,
    teacher VARCHAR,
    seed_tokens BIGINT NOT NULL,
    size VARCHAR NOT NULL,
    parameters_total BIGINT NOT NULL,
    parameters_non_embedding BIGINT NOT NULL,
    axes JSON NOT NULL,
    shape INTEGER[] NOT NULL,
    starts JSON NOT NULL,
    note VARCHAR,
    search_ended_at TIMESTAMPTZ,
    search_stopped VARCHAR
);
INSERT INTO cell BY NAME SELECT *, 'single' AS objective, 'logits' AS averaging, 1 AS members FROM cell_before;
DROP TABLE cell_before;

CREATE TEMP TABLE trial_before AS FROM trial;
DROP TABLE trial;
CREATE TABLE trial (
    cell_id VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    role VARCHAR NOT NULL CHECK (role IN ('search', 'replicate', 'member')),
    number BIGINT NOT NULL,
    coordinates INTEGER[] NOT NULL,
    PRIMARY KEY (cell_id, run_id)
);
INSERT INTO trial BY NAME FROM trial_before;
DROP TABLE trial_before;

-- A default fills the rows there are, so that the column may be declared NOT NULL. An UPDATE before that would forbid it.
ALTER TABLE run ADD COLUMN parameters_active BIGINT DEFAULT 0;
ALTER TABLE run ALTER COLUMN parameters_active SET NOT NULL;
ALTER TABLE run ALTER COLUMN parameters_active DROP DEFAULT;
ALTER TABLE run ADD COLUMN experts BIGINT DEFAULT 1;
ALTER TABLE run ALTER COLUMN experts SET NOT NULL;
ALTER TABLE run ALTER COLUMN experts DROP DEFAULT;
ALTER TABLE run ADD COLUMN loops BIGINT DEFAULT 1;
ALTER TABLE run ALTER COLUMN loops SET NOT NULL;
ALTER TABLE run ALTER COLUMN loops DROP DEFAULT;
ALTER TABLE run ADD COLUMN synthetic_share DOUBLE;
ALTER TABLE run ADD COLUMN samples VARCHAR;
UPDATE run SET parameters_active = parameters_total;

CREATE TABLE ensemble (
    ensemble_id VARCHAR NOT NULL PRIMARY KEY,
    corpus VARCHAR NOT NULL,
    members VARCHAR[] NOT NULL,
    validation_sequences BIGINT NOT NULL,
    "precision" VARCHAR NOT NULL,
    wall_seconds DOUBLE NOT NULL,
    device VARCHAR NOT NULL,
    recorded_at TIMESTAMPTZ NOT NULL
);

-- Logical key only, as of metric: rows are written once, with their ensemble's row.
CREATE TABLE ensemble_loss (
    ensemble_id VARCHAR NOT NULL,
    number BIGINT NOT NULL,
    averaging VARCHAR NOT NULL,
    subset INTEGER[] NOT NULL,
    val_loss DOUBLE
);

CREATE TABLE cell_ensemble (
    cell_id VARCHAR NOT NULL,
    ensemble_id VARCHAR NOT NULL,
    number BIGINT NOT NULL,
    coordinates INTEGER[] NOT NULL,
    PRIMARY KEY (cell_id, ensemble_id)
);

CREATE TABLE sample (
    sample_id VARCHAR NOT NULL PRIMARY KEY,
    members VARCHAR[] NOT NULL,
    pool VARCHAR NOT NULL,
    sequences BIGINT NOT NULL,
    context_length BIGINT NOT NULL,
    temperature DOUBLE NOT NULL,
    top_p DOUBLE NOT NULL,
    seed BIGINT NOT NULL,
    fingerprint VARCHAR NOT NULL,
    cross_entropy DOUBLE NOT NULL,
    entropy DOUBLE NOT NULL,
    tokens_per_second DOUBLE NOT NULL,
    wall_seconds DOUBLE NOT NULL,
    device VARCHAR NOT NULL,
    recorded_at TIMESTAMPTZ NOT NULL
);
