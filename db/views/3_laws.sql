-- Laws over a cell's optimum: the limit of each recipe at each budget, its law over budgets, and data efficiency.
-- All intervals are 90%. What each covers, and what it does not, is said in db/README.md.

-- One row a (cell, averaging, K): the loss of K members of the ensemble at the cell's optimum.
CREATE OR REPLACE VIEW ensemble_curve AS
SELECT study, recipe, seed_tokens, size, parameters_total, cell_id, ensemble_id, averaging, members, curve.val_loss, least,
    greatest, subsets
FROM best_run JOIN cell_ensemble USING (cell_id, coordinates) JOIN ensemble_size AS curve USING (ensemble_id);

-- One row a cell: what its optimum, or the ensemble of its members, reached, and the limit in K of recipes that ask for it.
CREATE OR REPLACE VIEW cell_limit AS
WITH best AS MATERIALIZED (
    SELECT best_run.*, best_run.recipe_limit IN ('K', 'K then N') AS in_k, cell.members > 1 OR in_k AS ensembled
    FROM best_run JOIN cell USING (cell_id)
), largest AS (
    SELECT cell_id, ensemble_id, averaging, len(ensemble.members) AS count
    FROM best JOIN cell USING (cell_id) JOIN cell_ensemble USING (cell_id) JOIN ensemble USING (ensemble_id)
    WHERE ensembled AND cell_ensemble.coordinates = best.coordinates
    QUALIFY row_number() OVER (PARTITION BY cell_id ORDER BY len(ensemble.members) DESC, ensemble_id DESC) = 1
), evaluated AS (
    SELECT cell_id, ensemble_id, any_value(count) AS count, list({subset: subset, val_loss: val_loss}) AS losses
    FROM largest JOIN ensemble_loss USING (ensemble_id, averaging)
    GROUP BY cell_id, ensemble_id
), law AS (
    SELECT cell_id, ensemble_id, law.* FROM (SELECT *, ensemble_law(losses, count) AS law FROM evaluated)
), cost AS (
    SELECT ensemble_id, sum(training_flops) AS training_flops
    FROM (SELECT DISTINCT ensemble_id, split_part(unnest(members), '@', 1) AS run_id FROM ensemble) JOIN run USING (run_id)
    GROUP BY ensemble_id
)
SELECT cell_id, study, recipe, recipe_limit, best.seed_tokens, size, best.parameters_total, ensemble_id,
    if(ensembled, members, 1) AS members, if(ensembled, law.val_loss, val_loss_mean) AS val_loss,
    if(in_k, limit_loss, if(ensembled, law.val_loss, val_loss_mean)) AS limit_loss, a, alpha, e, rmse,
    CASE WHEN in_k THEN standard_error WHEN NOT ensembled THEN noise_sd / sqrt(seeds) END AS standard_error,
    CASE WHEN in_k THEN interval_reason WHEN ensembled THEN 'the loss of so many members was measured once'
        ELSE noise.reason END AS interval_reason,
    if(ensembled, cost.training_flops, run.training_flops) AS training_flops,
    coalesce(best.reason, if(ensembled AND ensemble_id IS NULL, 'no ensemble was evaluated at the optimum',
        if(in_k, law.reason, NULL))) AS reason
FROM best LEFT JOIN law USING (cell_id) LEFT JOIN cost USING (ensemble_id) LEFT JOIN noise USING (study, recipe)
    LEFT JOIN run ON run.run_id = best.run_id;

