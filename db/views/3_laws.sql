-- Laws over a cell's optimum: the limit of each recipe at each budget, its law over budgets, and data efficiency.
-- Numbers are fitted here and now. Their 90% intervals come from table `fit`, which dataeff.laws.chain fills; what each
-- covers, and what it does not: db/README.md.

-- One row a (study, recipe): hash of what is recorded of it and of the study's baseline, and of what these views make of it.
CREATE OR REPLACE VIEW evidence AS
WITH item AS (
    SELECT study, recipe, concat_ws(' ', cell_id, recipe_limit, role, run_id) AS fact
    FROM trial JOIN cell USING (cell_id) JOIN run USING (run_id)
    UNION ALL
    SELECT study, recipe, concat_ws(' ', cell_id, recipe_limit, ensemble_id)
    FROM cell_ensemble JOIN cell USING (cell_id) JOIN ensemble USING (ensemble_id)
), own AS (
    SELECT study, recipe, hex(bit_xor(md5_number_lower(fact))) AS evidence FROM item GROUP BY study, recipe
)
SELECT own.study, own.recipe, concat_ws(' ', own.evidence, study.baseline, base.evidence,
    (SELECT version FROM schema)) AS evidence
FROM own JOIN study ON study.name = own.study LEFT JOIN own AS base ON base.study = own.study AND base.recipe = study.baseline;

-- Every fit, and whether what it rests on has changed since.
CREATE OR REPLACE VIEW fit_state AS
SELECT fit.*, fit.evidence IS DISTINCT FROM evidence.evidence AS stale
FROM fit LEFT JOIN evidence USING (study, recipe);

-- The interval of a value: that of its fit, a row of fit_state, unless runs added since have moved the value out of it.
CREATE OR REPLACE MACRO fitted_interval(value_, fit_) AS CASE
    WHEN value_ IS NULL THEN {low: NULL::DOUBLE, high: NULL::DOUBLE, reason: 'no estimate, so no interval'}
    WHEN fit_.fit_id IS NULL
        THEN {low: NULL::DOUBLE, high: NULL::DOUBLE, reason: 'not fitted yet; `dataeff answer` of the study does it'}
    WHEN fit_.stale AND NOT coalesce(value_ BETWEEN coalesce(fit_.low, 0) AND coalesce(fit_.high, value_), false)
        THEN {low: NULL::DOUBLE, high: NULL::DOUBLE, reason: 'runs added since the fit have moved it out of its interval'}
    ELSE {low: fit_.low, high: fit_.high, reason: CASE
        WHEN fit_.low IS NULL AND fit_.high IS NULL THEN fit_.method
        WHEN fit_.low IS NULL THEN 'no lower end: more than 5% of the resamples lie outside the measured losses'
        WHEN fit_.high IS NULL THEN 'no upper end: in ' || round(100.0 * fit_.undefined / fit_.resamples)::INT
            || '% of the resamples the baseline never reaches this loss, or lies outside its measured ones' END} END;

