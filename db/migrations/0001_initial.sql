-- The schema: what dataeff/records/tables.py declares. Units and meanings: db/README.md.
-- Keys are strings, counts BIGINT, losses DOUBLE in nats per token, times TIMESTAMPTZ in UTC.
-- No physical foreign keys: rows arrive in any order, and DuckDB checks them on every update.

CREATE TABLE schema_migration (
    version INTEGER NOT NULL PRIMARY KEY,
    name VARCHAR NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE schema_views (
    hash VARCHAR NOT NULL PRIMARY KEY,
    applied_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE run (
    run_id VARCHAR NOT NULL PRIMARY KEY,
    status VARCHAR NOT NULL CHECK (status IN ('finished', 'diverged')),
    reason VARCHAR,
    corpus VARCHAR NOT NULL,
    corpus_name VARCHAR,
    seed_tokens BIGINT NOT NULL,
    parameters_total BIGINT NOT NULL,
    parameters_non_embedding BIGINT NOT NULL,
    hidden BIGINT NOT NULL,
    layers BIGINT NOT NULL,
    heads BIGINT NOT NULL,
    kv_heads BIGINT NOT NULL,
    feed_forward BIGINT NOT NULL,
    vocabulary BIGINT NOT NULL,
    context_length BIGINT NOT NULL,
    lr DOUBLE NOT NULL,
    weight_decay DOUBLE NOT NULL,
    epochs BIGINT NOT NULL,
    batch_size BIGINT NOT NULL,
    optimizer VARCHAR NOT NULL,
    dropout DOUBLE NOT NULL,
    "order" VARCHAR NOT NULL,
    "precision" VARCHAR NOT NULL,
    train_seed BIGINT NOT NULL,
    data_seed BIGINT NOT NULL,
    trainer_version BIGINT NOT NULL,
    val_loss DOUBLE,
    val_loss_standard_error DOUBLE,
    train_loss DOUBLE,
    steps BIGINT NOT NULL,
    tokens_seen BIGINT NOT NULL,
    training_flops DOUBLE NOT NULL,
    wall_seconds DOUBLE NOT NULL,
    tokens_per_second DOUBLE NOT NULL,
    model_flops_utilisation DOUBLE,
    peak_memory_bytes BIGINT,
    device VARCHAR NOT NULL,
    host VARCHAR NOT NULL,
    torch_version VARCHAR NOT NULL,
    started_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ NOT NULL,
    spec JSON NOT NULL,
    recorded_at TIMESTAMPTZ NOT NULL
);

-- metric and evaluation have logical keys only: a run's rows are written once, with its run row, in one
-- transaction, and an index over every step of every run would outgrow the data.
CREATE TABLE metric (
    run_id VARCHAR NOT NULL,
    step BIGINT NOT NULL,
    tokens BIGINT NOT NULL,
    name VARCHAR NOT NULL,
    value DOUBLE
);

CREATE TABLE evaluation (
    run_id VARCHAR NOT NULL,
    step BIGINT NOT NULL,
    tokens BIGINT NOT NULL,
    split VARCHAR NOT NULL,
    val_loss DOUBLE,
    standard_error DOUBLE
);

CREATE TABLE attempt (
    run_id VARCHAR NOT NULL,
    number BIGINT NOT NULL,
    started_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ,
    outcome VARCHAR NOT NULL,
    reason VARCHAR,
    host VARCHAR NOT NULL,
    process_id BIGINT NOT NULL,
    device VARCHAR NOT NULL,
    PRIMARY KEY (run_id, number)
);

CREATE TABLE study (
    name VARCHAR NOT NULL PRIMARY KEY,
    question VARCHAR,
    baseline VARCHAR,
    text VARCHAR NOT NULL,
    text_hash VARCHAR NOT NULL,
    asks VARCHAR NOT NULL,
    started_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    spec JSON NOT NULL
);

CREATE TABLE cell (
    cell_id VARCHAR NOT NULL PRIMARY KEY,
    study VARCHAR NOT NULL,
    recipe VARCHAR NOT NULL,
    recipe_limit VARCHAR NOT NULL CHECK (recipe_limit IN ('best', 'N')),
    seed_tokens BIGINT NOT NULL,
    size VARCHAR NOT NULL,
    parameters_total BIGINT NOT NULL,
    parameters_non_embedding BIGINT NOT NULL,
    axes JSON NOT NULL,
    shape INTEGER[] NOT NULL,
    starts JSON NOT NULL,
    search_ended_at TIMESTAMPTZ,
    search_stopped VARCHAR
);

CREATE TABLE trial (
    cell_id VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    role VARCHAR NOT NULL CHECK (role IN ('search', 'replicate')),
    number BIGINT NOT NULL,
    coordinates INTEGER[] NOT NULL,
    PRIMARY KEY (cell_id, run_id)
);

CREATE TABLE artifact (
    run_id VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    path VARCHAR NOT NULL,
    bytes BIGINT NOT NULL,
    PRIMARY KEY (run_id, name)
);