-- One row a (study, recipe, seed_tokens). Laws in N take N = parameters_total in units of 1e9.
CREATE OR REPLACE VIEW asymptote AS
WITH grouped AS (
    SELECT study, recipe, recipe_limit, seed_tokens, recipe_limit IN ('N', 'K then N') AS has_law,
        list(parameters_total / 1e9 ORDER BY cell_id) FILTER (limit_loss IS NOT NULL) AS xs,
        list(limit_loss ORDER BY cell_id) FILTER (limit_loss IS NOT NULL) AS ys,
        arg_min(optimum, limit_loss) AS chosen, arg_min(optimum, val_loss) AS reached, CASE
            WHEN recipe_limit = 'N' THEN max(standard_error)
            WHEN count(limit_loss) = count(standard_error) THEN sqrt(avg(standard_error ^ 2)) END AS point_sd,
        min(interval_reason) FILTER (limit_loss IS NOT NULL) AS no_interval,
        count(*) - count(limit_loss) AS lacking, min(optimum.reason) FILTER (limit_loss IS NULL) AS lack, count(*) AS cells,
        count(*) FILTER (state = 'certified') AS certified, count(*) FILTER (state = 'boundary') AS boundary,
        count(*) FILTER (state = 'open') AS open
    FROM cell_limit AS optimum JOIN (SELECT cell_id, state FROM certificate) USING (cell_id)
    GROUP BY study, recipe, recipe_limit, seed_tokens
), fitted AS (
    SELECT *, if(has_law, power_law(xs, ys), NULL) AS fit FROM grouped
), bracketed AS (
    SELECT *, if(has_law, power_law_interval(xs, ys, fit, point_sd), {low: chosen.limit_loss - 1.645 * chosen.standard_error,
        high: chosen.limit_loss + 1.645 * chosen.standard_error}) AS interval
    FROM fitted
)
SELECT study, recipe, seed_tokens, CASE recipe_limit WHEN 'best' THEN 'best over N' WHEN 'N' THEN 'asymptote'
        WHEN 'K' THEN 'asymptote in K, best over N' ELSE 'asymptote in K, then N' END AS kind,
    CASE recipe_limit WHEN 'K' THEN 'members' WHEN 'K then N' THEN 'members, then parameters_total' ELSE 'parameters_total' END
        AS variable,
    CASE WHEN NOT has_law THEN chosen.limit_loss WHEN fit.reason IS NULL THEN fit.e END AS limit_loss,
    if(has_law, fit.a, chosen.a) AS a, if(has_law, fit.alpha, chosen.alpha) AS alpha, if(has_law, fit.e, chosen.e) AS e,
    if(recipe_limit = 'K', coalesce(chosen.members, 0), coalesce(len(xs), 0)) AS points,
    if(has_law, fit.rmse, chosen.rmse) AS rmse, interval.low AS e_low, interval.high AS e_high, noise_sd,
    CASE WHEN interval.low IS NULL THEN coalesce(if(has_law, no_interval, chosen.interval_reason),
        'there is no limit to bracket') END AS interval_reason,
    CASE
        WHEN has_law THEN fit.reason || if(lacking > 0, '; ' || lacking || ' of ' || cells || ' sizes have no '
            || if(recipe_limit = 'N', 'loss: ', 'limit in K: ') || lack, '')
        WHEN chosen IS NULL THEN 'no size has a ' || if(recipe_limit = 'K', 'limit in K: ', 'loss: ') || lack END
        AS reason,
    reached.val_loss AS best_trained, reached.cell_id AS best_cell, cells, certified, boundary, open
FROM bracketed LEFT JOIN noise USING (study, recipe);

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
SELECT study, recipe, seed_tokens, baseline, kind, limit_loss, e_low, e_high, tokens_needed,
    tokens_needed / seed_tokens AS data_efficiency,
    if(tokens_needed IS NULL, NULL, tokens_low / seed_tokens) AS data_efficiency_low,
    if(tokens_needed IS NULL, NULL, tokens_high / seed_tokens) AS data_efficiency_high,
    tokens_needed > largest_budget AS extrapolated, best_trained, best_cell,
    tokens_trained / seed_tokens AS data_efficiency_trained,
    points, cells, certified, boundary, open,
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

-- One row a (study, recipe, seed_tokens): the limit beside the best loss that was reached and what that took.
CREATE OR REPLACE VIEW recipe_summary AS
WITH cost AS MATERIALIZED (
    FROM cell_limit
)
SELECT limits.study, limits.recipe, limits.seed_tokens, kind, limits.limit_loss, e_low, e_high, best_trained, best_cell,
    own.size, own.members, own.parameters_total, own.members * own.parameters_total AS inference_parameters,
    own.training_flops, teacher.training_flops AS teacher_flops, data_efficiency, data_efficiency_low, data_efficiency_high,
    data_efficiency_trained, extrapolated, limits.points, limits.cells, limits.certified, limits.boundary, limits.open, limits.reason
FROM data_efficiency AS limits LEFT JOIN cost AS own ON own.cell_id = best_cell LEFT JOIN cell ON cell.cell_id = best_cell
    LEFT JOIN cost AS teacher ON teacher.cell_id = cell.teacher;