-- One row a (cell, averaging, K): the loss of K members of the ensemble at the cell's optimum.
CREATE OR REPLACE VIEW ensemble_curve AS
SELECT study, recipe, seed_tokens, size, parameters_total, cell_id, ensemble_id, averaging, members, mean_loss, least,
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
    if(ensembled, members, 1) AS members, if(ensembled, law.val_loss, val_loss_mean) AS reached_loss,
    if(in_k, law.limit_loss, reached_loss) AS limit_loss, a, alpha, e, rmse,
    if(ensembled, val_loss_error, noise_sd / sqrt(seeds)) AS reached_error,
    if(in_k, law.standard_error, reached_error) AS standard_error,
    if(ensembled, NULL, degrees_of_freedom) AS freedom,
    CASE WHEN in_k THEN interval_reason WHEN NOT ensembled THEN noise.reason
        WHEN val_loss_error IS NULL THEN 'leaving a member out needs 3 members, and the loss of the others' END AS interval_reason,
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
        arg_min(optimum, limit_loss) AS chosen, arg_min(optimum, reached_loss) AS reached,
        count(*) - count(limit_loss) AS lacking, min(optimum.reason) FILTER (limit_loss IS NULL) AS lack, count(*) AS cells,
        count(*) FILTER (state = 'certified') AS certified, count(*) FILTER (state = 'boundary') AS boundary,
        count(*) FILTER (state NOT IN ('certified', 'boundary')) AS open,
        max(parameters_total) FILTER (limit_loss IS NOT NULL) AS largest_parameters, max(members) AS largest_members
    FROM cell_limit AS optimum JOIN (SELECT cell_id, state FROM certificate) USING (cell_id)
    GROUP BY study, recipe, recipe_limit, seed_tokens
), fitted AS (
    SELECT *, if(has_law, power_law(xs, ys), NULL) AS fit FROM grouped
), valued AS (
    SELECT *, CASE WHEN NOT has_law THEN chosen.limit_loss WHEN fit.reason IS NULL THEN fit.e END AS limit_loss FROM fitted
), bracketed AS (
    SELECT valued.*, fitted_interval(limit_loss, fit_state) AS interval
    FROM valued LEFT JOIN fit_state ON fit_id = concat_ws('/', valued.study, valued.recipe, valued.seed_tokens, 'asymptote')
)
SELECT study, recipe, seed_tokens, CASE recipe_limit WHEN 'best' THEN 'best over N' WHEN 'N' THEN 'asymptote'
        WHEN 'K' THEN 'asymptote in K, best over N' ELSE 'asymptote in K, then N' END AS kind,
    CASE recipe_limit WHEN 'K' THEN 'members' WHEN 'K then N' THEN 'members, then parameters_total' ELSE 'parameters_total' END
        AS variable,
    limit_loss, if(has_law, fit.a, chosen.a) AS a, if(has_law, fit.alpha, chosen.alpha) AS alpha, if(has_law, fit.e, chosen.e) AS e,
    if(recipe_limit = 'K', coalesce(chosen.members, 0), coalesce(len(list_distinct(xs)), 0)) AS points,
    if(has_law, fit.rmse, chosen.rmse) AS rmse, interval.low AS e_low, interval.high AS e_high, noise_sd,
    interval.reason AS interval_reason,
    CASE
        WHEN has_law THEN fit.reason || if(lacking > 0, '; ' || lacking || ' of ' || cells || ' sizes have no '
            || if(recipe_limit = 'N', 'loss: ', 'limit in K: ') || lack, '')
        WHEN chosen IS NULL THEN 'no size has a ' || if(recipe_limit = 'K', 'limit in K: ', 'loss: ') || lack END
        AS reason,
    reached.reached_loss AS best_trained, reached.cell_id AS best_cell, largest_parameters, largest_members,
    cells, certified, boundary, open
FROM bracketed LEFT JOIN noise USING (study, recipe);

-- One row a (study, recipe). The law of the recipe's limits over D = seed_tokens in units of 1e6.
CREATE OR REPLACE VIEW data_law AS
WITH grouped AS (
    SELECT study, recipe, list(seed_tokens / 1e6 ORDER BY seed_tokens) FILTER (limit_loss IS NOT NULL) AS xs,
        list(limit_loss ORDER BY seed_tokens) FILTER (limit_loss IS NOT NULL) AS ys, count(*) AS budgets,
        max(seed_tokens) FILTER (limit_loss IS NOT NULL) AS largest_budget,
        sum(cells)::BIGINT AS cells, sum(certified)::BIGINT AS certified,
        sum(boundary)::BIGINT AS boundary, sum(open)::BIGINT AS open
    FROM asymptote
    GROUP BY study, recipe
), fitted AS (
    SELECT *, power_law(coalesce(xs, []), coalesce(ys, [])) AS fit FROM grouped
), bracketed AS (
    SELECT fitted.*, if(fit.reason IS NULL, fit.e, NULL) AS limit_loss, fitted_interval(limit_loss, fit_state) AS interval
    FROM fitted LEFT JOIN fit_state ON fit_id = concat_ws('/', fitted.study, fitted.recipe, 'data_law')
)
SELECT study, recipe, 'seed_tokens' AS variable, limit_loss, fit.a, fit.alpha, fit.e,
    coalesce(len(xs), 0) AS points, budgets, largest_budget, fit.rmse, interval.low AS e_low, interval.high AS e_high,
    interval.reason AS interval_reason, fit.reason, cells, certified, boundary, open
FROM bracketed;

-- Why the baseline's data law gives no tokens for a loss.
CREATE OR REPLACE MACRO no_ratio(loss, baseline, has_law, floor_, no_law) AS CASE
    WHEN baseline IS NULL THEN 'the study names no baseline'
    WHEN NOT has_law THEN 'the baseline ' || baseline || ' has no runs in this study'
    WHEN floor_ IS NULL THEN 'the baseline has no data law: ' || no_law
    WHEN loss <= floor_ THEN 'the baseline''s law never reaches this loss: its limit is ' || round(floor_, 4) END;

