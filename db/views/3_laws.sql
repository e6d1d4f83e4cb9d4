-- Laws over a cell's optimum: the limit of each recipe at each budget, its law over budgets, and data efficiency.
-- All intervals are 90%. What each covers, and what it does not, is said in db/README.md.

-- One row a (study, recipe, seed_tokens). Laws in N take N = parameters_total in units of 1e9.
CREATE OR REPLACE VIEW asymptote AS
WITH grouped AS (
    SELECT study, recipe, recipe_limit, seed_tokens,
        list(parameters_total / 1e9 ORDER BY cell_id) FILTER (val_loss_mean IS NOT NULL) AS xs,
        list(val_loss_mean ORDER BY cell_id) FILTER (val_loss_mean IS NOT NULL) AS ys,
        min(val_loss_mean) AS least, arg_min(seeds, val_loss_mean) AS least_seeds,
        min(seeds) FILTER (val_loss_mean IS NOT NULL) AS fewest_seeds, count(*) AS cells,
        count(*) FILTER (state = 'certified') AS certified, count(*) FILTER (state = 'boundary') AS boundary,
        count(*) FILTER (state = 'open') AS open
    FROM best_run JOIN (SELECT cell_id, state FROM certificate) USING (cell_id)
    GROUP BY study, recipe, recipe_limit, seed_tokens
), fitted AS (
    SELECT grouped.*, noise_sd, noise.reason AS no_noise, if(recipe_limit = 'N', power_law(xs, ys), NULL) AS fit
    FROM grouped LEFT JOIN noise USING (study)
), bracketed AS (
    SELECT *, CASE
        WHEN recipe_limit = 'N' THEN power_law_interval(xs, ys, fit, noise_sd / sqrt(fewest_seeds))
        ELSE {low: least - 1.645 * noise_sd / sqrt(least_seeds), high: least + 1.645 * noise_sd / sqrt(least_seeds)} END
        AS interval
    FROM fitted
)
SELECT study, recipe, seed_tokens, if(recipe_limit = 'N', 'asymptote', 'best over N') AS kind, 'parameters_total' AS variable,
    CASE WHEN recipe_limit = 'best' THEN least WHEN fit.reason IS NULL THEN fit.e END AS limit_loss,
    fit.a, fit.alpha, fit.e, coalesce(len(xs), 0) AS points, fit.rmse, interval.low AS e_low, interval.high AS e_high,
    noise_sd, CASE WHEN interval.low IS NOT NULL THEN NULL WHEN no_noise IS NOT NULL THEN no_noise
        ELSE 'there is no limit to bracket' END AS interval_reason,
    if(recipe_limit = 'N', fit.reason, if(least IS NULL, 'no cell has a finished run', NULL)) AS reason,
    least AS best_trained, cells, certified, boundary, open
FROM bracketed;

-- One row a (study, recipe). The law of the recipe's limits over D = seed_tokens in units of 1e6.
CREATE OR REPLACE VIEW data_law AS
WITH grouped AS (
    SELECT study, recipe, list(seed_tokens / 1e6 ORDER BY seed_tokens) FILTER (limit_loss IS NOT NULL) AS xs,
        list(limit_loss ORDER BY seed_tokens) FILTER (limit_loss IS NOT NULL) AS ys, count(*) AS budgets,
        max(seed_tokens) FILTER (limit_loss IS NOT NULL) AS largest_budget,
        if(bool_or(limit_loss IS NOT NULL AND e_low IS NULL), NULL,
            sqrt(avg(((e_high - e_low) / 3.29) ^ 2) FILTER (limit_loss IS NOT NULL))) AS noise_sd,
        sum(cells)::BIGINT AS cells, sum(certified)::BIGINT AS certified,
        sum(boundary)::BIGINT AS boundary, sum(open)::BIGINT AS open
    FROM asymptote
    GROUP BY study, recipe
), fitted AS (
    SELECT *, power_law(coalesce(xs, []), coalesce(ys, [])) AS fit FROM grouped
), bracketed AS (
    SELECT *, power_law_interval(xs, ys, fit, noise_sd) AS interval FROM fitted
)
SELECT study, recipe, 'seed_tokens' AS variable, if(fit.reason IS NULL, fit.e, NULL) AS limit_loss, fit.a, fit.alpha, fit.e,
    coalesce(len(xs), 0) AS points, budgets, largest_budget, fit.rmse, interval.low AS e_low, interval.high AS e_high, noise_sd,
    CASE WHEN interval.low IS NOT NULL THEN NULL WHEN noise_sd IS NULL THEN 'a limit has no interval'
        ELSE 'there is no limit to bracket' END AS interval_reason,
    fit.reason, cells, certified, boundary, open
FROM bracketed;

-- x where L = A / x^alpha + E falls to `loss`; NULL where it never does.
CREATE OR REPLACE MACRO power_law_inverse(a, alpha, e, loss) AS
    CASE WHEN loss > e THEN power(a / (loss - e), 1 / alpha) END;

-- One row a (study, recipe, seed_tokens): the tokens the study's baseline recipe needs, by its data law, to reach the
-- recipe's limit there, over the tokens the recipe had.
CREATE OR REPLACE VIEW data_efficiency AS
WITH joined AS (
    SELECT asymptote.*, study.baseline, law.e AS floor, law.reason AS no_law, law.study IS NOT NULL AS has_law,
        law.largest_budget,
        1e6 * power_law_inverse(law.a, law.alpha, law.e, asymptote.limit_loss) AS tokens_needed,
        1e6 * power_law_inverse(law.a, law.alpha, law.e, asymptote.e_high) AS tokens_low,
        1e6 * power_law_inverse(law.a, law.alpha, law.e, asymptote.e_low) AS tokens_high,
        1e6 * power_law_inverse(law.a, law.alpha, law.e, asymptote.best_trained) AS tokens_trained
    FROM asymptote LEFT JOIN study ON study.name = asymptote.study
        LEFT JOIN (SELECT * REPLACE (if(a > 0, e, NULL) AS e) FROM data_law) AS law
            ON law.study = asymptote.study AND law.recipe = study.baseline
)
SELECT study, recipe, seed_tokens, baseline, limit_loss, tokens_needed, tokens_needed / seed_tokens AS data_efficiency,
    if(tokens_needed IS NULL, NULL, tokens_low / seed_tokens) AS data_efficiency_low,
    if(tokens_needed IS NULL, NULL, tokens_high / seed_tokens) AS data_efficiency_high,
    tokens_needed > largest_budget AS extrapolated, best_trained, tokens_trained / seed_tokens AS data_efficiency_trained,
    CASE
        WHEN tokens_needed IS NULL THEN 'there is no ratio to bracket'
        WHEN e_low IS NULL THEN interval_reason
        WHEN tokens_high IS NULL THEN 'no upper end: the interval of the loss reaches below the baseline''s limit '
            || round(floor, 4) END AS interval_reason,
    CASE
        WHEN limit_loss IS NULL THEN 'this recipe has no limit here: ' || reason
        WHEN baseline IS NULL THEN 'the study names no baseline'
        WHEN NOT has_law THEN 'the baseline ' || baseline || ' has no runs in this study'
        WHEN floor IS NULL THEN 'the baseline has no data law: ' || no_law
        WHEN limit_loss <= floor THEN 'the baseline''s law never reaches this loss: its limit is ' || round(floor, 4) END
        AS reason
FROM joined;