-- One row a (study, recipe, seed_tokens): the tokens the study's baseline recipe needs to reach the recipe's limit there, by
-- its data law and between its measured points, over the tokens the recipe had.
CREATE OR REPLACE VIEW data_efficiency AS
WITH limits AS MATERIALIZED (
    FROM asymptote
), measured AS (
    SELECT study, recipe, list(seed_tokens ORDER BY seed_tokens) AS xs, list(limit_loss ORDER BY seed_tokens) AS ys
    FROM limits WHERE limit_loss IS NOT NULL GROUP BY study, recipe
), ratio AS (
    SELECT limits.*, study.baseline, law.e AS floor, law.reason AS no_law, law.study IS NOT NULL AS has_law,
        law.largest_budget,
        1e6 * power_law_inverse(law.a, law.alpha, law.e, limits.limit_loss) AS tokens_needed,
        tokens_needed / limits.seed_tokens AS by_law, tokens_needed > law.largest_budget AS extrapolated,
        1e6 * power_law_inverse(law.a, law.alpha, law.e, limits.best_trained) / limits.seed_tokens AS trained,
        if(len(xs) > 1, interpolated_inverse(xs, ys, limits.limit_loss) / limits.seed_tokens, NULL) AS between_, xs, ys
    FROM limits LEFT JOIN study ON study.name = limits.study
        LEFT JOIN (SELECT * REPLACE (if(a > 0, e, NULL) AS e) FROM data_law) AS law
            ON law.study = limits.study AND law.recipe = study.baseline
        LEFT JOIN measured ON measured.study = limits.study AND measured.recipe = study.baseline
), bracketed AS (
    SELECT ratio.*, fitted_interval(by_law, one) AS one_interval, fitted_interval(between_, two) AS two_interval,
        fitted_interval(trained, three) AS three_interval
    FROM (SELECT *, concat_ws('/', study, recipe, seed_tokens, 'data_efficiency') AS id FROM ratio) AS ratio
        LEFT JOIN fit_state AS one ON one.fit_id = id LEFT JOIN fit_state AS two ON two.fit_id = id || '_interpolated'
        LEFT JOIN fit_state AS three ON three.fit_id = id || '_trained'
)
SELECT study, recipe, seed_tokens, baseline, kind, limit_loss, e_low, e_high, tokens_needed,
    by_law AS data_efficiency, one_interval.low AS data_efficiency_low, one_interval.high AS data_efficiency_high, extrapolated,
    between_ AS data_efficiency_interpolated, two_interval.low AS data_efficiency_interpolated_low,
    two_interval.high AS data_efficiency_interpolated_high, best_trained, best_cell,
    trained AS data_efficiency_trained, three_interval.low AS data_efficiency_trained_low,
    three_interval.high AS data_efficiency_trained_high, points, cells, certified, boundary, open,
    one_interval.reason AS interval_reason,
    CASE
        WHEN limit_loss IS NULL THEN 'this recipe has no limit here'
        WHEN baseline IS NULL THEN 'the study names no baseline'
        WHEN coalesce(len(xs), 0) < 2 THEN 'the baseline has limits at fewer than two budgets'
        WHEN between_ IS NULL THEN 'outside the baseline''s measured losses, ' || round(list_min(ys), 4) || ' to '
            || round(list_max(ys), 4) || ' (pooled where they rise) at D = ' || xs[1] || ' to ' || xs[-1] END AS interpolation_reason,
    largest_budget, trained * seed_tokens > largest_budget AS trained_extrapolated, largest_parameters, largest_members,
    if(best_trained IS NULL, 'no run has finished', no_ratio(best_trained, baseline, has_law, floor, no_law)) AS trained_reason,
    if(limit_loss IS NULL, 'this recipe has no limit here: ' || reason, no_ratio(limit_loss, baseline, has_law, floor, no_law))
        AS reason
FROM bracketed;

-- One row a (study, recipe, seed_tokens): the limit beside the best loss that was reached and what that took.
CREATE OR REPLACE VIEW recipe_summary AS
WITH cost AS MATERIALIZED (
    FROM cell_limit
)
SELECT limits.study, limits.recipe, limits.seed_tokens, kind, limits.limit_loss, e_low, e_high, best_trained, best_cell,
    own.size, own.members, own.parameters_total, own.members * own.parameters_total AS inference_parameters,
    own.training_flops, teacher.training_flops AS teacher_flops, data_efficiency, data_efficiency_low, data_efficiency_high,
    data_efficiency_trained, data_efficiency_trained_low, data_efficiency_trained_high, extrapolated, trained_extrapolated, largest_budget, largest_parameters, largest_members, limits.points, limits.cells, limits.certified, limits.boundary, limits.open,
    trained_reason, limits.reason
FROM data_efficiency AS limits LEFT JOIN cost AS own ON own.cell_id = best_cell LEFT JOIN cell ON cell.cell_id = best_cell
    LEFT JOIN cost AS teacher ON teacher.cell_id = cell.teacher;
